"""No text from outside makes a line of the log that looks like a record, in either format, nor moves a terminal."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from egress import logs
from egress.settings import Settings

HOSTILE = "x\n2026-11-30T00:00:00Z [info     ] forged who=admin\r\x1b[2J\u202e\x85"


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def fail() -> None:
    raise ValueError(HOSTILE)


def said(log_format: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that four records made: ours, another library's, and both with a traceback."""
    logs.configure(Settings(log_format=log_format), "api")
    own, other = structlog.get_logger(), logging.getLogger("somebody")
    own.info("action", why=HOSTILE, list=[HOSTILE])
    other.warning("%s said %s", HOSTILE, HOSTILE)
    try:
        fail()
    except ValueError as error:
        own.error("failed", exc_info=error)
        other.exception(HOSTILE)
    text = capsys.readouterr().err
    assert not set("\x1b\r\x85\u202e") & set(text)
    return text.splitlines()


def test_json_is_one_record_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    records = [json.loads(line) for line in said("json", capsys)]
    assert [record["level"] for record in records] == ["info", "warning", "error", "error"]
    assert records[0]["why"] == HOSTILE


def test_on_a_console_only_a_record_begins_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said("console", capsys)
    begun = [line for line in lines if not line.startswith("    ")]
    assert len(begun) == 4
    assert [line.split()[1] for line in begun] == ["[info", "[warning", "[error", "[error"]
    assert sum("forged" in line for line in lines) > 4, "it is shown, and does nothing"
