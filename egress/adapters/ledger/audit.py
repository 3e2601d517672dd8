"""What people did: a stream that keeps the last ten thousand actions."""

from __future__ import annotations

import re
from dataclasses import replace

import msgspec
import structlog

from egress.actions import Audit, AuditEntry
from egress.adapters.ledger.connection import Connection, away

KEPT = 10_000
_KEY = "hawse:audit"
_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
_ENTRY = msgspec.json.Decoder(AuditEntry)
_log = structlog.get_logger()


class AuditTrail(Connection):
    """The actions, each with who did it and why. What is in the log as well, for whoever must keep it for longer."""

    def record_action(self, entry: AuditEntry) -> None:
        """Adds an action; its id is made here."""
        with away():
            self._redis.xadd(_KEY, {"entry": msgspec.json.encode(entry)}, maxlen=KEPT, approximate=True)

    def audit(self, after: str = "", limit: int = 100) -> Audit:
        """Actions before `after` (an id that an earlier page gave; "" for the latest), the latest first."""
        before = f"({after}" if _ID.fullmatch(after) else "+"
        with away():
            found = self._redis.xrevrange(_KEY, max=before, count=limit + 1)
        items = []
        for name, fields in found[:limit]:
            try:
                items.append(replace(_ENTRY.decode(fields["entry"]), id=name))
            except (msgspec.DecodeError, KeyError) as error:
                _log.warning("an action cannot be read", id=name, error=str(error))
        return Audit(tuple(items), found[limit - 1][0] if len(found) > limit else "")
