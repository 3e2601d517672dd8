"""What was asked for together: many namespaces to be tried again, so that it can be seen how far they are."""

from __future__ import annotations

import secrets

import msgspec
import structlog

from egress.actions import RetryRun
from egress.adapters.ledger.connection import Connection, away

KEPT_SECONDS = 24 * 3600
_MOST_ID = 40
_log = structlog.get_logger()
_RUN = msgspec.json.Decoder(RetryRun)


class RetryRuns(Connection):
    """Each run for KEPT_SECONDS. Nothing but what is shown depends on them."""

    def keep_run(self, run: RetryRun) -> str:
        """Keeps it; its id."""
        name = secrets.token_urlsafe(12)
        with away():
            self._redis.set(f"hawse:retrying:{name}", msgspec.json.encode(run), ex=KEPT_SECONDS)
        return name

    def run(self, name: str) -> RetryRun | None:
        """The run of an id, None if there is none (any more)."""
        if not name or len(name) > _MOST_ID:
            return None
        with away():
            text = self._redis.get(f"hawse:retrying:{name}")
        try:
            return _RUN.decode(text) if text else None
        except msgspec.DecodeError as error:
            _log.warning("a run cannot be read", id=name, error=str(error))
            return None
