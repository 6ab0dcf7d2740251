"""The table of withdrawals in docs/benchmarks.md: measures its rows and writes them into the page.

    .venv/bin/python benchmarks/withdrawals.py                   # all, about fifteen minutes
    .venv/bin/python benchmarks/withdrawals.py --runs 1 --seconds 3 --only zipf backlog
    .venv/bin/python benchmarks/withdrawals.py --print           # what was measured before, again

Each round begins with `transfers` on the same machine in the same minutes; a row's ratio is
to the transfers of its own round, and shown is the round in the middle by that ratio.
Figures are kept in benchmarks/figures/withdrawals-ROW.json, all rounds of them.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from table import FIGURES, PAGE, machine, shown

MARKED = re.compile(r"(<!-- withdrawals -->\n).*?(<!-- end of withdrawals -->)", re.DOTALL)
BASE = "transfers --connections 64"
DESK = "withdrawals --connections 64 --users 900 --users-in-memory 300"

ROWS: dict[str, tuple[str, str, str]] = {
    "zipf": ("withdrawn and settled over HTTP, Zipf 1.0", "0.8 x", f"{DESK} --skew zipf:1.0"),
    "uniform": ("the same, uniform", "0.6 x", f"{DESK} --skew uniform"),
    "scan": ("the same, one user after the other", "0.5 x", f"{DESK} --skew scan"),
    "hot": ("the same, one user alone", "", f"{DESK} --skew hot"),
    "zipf-alone": (
        "withdrawals alone, Zipf 1.0",
        "0.8 x",
        f"{DESK} --skew zipf:1.0 --settle none --seconds 2 --warm-up 0.5",
    ),
    "uniform-alone": ("the same, uniform", "0.6 x", f"{DESK} --skew uniform --settle none"),
    "scan-alone": ("the same, one after the other", "0.5 x", f"{DESK} --skew scan --settle none"),
    "kafka": (
        "withdrawals as fast as answered, 5 000/s settled from Kafka",
        "",
        f"{DESK} --skew zipf:1.0 --settle kafka --settle-rate 5000",
    ),
    "kafka-open": (
        "1 000/s withdrawn, 5 000/s settled from Kafka",
        "p99 < 15 ms",
        f"{DESK} --skew zipf:1.0 --settle kafka --settle-rate 5000 --rate 1000",
    ),
    "backlog": (
        "a backlog on Kafka",
        "15 000/s",
        "settlements --messages 50000 --users 900 --users-in-memory 300",
    ),
}
COLUMNS = (
    "case",
    "at least",
    "requests/s",
    "x transfers",
    "p50 / p99 / p99.9 ms",
    "in memory",
    "mean batch",
    "CPU of server",
    "stolen",
)


def main() -> int:
    """Measure, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--print", action="store_true", help="measure nothing")
    options = parser.parse_args()
    FIGURES.mkdir(exist_ok=True)
    if not options.print and not measure(options):
        return 1
    PAGE.write_text(MARKED.sub(lambda found: found[1] + table() + found[2], PAGE.read_text()))
    print(table())
    return 0


def measure(options: argparse.Namespace) -> bool:
    """Run the rounds; False if one failed or its book was not right."""
    rounds: dict[str, list[dict[str, Any]]] = {row: [] for row in options.only}
    for _ in range(options.runs):
        base = bench(BASE, options.seconds)
        if base is None:
            return False
        for row in options.only:
            figures = bench(ROWS[row][2], options.seconds)
            if figures is None:
                return False
            rounds[row].append({"transfers": base["requests_per_second"], **figures})
    for row, measured in rounds.items():
        text = json.dumps(measured, indent=2)
        (FIGURES / f"withdrawals-{row}.json").write_text(text + "\n")
    return True


def bench(words: str, seconds: float) -> dict[str, Any] | None:
    """Run `pennyweight bench`, and return its figures; None if it failed."""
    given = words.split()
    if "--seconds" not in given and not words.startswith("settlements"):
        given += ["--seconds", str(seconds)]
    print(f"pennyweight bench {' '.join(given)}", flush=True)
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "pennyweight", "bench", *given, "--json", file.name]
        done = subprocess.run(command, check=False)  # noqa: S603 - our own command, words from above
        if done.returncode:
            print(f"it ended with {done.returncode}", file=sys.stderr)
            return None
        return dict(json.loads(Path(file.name).read_text()))


def table() -> str:
    """Return the rows that there are figures for, as Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    for row, (case, wanted, _) in ROWS.items():
        path = FIGURES / f"withdrawals-{row}.json"
        if path.exists():
            rounds = json.loads(path.read_text())
            lines += lines_of(case, wanted, rounds)
    return "\n".join(lines) + f"\n\n{machine()}\n"


def lines_of(case: str, wanted: str, rounds: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a row: that of the middle round, and of what was measured beside it."""
    ratios = [ratio(figures) for figures in rounds]
    middle = min(rounds, key=lambda figures: abs(ratio(figures) - median(ratios)))
    first, *others = middle["rows"]
    if middle["scenario"] == "settlements":
        titles = [f"{case}: {each['case']}" for each in middle["rows"]]
        return [
            line(title, wanted, each, middle)
            for title, each in zip(titles, middle["rows"], strict=True)
        ]
    beside = [each for each in others if each["case"].startswith("settlements")]
    return [
        line(case, wanted, first, middle, is_first=True),
        *(line(f"… {each['case']}", "", each, middle) for each in beside),
    ]


def line(
    case: str, wanted: str, row: dict[str, Any], figures: dict[str, Any], *, is_first: bool = False
) -> str:
    """Return one line."""
    latency = " / ".join(f"{row[name]:.2f}" for name in ("p50_ms", "p99_ms", "p999_ms"))
    hits, stolen = row["cache_hit_ratio"], figures["stolen_percent"]
    cells = (
        case,
        wanted,
        f"{row['requests_per_second']:,.0f}".replace(",", " "),
        f"{ratio(figures):.2f}" if is_first and figures["setting"]["rate"] is None else "",
        latency if row["max_ms"] else "-",
        "-" if hits is None else f"{100 * hits:.0f} %",
        shown(figures["mean_batch"]) if is_first else "",
        f"{shown(figures['server_cpu_us'])} µs" if is_first else "",
        "-" if stolen is None else f"{stolen:.0f} %",
    )
    return f"| {' | '.join(cells)} |"


def ratio(figures: dict[str, Any]) -> float:
    """Return how many requests were done for each transfer of the same round."""
    return float(figures["requests_per_second"] / figures["transfers"])


if __name__ == "__main__":
    raise SystemExit(main())
