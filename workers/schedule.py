"""What runs by the clock: Celery's schedule, in the thread that calls."""

from __future__ import annotations

import threading

from celery import Celery
from celery.beat import Scheduler

LONGEST_WAIT = 5.0


def run_schedule(app: Celery, stop: threading.Event) -> None:
    """Sends each task when it is due, until `stop`. What cannot be sent is logged, and due again the next time."""
    scheduler = Scheduler(app)
    while not stop.is_set():
        stop.wait(min(scheduler.tick(), LONGEST_WAIT))
