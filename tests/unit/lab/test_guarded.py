"""The owner of a guard hears both of its lines, whichever process writes first."""

import os
import threading

import pytest

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
