"""Whether memory grows with the users on disk: the same traffic on a small and on a big book.

    .venv/bin/python benchmarks/memory.py                    # 900 and 1 000 000 users, half an hour
    .venv/bin/python benchmarks/memory.py --users 900 20000  # a quick look

Each book is served with 300 users in memory and gets the same number of withdrawals and
settlements, uniformly over all its users. Shown is the server's resident memory.
Figures are kept in benchmarks/figures/memory-users-N.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

FIGURES = Path(__file__).parent / "figures"


def main() -> int:
    """Measure, and print a line for each book."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--users", type=int, nargs="+", default=[900, 1_000_000])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=2_000, help="requests a second")
    parser.add_argument("--directory", type=Path, help="where the books go: 4 GB for a million")
    options = parser.parse_args()
    ends: list[float] = []
    for users in options.users:
        path = FIGURES / f"memory-users-{users}.json"
        words = ["withdrawals", "--users", str(users), "--users-in-memory", "300"]
        words += ["--seconds", str(options.seconds), "--rate", str(options.rate)]
        words += ["--json", str(path)]
        if options.directory is not None:
            words += ["--directory", str(options.directory)]
        command = [sys.executable, "-m", "pennyweight", "bench", *words]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # noqa: S603 - ours
        if done.returncode:
            return done.returncode
        figures = json.loads(path.read_text())
        memory = [figures[name] for name in ("rss_start_mb", "rss_middle_mb", "rss_mb")]
        ends.append(memory[-1])
        print(
            f"{users} users: {memory[0]} MiB before, {memory[1]} halfway, {memory[2]} at the end, "
            f"after {figures['rows'][0]['requests']} requests, "
            f"{figures['cache_hit_ratio']} of the users found in memory",
            flush=True,
        )
    print(f"between the books: {max(ends) - min(ends):.1f} MiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
