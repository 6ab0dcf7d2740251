"""The coverage gate: every part of the pure core is covered line by line and branch by branch."""

import json
import sys
from pathlib import Path

PACKAGES = ("ledger", "products", "engine")
PERCENT_MIN = 95


def counts(report: dict, package: str) -> tuple[int, int, int, int]:
    """The statements and branches of a package, covered and in all."""
    prefix = f"src/pennyweight/{package}/"
    files = [f["summary"] for name, f in report["files"].items() if name.startswith(prefix)]
    names = ("covered_lines", "num_statements", "covered_branches", "num_branches")
    return tuple(sum(summary[name] for summary in files) for name in names)


def main() -> int:
    report = json.loads(Path(sys.argv[1]).read_text())
    failed = False
    for package in PACKAGES:
        lines, lines_all, branches, branches_all = counts(report, package)
        for what, covered, total in (
            ("statements", lines, lines_all),
            ("branches", branches, branches_all),
        ):
            passed = covered * 100 >= total * PERCENT_MIN
            percent = f"{covered / total:7.2%}" if total else "   none"
            verdict = "ok" if passed else f"below {PERCENT_MIN} %"
            print(f"coverage: {package:9} {what:10} {percent}  ({covered}/{total})  {verdict}")
            failed |= not passed
    if failed:
        print("coverage: what is missing: .venv/bin/coverage report")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
