"""Logs of a process whose standard output is read by programs: errors alone, on stderr."""

import sys

import structlog


def quiet_logs() -> None:
    """Keep logs off standard output, unless somebody said already how they are written."""
    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger("error"),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
