"""The table of PostgreSQL: the cases of one machine, in rounds, so that a slow minute hits all alike.

    .venv/bin/python benchmarks/postgres.py                   # three rounds, about six minutes
    .venv/bin/python benchmarks/postgres.py --rounds 1 --seconds 2 --only c64 three
    .venv/bin/python benchmarks/postgres.py --print           # what was measured before, again

Each round measures every case once, on PostgreSQL 18 from the wheel with fsync on, started for
this, and in a database of its own. Shown of each case is the round in the middle; a ratio is
between two cases of one round, and shown is the one in the middle. No round begins that would
not end in time. Figures are kept in benchmarks/figures/postgres-ROW.json, all rounds of them.
The table goes between its marks in docs/benchmarks.md, where there are any.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psycopg
from table import FIGURES, PAGE, machine, shown

from pennyweight.simulators.postgres import PostgresServer

MARKED = re.compile(r"(<!-- postgresql -->\n).*?(<!-- end of postgresql -->)", re.DOTALL)
Figures = dict[str, Any]


class Case(NamedTuple):
    """A row: what it is, what is expected of it, and the words of `pennyweight bench`."""

    title: str
    wanted: str
    words: str
    is_embedded: bool = False


CASES = {
    "c1": Case("one connection", "", "--connections 1"),
    "c64": Case("64 connections, distinct accounts", "12 000/s, p99 < 40 ms", "--connections 64"),
    "hot": Case("64 connections, all paying one account", "", "--connections 64 --skew hot"),
    "three": Case("64 connections on three instances", "", "--connections 64 --instances 3"),
    "one-process": Case("embedded, one process", "", "--connections 64", is_embedded=True),
    "workers": Case(
        "embedded, an owner and two workers", "", "--connections 64 --workers 2", is_embedded=True
    ),
}
COLUMNS = (
    "case",
    "at least",
    "requests/s",
    "p50 / p99 / p99.9 ms",
    "mean batch",
    "round trips a batch",
    "bytes told a transfer",
    "CPU of owner, fronts, client, machine",
    "stolen",
)


def rate(figures: Figures) -> float:
    """Return what a case is compared by."""
    return float(figures["requests_per_second"])


RATIOS: dict[str, tuple[str, str, Callable[[dict[str, Figures]], float]]] = {
    "one connection's p50, in commits of one row": (
        "≤ 3",
        "c1",
        lambda of: of["c1"]["p50_commits"] or 0.0,
    ),
    "one hot account against distinct ones": (
        "≥ 0.8",
        "hot c64",
        lambda of: rate(of["hot"]) / rate(of["c64"]),
    ),
    "three instances against one": (
        "≥ 1",
        "three c64",
        lambda of: rate(of["three"]) / rate(of["c64"]),
    ),
    "two workers against one process, embedded": (
        "",
        "workers one-process",
        lambda of: rate(of["workers"]) / rate(of["one-process"]),
    ),
}


def main() -> int:
    """Measure, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seconds", type=float, default=5, help="of each case in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=6, help="begin no round that ends later")
    parser.add_argument("--version", default="18", help="of PostgreSQL")
    parser.add_argument("--print", action="store_true", help="measure nothing")
    options = parser.parse_args()
    FIGURES.mkdir(exist_ok=True)
    is_good = options.print or measure(options)
    text = table()
    PAGE.write_text(MARKED.sub(lambda found: found[1] + text + found[2], PAGE.read_text()))
    print(text)
    return 0 if is_good else 1


def measure(options: argparse.Namespace) -> bool:
    """Measure in rounds; False if a case failed or its book was not right.

    Such a round is dropped, and the next one begins.
    """
    rounds: list[dict[str, Figures]] = []
    begun = time.monotonic()
    longest = 0.0
    is_good = True
    with PostgresServer(options.version) as server:
        for number in range(1, options.rounds + 1):
            started = time.monotonic()
            if started - begun + longest > 60 * options.minutes:
                print(f"no time for round {number}", flush=True)
                break
            measured: dict[str, Figures] = {}
            for row in options.only:
                print(f"round {number}: {CASES[row].title}", end="", flush=True)
                figures = run(CASES[row], server, options.seconds)
                if figures is None:
                    break
                print(f": {rate(figures):.0f}/s", flush=True)
                measured[row] = {**figures, "postgresql": server.version}
            else:
                rounds.append(measured)
            is_good = is_good and len(measured) == len(options.only)
            longest = max(longest, time.monotonic() - started)
    for row in options.only if rounds else ():
        path = FIGURES / f"postgres-{row}.json"
        document = {"rounds": [measured[row] for measured in rounds]}
        path.write_text(json.dumps(document, indent=1) + "\n")
    return is_good


