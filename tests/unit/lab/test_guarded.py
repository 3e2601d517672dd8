"""The owner of a guard hears both of its lines, whichever process writes first, and ends its command."""

import os
import sys
import threading
from pathlib import Path

import pytest

from lab.net import guarded
from lab.net.guarded import _read_until

LINES = [b"holder 17\n", b"ready\n"]


@pytest.mark.parametrize("lines", [LINES, LINES[::-1]])
def test_the_two_lines_come_in_any_order(lines: list[bytes]) -> None:
    reads, writes = os.pipe()
    os.write(writes, lines[0])
    late = threading.Timer(0.05, os.write, (writes, lines[1]))
    late.start()
    try:
        assert sorted(_read_until(reads, {b"holder", b"ready"}, 5).splitlines(keepends=True)) == LINES
    finally:
        late.join()
        os.close(reads)
        os.close(writes)


def test_a_guard_that_ends_is_not_waited_for() -> None:
    reads, writes = os.pipe()
    os.write(writes, b"read")
    os.close(writes)
    assert _read_until(reads, {b"holder", b"ready"}, 60) == b"read"
    os.close(reads)


HANDLER = """
import signal, sys, time
def end(*_):
    print("asked", flush=True)
    {answer}
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize(("answer", "seconds"), [("sys.exit(0)", 60), ("pass", 3)], ids=["ends", "does not listen"])
def test_a_command_is_asked_to_end_before_it_is_made_to(tmp_path: Path, answer: str, seconds: float) -> None:
    log = tmp_path / "log"
    command = guarded.start([sys.executable, "-c", HANDLER.format(answer=answer)], log)
    while "up\n" not in log.read_text():
        assert command.alive()
    command.terminate(seconds)
    assert not command.alive()
    assert log.read_text().split() == ["up", "asked"]
    command.terminate(seconds)  # harmless when it has ended
