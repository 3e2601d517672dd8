"""A receiver of CloudEvents, as a firewall team would write it: it files one ticket for each `webhook-id`."""

from __future__ import annotations

import base64
import secrets
from pathlib import Path
from typing import Any

from lab.tickets.server import Answer, Request, Server


class Receiver(Server):
    """Answers 202 with the ticket's reference."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - those of Server
        super().__init__(**options)
        self._tickets: dict[str, dict[str, Any]] = {}

    @property
    def tickets(self) -> list[dict[str, Any]]:
        """The events received, each once, in their order."""
        with self._lock:
            return list(self._tickets.values())

    def answer(self, request: Request) -> Answer:
        """Takes an event."""
        if request.method != "POST":
            return Answer(405)
        identity = request.headers.get("webhook-id", "")
        if not identity:
            return Answer(400, {"error": "no webhook-id"})
        self._tickets.setdefault(identity, request.json())
        number = list(self._tickets).index(identity) + 1
        return Answer(202, {"reference": f"FW-{number}", "url": f"{self.url}/tickets/{number}"})


class Desk(Receiver):
    """A firewall team's ticket system, which takes nothing while it is closed."""

    name = "firewall-desk"
    closed = True

    def answer(self, request: Request) -> Answer:
        """Takes an event, or refuses it for good."""
        return Answer(422, {"error": "the change calendar is closed"}) if self.closed else super().answer(request)

    def profile(self, directory: Path) -> dict[str, Any]:
        """What Hawse is told of it; its key is below `directory`."""
        key = directory / "desk-key"
        key.touch(mode=0o600)
        key.write_text(f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}\n")
        return {"name": self.name, "type": "webhook", "url": self.url, "secretFiles": [str(key)]}