def run(case: Case, server: PostgresServer, seconds: float) -> Figures | None:
    """Run one case; None if it failed, or its book was not right."""
    with tempfile.TemporaryDirectory() as folder, database(server) as url:
        file = Path(folder) / "figures.json"
        words = ["transfers", "--seconds", str(seconds), *case.words.split(), "--json", str(file)]
        place = [] if case.is_embedded else ["--store", url]
        done = subprocess.run(  # noqa: S603 - our own command, words from above
            [sys.executable, "-m", "pennyweight", "bench", *words, *place],
            check=False,
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            print(f"\n{done.stdout}", file=sys.stderr)
            return None
        figures: Figures = json.loads(file.read_text())
        return figures


@contextmanager
def database(server: PostgresServer) -> Iterator[str]:
    """Make a database that nothing was in, and let the server write down what was before it."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE bench")
        connection.execute("CHECKPOINT")
        yield server.url.removesuffix("/postgres") + "/bench"
        connection.execute("DROP DATABASE bench WITH (FORCE)")


def table() -> str:
    """Return the cases that there are figures for, and how they compare, as Markdown."""
    found: dict[str, list[Figures]] = {}
    for row in CASES:
        path = FIGURES / f"postgres-{row}.json"
        if path.exists():
            found[row] = json.loads(path.read_text())["rounds"]
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    lines += [line(CASES[row], rounds) for row, rounds in found.items() if rounds]
    lines += [
        "",
        "| compared | wanted | in the middle | in each round |",
        "| --- | --- | --- | --- |",
    ]
    for title, (wanted, rows, ratio) in RATIOS.items():
        if all(found.get(row) for row in rows.split()):
            turns = zip(*(found[row] for row in rows.split()), strict=False)
            ratios = [ratio(dict(zip(rows.split(), turn, strict=True))) for turn in turns]
            each = ", ".join(f"{one:.2f}" for one in ratios)
            lines.append(f"| {title} | {wanted} | {median(ratios):.2f} | {each} |")
    commits = [one["commit_p50_us"] for all_ in found.values() for one in all_]
    syncs = [one["fdatasync_p50_us"] for all_ in found.values() for one in all_]
    floor, sync = middle_of(commits), middle_of(syncs)
    versions = {one["postgresql"] for all_ in found.values() for one in all_}
    return (
        "\n".join(lines)
        + f"\n\nPostgreSQL {', '.join(sorted(versions))} on the same machine, fsync on, its own "
        f"defaults. A commit of one row there on one connection: p50 {floor}; `fdatasync` of the "
        f"disk: p50 {sync}. {machine()}\n"
    )


def middle_of(microseconds: list[float | None]) -> str:
    """Return the median of those that are known, in milliseconds."""
    known = [one for one in microseconds if one is not None]
    return f"{median(known) / 1000:.2f} ms" if known else "-"


def line(case: Case, rounds: list[Figures]) -> str:
    """Return one row, of the round in the middle."""
    ordered = sorted(rounds, key=rate)
    figures = ordered[len(ordered) // 2]
    top = figures["rows"][0]
    low, high = (f"{rate(one):,.0f}".replace(",", " ") for one in (ordered[0], ordered[-1]))
    middle = f"{rate(figures):,.0f}".replace(",", " ")
    names = ("server_cpu_us", "fronts_cpu_us", "client_cpu_us", "machine_cpu_us")
    cells = (
        case.title,
        case.wanted,
        middle if len(rounds) == 1 else f"{middle} ({low} to {high})",
        " / ".join(f"{figures[name]:.2f}" for name in ("p50_ms", "p99_ms", "p999_ms")),
        shown(figures["mean_batch"]),
        "-" if top["round_trips"] is None else f"{top['round_trips']:.2f}",
        shown(top["sent_bytes"]),
        f"{', '.join(shown(figures[name]) for name in names)} µs",
        "-" if figures["stolen_percent"] is None else f"{figures['stolen_percent']:.0f} %",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(main())
