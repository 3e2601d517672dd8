"""The hint that tells the workers of a namespace: it waits in the ledger's list, and a message of Celery's, made here
to go with the reservation, has them look there in time. A burst needs few of these.

Celery's `send_task` costs more than all the rest of an admission, and a way to Redis of its own. A message is one entry
of the queue's list: Celery's protocol, version 2, in the envelope of kombu's Redis transport. A test compares it with
what Celery itself sends.
"""

from __future__ import annotations

import itertools
import os
import socket
import uuid
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from egress.adapters.ledger import Hint
from egress.messages import BROKER_PREFIX, CONTROL_QUEUE, NAMESPACES_LATER, NAMESPACES_TASK

HINT_DELAY = 0.2
"""Seconds after which a hint is worked on: the API server stores the namespace only after our answer."""
HINT_GUARD = 5.0
"""Seconds after which another message is sent, should nobody have come for the last."""
_HEADERS: dict[str, Any] = {
    "lang": "py",
    "task": NAMESPACES_TASK,
    **dict.fromkeys(("shadow", "expires", "group", "group_index", "parent_id", "ignore_result", "stamped_headers")),
    "retries": 0,
    "timelimit": [None, None],
    "kwargsrepr": "{}",
    "origin": f"{os.getpid()}@{socket.gethostname()}",
    "replaced_task_nesting": 0,
    "stamps": {},
}
_PROPERTIES: dict[str, Any] = {
    "reply_to": str(uuid.uuid4()),
    "delivery_mode": 2,
    "delivery_info": {"exchange": "", "routing_key": CONTROL_QUEUE},
    "priority": 0,
    "body_encoding": "base64",
}
_EMBED: dict[str, None] = dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))
_QUEUE = f"{BROKER_PREFIX}{CONTROL_QUEUE}"
_DELAY = timedelta(seconds=HINT_DELAY)


def _message() -> str:
    """A message but for its id and its time, for Python's % operator."""
    own = {"id": "%(task)s", "root_id": "%(task)s", "eta": "%(eta)s", "argsrepr": "()"}
    message = {
        "body": b64encode(msgspec.json.encode(([], {}, _EMBED))).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": _HEADERS | own,
        "properties": _PROPERTIES | {"correlation_id": "%(task)s", "delivery_tag": "%(task)s"},
    }
    return msgspec.json.encode(message).decode()


_MESSAGE = _message()


class Hinter:
    """Makes hints. Each process needs one of its own: the messages' ids begin with what only this one has."""

    def __init__(self) -> None:
        self._prefix = str(uuid.uuid4())
        self._numbers = itertools.count(1)

    def hint(self, namespace: str) -> Hint:
        """The hint for one namespace."""
        task = f"{self._prefix}-{next(self._numbers)}"
        message = _MESSAGE % {"task": task, "eta": (datetime.now(UTC) + _DELAY).isoformat()}
        return Hint(namespace, HINT_DELAY, NAMESPACES_LATER, HINT_GUARD, _QUEUE, message)
