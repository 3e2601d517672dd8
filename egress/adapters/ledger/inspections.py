"""What nodes said of themselves when they were asked."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import structlog

from egress.adapters.ledger.connection import Connection, away
from egress.diagnosis import Inspection

KEPT_SECONDS = 60
_log = structlog.get_logger()
_INSPECTION = msgspec.json.Decoder(Inspection)


class Inspections(Connection):
    """The last answer of each node, for each namespace that was asked about; "" is all of them."""

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
