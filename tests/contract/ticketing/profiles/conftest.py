"""What tests of ticket profiles share: secrets in files, profiles from YAML, and notices."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from egress import ticket_profiles
from egress.objects import Event
from egress.tickets import Notice
from lab.tickets import Jira, Receiver, ServiceNow
from workers.ticketing.profiles import make
from workers.ticketing.profiles.base import TicketSystem

PASSWORD = "p4ss/w+rd&<ever>"
TOKEN = "t0ken-never-seen"
SECRETS = (b"the-newest-of-both-secrets-123456", b"the-older-one-of-both-secrets-12")
NOW = 1_790_000_000.0


class Office:
    """A directory of credentials, and profiles that use them."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.write("username", "hawse")
        self.write("password", PASSWORD)
        self.write("token", TOKEN)
        for name, secret in zip(("new", "old"), SECRETS, strict=True):
            self.write(name, "whsec_" + base64.b64encode(secret).decode())

    def write(self, name: str, text: str) -> str:
        """Writes a file, and gives its path."""
        path = self.where / name
        path.write_text(text + "\n")
        return str(path)

    def path(self, name: str) -> str:
        """The path of a file."""
        return str(self.where / name)

    def profile(self, kind: str, url: str, **fields: Any) -> ticket_profiles.Profile:
        """A profile as the file has it."""
        credentials: dict[str, Any] = {
            "webhook": {"secretFiles": [self.path("new"), self.path("old")]},
            "servicenow": {"usernameFile": self.path("username"), "passwordFile": self.path("password")},
            "jira": {"usernameFile": self.path("username"), "tokenFile": self.path("token"), "project": "NET"},
        }[kind]
        entry = {"name": "desk", "type": kind, "url": url, "timeout": 5, **credentials, **fields}
        path = self.write("profiles.yaml", yaml.safe_dump({"profiles": [entry]}))
        return ticket_profiles.load(path).profiles[0]

    def system(self, kind: str, url: str, **fields: Any) -> TicketSystem:
        """The system of such a profile, whose clock stands at NOW."""
        return make(self.profile(kind, url, **fields), clock=lambda: NOW)


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        yield server


@pytest.fixture
def servicenow() -> Iterator[ServiceNow]:
    with ServiceNow() as server:
        yield server


@pytest.fixture
def jira() -> Iterator[Jira]:
    with Jira() as server:
        yield server


@pytest.fixture
def notice() -> Any:
    """Makes notices: all of one assignment."""

    def make_notice(event: Event = Event.ASSIGNED, **fields: Any) -> Notice:
        known: dict[str, Any] = {
            "cluster": "prod 1",
            "namespace": "shop",
            "namespace_uid": "1d0f",
            "address": "192.0.2.7",
            "pool": "internet",
            "node": "node-1",
            "owner": {"openshift.io/requester": "alice"},
            "justification": 'pays "cards"\nof [code]<b>customers</b>[/code]',
            "operation": "4f0c",
            "link": "https://hawse.example/namespaces/shop",
            "approval_required": True,
        }
        identity = f"hawse-7c2e-1-{event.value}"
        return Notice(event, identity, at=NOW - 1.5, **{"key": "hawse-7c2e-1", **known, **fields})

    return make_notice
