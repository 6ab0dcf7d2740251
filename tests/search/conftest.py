"""A real OpenSearch, where this machine can have one; and the command line in this process."""

from collections.abc import Callable
from typing import Any

import pytest
import structlog

from opensearch import opensearch
from pennyweight.__main__ import _Roof
from pennyweight.delivery.cli import run

__all__ = ["opensearch"]


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    for name in ("PENNYWEIGHT_DATA", "PENNYWEIGHT_CONFIG", "ELASTICSEARCH_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    structlog.reset_defaults()

    def call(*words: object) -> Ran:
        capsys.readouterr()
        code = run(_Roof(), [str(word) for word in words])
        return Ran(code, *capsys.readouterr())

    return call
