"""The documents run: every command in README.md and docs/*.md, against a server on a fresh book.

The convention for whoever writes one:

- A block fenced as ```` ```console ```` holds commands, each after `$ `, and below each what it
  prints. Where nothing is shown, the command must only end with exit code 0; a line `# exit 2`
  below it says otherwise. A command may go on after a backslash at the end of its line.
- A block fenced as ```` ```sh ```` holds commands without a prompt and shows no output.
- A block fenced as ```` ```http ```` holds a request, a blank line, and the answer's JSON.
- A block fenced as ```` ```sql ```` holds statements, each ended by a semicolon at the end of its
  line. A document that has one is played on a PostgreSQL of its own: see `stages`.
- A block fenced as ```` ```python ```` with `>>>` prompts is a doctest.
- What does not end by itself (`demo`, `make run`; `serve` but with a `&` on PostgreSQL) or belongs
  to another machine goes into a block of another language, or of none: those are not run.

Each document has a book and a server of its own, from its first block to its last, so its
commands tell one story. They run in an empty folder, where the book is `./book` and
`.venv/bin/pennyweight` is ours; `http://localhost:8080` stands for the server. In what is
compared, moments, digests, figures with a unit and the server's address may differ; `…` in
the shown output stands for any text.
"""

import doctest
import http.client
import json
import re
import shutil
from pathlib import Path

import msgspec
import pytest

from stages import on_a_folder, on_lending, on_portfolios, on_postgres

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
RUN = ("console", "sh", "http", "sql")
ENDLESS = re.compile(r"\b(make run|pennyweight (serve|demo))\b")

VARYING = [
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?"), "<moment>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<digest>"),
    (re.compile(r"http://(127\.0\.0\.1|localhost):\d+"), "<address>"),
    (re.compile(r'("seconds":\s*)[\d.]+'), r"\1<figure>"),
    (re.compile(r"\b\d[\d .,]*(?=\s?(µs|us|ms|s|seconds|minutes|kB|MB|GB|/s|/min)\b)"), "<figure>"),
]


class Block(msgspec.Struct):
    """A fenced block: its language, its text, and the line it begins at."""

    language: str
    text: str
    line: int


def blocks_of(document):
    text = document.read_text()
    return [
        Block(match[1], match[2], text.count("\n", 0, match.start()) + 2)
        for match in FENCE.finditer(text)
    ]


def documents():
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        document
        for document in found
        if document.exists() and any(block.language in RUN for block in blocks_of(document))
    ]


def normal(text):
    """Return text with what differs from run to run left out."""
    for pattern, name in VARYING:
        text = pattern.sub(name, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def matches(shown, printed):
    pieces = map(re.escape, normal(shown).split("…"))
    return re.fullmatch(".*".join(pieces), normal(printed), re.DOTALL) is not None


def commands_of(block):
    """Return (command, shown output or None, exit code) of a console or sh block."""
    commands = []
    lines = iter(block.text.splitlines())
    for line in lines:
        is_command = line.startswith("$ ") if block.language == "console" else bool(line.strip())
        if is_command:
            command = line.removeprefix("$ ")
            while command.endswith("\\"):
                command = command[:-1] + next(lines).strip()
            commands.append([command, [], 0])
        elif commands and (code := re.fullmatch(r"# exit (\d+)", line)):
            commands[-1][2] = int(code[1])
        elif commands:
            commands[-1][1].append(line)
    return [(command, "\n".join(shown).strip() or None, code) for command, shown, code in commands]


def run_commands(block, place, stage):
    """Run the commands of a block and compare what they print."""
    for command, shown, code in commands_of(block):
        is_endless = ENDLESS.search(command) and not command.endswith(" &")
        assert not is_endless, "it does not end: put it into a block without a language"
        exit_code, printed, errors = stage.run(command)
        told = f"{place}\n$ {command}\n{printed}{errors}"
        assert exit_code == code, told
        assert shown is None or matches(shown, printed), f"{told}\nshown: {shown}"


def run_http(block, address):
    """Send the request of a block and compare the answer as JSON."""
    request, _, shown = block.text.strip().partition("\n\n")
    first, _, body = request.partition("\n")
    method, path = first.split()
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
    headers = {"Content-Type": "application/json"} if body else {}
    connection.request(method, path, body.encode() or None, headers)
    answer = connection.getresponse().read()
    connection.close()
    assert json.loads(answer) == json.loads(shown)


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.stem)
def test_document_runs(document, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("not here: curl")
    blocks = blocks_of(document)
    place = {"loans": on_lending, "portfolios": on_portfolios}.get(document.stem, on_a_folder)
    if any(block.language == "sql" for block in blocks):
        place = on_postgres
    with place(tmp_path) as stage:
        for block in blocks:
            if block.language == "http":
                run_http(block, stage.address)
            elif block.language == "sql":
                stage.execute(block.text)
            elif block.language in RUN:
                run_commands(block, f"{document.name}:{block.line}", stage)


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.stem)
def test_document_python(document):
    """Python sessions in a document are doctests, all of one document in one session."""
    names = {}
    for block in blocks_of(document):
        if block.language == "python" and ">>>" in block.text:
            test = doctest.DocTestParser().get_doctest(
                block.text, names, document.name, str(document), block.line - 1
            )
            test.globs = names
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            printed = []
            runner.run(test, out=printed.append, clear_globs=False)
            assert runner.summarize(verbose=False).failed == 0, "".join(printed)


def test_documents_are_found():
    assert {"payments", "postgresql", "wallet"} <= {document.stem for document in documents()}


def test_documents_normalised():
    assert matches('{"at":"2026-11-21T16:00:00.1Z"}', '{"at":"2019-01-01T00:00:00.123456Z"}\n')
    assert matches("took 12.5 ms, 3 kB", "took 7 ms, 12 kB")
    assert matches("entries 5 … done", "entries 5 and so on\nand on done")
    assert not matches('{"Amount":"5"}', '{"Amount":"6"}')
    assert not matches("entries 5", "entries 6")
