"""No text from outside makes a line of the log that looks like a record, in either format, nor moves a terminal."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
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


_PROGRAM = """
import logging, sys, threading
import structlog
from egress import logs
from egress.settings import Settings

logs.configure(Settings(log_level="info"), "webhook")
log = structlog.get_logger()
log.debug("not shown")
log.info("from us", text="one\\ntwo", number=7)
logging.getLogger("flask").warning("from a library")
try:
    raise ValueError("no")
except ValueError:
    log.exception("failed")
    logging.getLogger("flask").exception("failed there")
threads = [threading.Thread(target=lambda: [log.info("many", text="x" * 300) for _ in range(50)]) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.stderr.close()
log.info("nobody reads this")
"""


def test_every_line_is_one_record_whoever_writes_at_the_time() -> None:
    """In a process of its own, which closes its standard error."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True, timeout=30)
    ours, library, failed, failed_there, *many = map(json.loads, done.stderr.splitlines())
    assert {key: ours[key] for key in ("event", "text", "number")} == {
        "event": "from us",
        "text": "one\ntwo",
        "number": 7,
    }
    assert library["event"] == "from a library"
    for line, level in ((ours, "info"), (library, "warning"), (failed, "error"), (failed_there, "error")):
        assert (line["component"], line["level"]) == ("webhook", level)
        assert line["timestamp"].endswith("Z")
    for line in (failed, failed_there):
        assert line["exception"].endswith("ValueError: no")
    assert [line["event"] for line in many] == ["many"] * 400
