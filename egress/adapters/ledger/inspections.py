"""How nodes are asked what is on them, and what they said."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable

import msgspec
import structlog

from egress.adapters.ledger.connection import Connection, away
from egress.diagnosis import Inspection
from egress.messages import BROKER_PREFIX, INSPECT_EXPIRES, INSPECT_TASK, node_message, node_queue

KEPT_SECONDS = 60
_log = structlog.get_logger()
_INSPECTION = msgspec.json.Decoder(Inspection)


class Inspections(Connection):
    """The last answer of each node, for each namespace that was asked about; "" is all of them."""

    def ask_inspection(self, nodes: Iterable[str], namespace: str) -> None:
        """Asks the runners of `nodes` for what is on them, all in one round trip."""
        head, tail = node_message(INSPECT_TASK, [namespace], INSPECT_EXPIRES, str(uuid.uuid4()), time.time())
        asking = self._redis.pipeline(transaction=False)
        for queue in map(node_queue, nodes):
            asking.lpush(f"{BROKER_PREFIX}{queue}", f"{head}{queue}{tail}")
        with away():
            asking.execute()

    def tell_inspection(self, namespace: str, inspection: Inspection) -> None:
        """Keeps an answer for KEPT_SECONDS."""
        with away():
            key = _key(inspection.node, namespace)
            self._redis.set(key, msgspec.json.encode(inspection), ex=KEPT_SECONDS)

    def inspections(self, nodes: Iterable[str], namespace: str) -> dict[str, Inspection]:
        """The answers of those of `nodes` that gave one which can be read."""
        names = sorted(nodes)
        if not names:
            return {}
        with away():
            texts = self._redis.mget([_key(name, namespace) for name in names])
        answers: dict[str, Inspection] = {}
        for name, text in zip(names, texts, strict=True):
            try:
                if text:
                    answers[name] = _INSPECTION.decode(text)
            except msgspec.DecodeError as error:
                _log.error("inspection cannot be read", node=name, error=str(error))
        return answers


def _key(node: str, namespace: str) -> str:
    return f"hawse:inspection:{node}:{namespace}"
