"""A process that gave up begins again in its own place; one that was asked to end does not."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
from egress import processes
processes.PAUSE = 0
marks = sys.argv[1]
with open(marks, "a") as file:
    file.write(f"{os.getpid()}\\n")
with open(marks) as file:
    runs = file.readlines()
processes.begin_again_unless(*([0] if len(runs) == 3 else [None, False]), reason="test")
"""


def test_begins_again_with_the_same_pid_until_asked_to_end(tmp_path: Path) -> None:
    script, marks = tmp_path / "script.py", tmp_path / "marks"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, "-P", script, marks], timeout=30, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    pids = marks.read_text().split()
    assert len(pids) == 3
    assert len(set(pids)) == 1


@pytest.mark.parametrize("asked", [(0, None), (None, 1), (False, 0)])
def test_an_exit_code_of_zero_is_being_asked(asked: tuple[object, ...]) -> None:
    from egress.processes import begin_again_unless

    begin_again_unless(*asked, reason="never")


_ASKED_EARLY = """
import os, signal, weakref
from celery import Celery
from celery.bootsteps import StartStopStep
from egress.processes import end_at_sigterm

class Imported: ...

app = Celery("early", broker="memory://")
end_at_sigterm(app.steps["worker"], StartStopStep)
there = Imported()
going = weakref.ref(there, lambda _: os.kill(os.getpid(), signal.SIGTERM))
del there
app.worker_main(["worker", "--pool", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat"])
"""


def test_a_worker_that_is_asked_to_end_while_it_begins_ends() -> None:
    """Even where nothing that is raised gets through, as in the callbacks that imports make."""
    command = [sys.executable, "-c", _ASKED_EARLY]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "ignored" not in ended.stderr
