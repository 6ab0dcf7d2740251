"""In CI a skip is a failure, unless its reason says what this machine lacks ("not here: ...")."""

import os

import pytest
import structlog

pytest_plugins = ["brokers"]

ALLOWED_PREFIX = "not here: "
_unexpected: dict[str, str] = {}


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    longrepr = report.longrepr
    reason = str(longrepr[2] if isinstance(longrepr, tuple) else longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith(ALLOWED_PREFIX):
        _unexpected[report.nodeid] = reason


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note(report)


def _is_strict() -> bool:
    return os.environ.get("CI") == "true" and "PYTEST_XDIST_WORKER" not in os.environ


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _is_strict() and _unexpected and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties if report.when == "call" else ():
            terminalreporter.write_line(f"{report.nodeid}: {name}: {value}")
    if not _is_strict() or not _unexpected:
        return
    terminalreporter.section("unexpected skips: a failure in CI", red=True)
    for nodeid, reason in sorted(_unexpected.items()):
        terminalreporter.line(f"{nodeid}: {reason}")


@pytest.fixture(autouse=True)
def logs_as_they_were():
    """A test that starts a server in its own process leaves no logging behind.

    Tracebacks are logged without the locals of all frames: a whole engine takes minutes.
    """
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[structlog.processors.add_log_level, renderer])
    yield
    structlog.reset_defaults()
