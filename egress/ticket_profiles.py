"""The file of ticket profiles: where the firewall team is told of addresses, and how it answers.

One YAML file, named by `HAWSE_TICKET_PROFILES`; docs/firewall-team.md has an example of each profile. It names the
files that hold credentials and holds none itself: they come from Secrets, are read when they are used, and may be
replaced while Hawse runs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
import yaml

from egress.forms import learn
from egress.objects import Event

_NAME = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
Name = Annotated[str, msgspec.Meta(pattern=_NAME)]
Url = Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s@]+$")]
Proxy = Annotated[str, msgspec.Meta(pattern=r"^(http://[^\s@/]+)?$")]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]
TICKET_EVENTS = (Event.ASSIGNED, Event.RELEASED, Event.CONFLICT)
"""What a ticket system is told unless its profile says otherwise: what the firewall team may have to act on."""


class ProfilesError(ValueError):
    """The file cannot be used; the message names it, the field, and what to write."""


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pass


class Callback(_Strict, frozen=True, kw_only=True):
    """How the system's answers are known to be its own. Two secrets are valid while one replaces the other."""

    secret_files: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=2)]


class _Profile(_Strict, tag_field="type", frozen=True, kw_only=True):
    name: Name
    events: tuple[Event, ...] = TICKET_EVENTS
    callback: Callback | None = None
    timeout: Annotated[float, msgspec.Meta(gt=0, le=120)] = 10.0
    """Seconds that one call may take altogether."""
    settle: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0
    """For how many seconds nobody repeats what may have been received: so long the system may still be at it, or its
    search not know of it yet."""

    @property
    def answers(self) -> bool:
        """Whether this system says what was decided."""
        return self.callback is not None


class HttpProfile(_Profile, frozen=True, kw_only=True):
    """What every system that is called over HTTP has."""

    url: Url
    ca_file: str = ""
    """PEM of the authority that signed the system's certificate, where it is not a public one."""
    proxy: Proxy = ""
    """The HTTP proxy to go through. None unless it is given: those of the environment are for others."""


class WebhookProfile(HttpProfile, tag="webhook", frozen=True, kw_only=True):
    """POSTs CloudEvents, signed as Standard Webhooks demands with each of `secret_files`, the newest first."""

    secret_files: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=2)]
    template_file: str = ""
    """A Jinja template of the CloudEvent's `data`, which must render to JSON."""


class Poll(_Strict, frozen=True, kw_only=True):
    """How often a ticket that waits for an answer is looked at, in seconds."""

    interval: Seconds = 60.0


class ServiceNowProfile(HttpProfile, tag="servicenow", frozen=True, kw_only=True):
    """Creates records by the Table API. Either user name and password, or a bearer token."""

    table: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]+$")] = "change_request"
    username_file: str = ""
    password_file: str = ""
    token_file: str = ""
    fields: Mapping[str, str] = {}
    """Further fields of a new record."""
    close_fields: Mapping[str, str] = {}
    """What a release writes into the record; empty: a comment only."""
    settle: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 30.0
    release: Literal["same", "own"] = "same"
    """Whether a release refers to the ticket of the assignment, or opens its own."""
    state_field: str = "approval"
    approved: tuple[str, ...] = ("approved",)
    rejected: tuple[str, ...] = ("rejected", "cancelled")
    poll: Poll | None = None

    @property
    def answers(self) -> bool:
        return self.callback is not None or self.poll is not None


class JiraProfile(HttpProfile, tag="jira", frozen=True, kw_only=True):
    """Creates issues by REST v3. Either user name and API token, or a bearer token alone."""

    project: Annotated[str, msgspec.Meta(pattern=r"^[A-Z][A-Z0-9_]*$")]
    issue_type: str = "Task"
    username_file: str = ""
    token_file: str
    fields: Mapping[str, object] = {}
    """Further fields of a new issue."""
    settle: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 60.0
    close_transition: str = ""
    """The transition that a release makes; empty: a comment only."""
    release: Literal["same", "own"] = "same"
    approved: tuple[str, ...] = ("Approved", "Done")
    """The names of the statuses that mean so."""
    rejected: tuple[str, ...] = ("Rejected", "Declined")
    poll: Poll | None = None

    @property
    def answers(self) -> bool:
        return self.callback is not None or self.poll is not None


class AddressListProfile(_Profile, tag="address-list", frozen=True, kw_only=True):
    """No ticket: the firewall polls the lists that `hawse-api` serves."""

    events: tuple[Event, ...] = ()


class ConsoleProfile(_Profile, tag="console", frozen=True, kw_only=True):
    """Prints each notice to the log: for demonstrations."""

    events: tuple[Event, ...] = tuple(Event)


Profile = WebhookProfile | ServiceNowProfile | JiraProfile | AddressListProfile | ConsoleProfile


class BasicAuth(_Strict, frozen=True, kw_only=True):
    """Who may read a list."""

    username_file: str
    password_file: str


class ListDefinition(_Strict, frozen=True, kw_only=True):
    """An address list at `/lists/NAME.txt` and `/lists/NAME.json`: the addresses of `pools` (all, if none is named)
    whose namespace carries all of `labels`. `comments` puts the namespace's name behind each address."""

    name: Name
    pools: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    comments: bool = False
    auth: BasicAuth | None = None


class Profiles(_Strict, frozen=True, kw_only=True):
    """The whole file. `cluster` and `dashboard` (a URL) are told in every notice; `owner_annotations` are those of a
    namespace that say whom it belongs to, `justification_annotation` why it needs what it asks for. Whoever `list_auth`
    names may read the pools' lists, and those that name nobody themselves; without it everybody may."""

    cluster: str = ""
    dashboard: Url | None = None
    owner_annotations: tuple[str, ...] = ("openshift.io/requester",)
    justification_annotation: str = "egress.hawse.dev/justification"
    profiles: tuple[Profile, ...] = ()
    lists: tuple[ListDefinition, ...] = ()
    list_auth: BasicAuth | None = None

    def get(self, name: str) -> Profile | None:
        """The profile of a name, or None if there is none."""
        return next((profile for profile in self.profiles if profile.name == name), None)


learn(Profiles)


def load(path: str) -> Profiles:
    """The file at `path`; nothing at all for "". ProfilesError if it cannot be read or means nothing."""
    if not path:
        return Profiles()
    try:
        document = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2026-02-30 is no date
        raise ProfilesError(f"{path}: {' '.join(str(error).split())}") from None
    try:
        profiles = msgspec.convert(document if document is not None else {}, Profiles)
    except msgspec.ValidationError as error:
        raise ProfilesError(f"{path}: {error}{_hint(str(error))}") from None
    _check(path, profiles)
    return profiles


_HINTS = {
    "type": "write webhook, servicenow, jira, address-list or console",
    "events": f"write some of {', '.join(Event)}",
    "name": "write lower-case letters, digits and dashes, 63 at most",
    "url": "write http:// or https:// and no credentials: those go into files",
    "dashboard": "write http:// or https:// and no credentials",
    "proxy": "write http://HOST:PORT",
    "project": "write the project's key, such as NET",
    "table": "write the table's name, such as change_request",
    "release": "write same or own",
    "timeout": "write seconds, 120 at most",
    "settle": "write seconds, 3600 at most",
    "interval": "write seconds, 86400 at most",
    "secretFiles": "write one or two paths of files, the newest secret first",
}


def _hint(error: str) -> str:
    """What to write into the field that a validation's error names."""
    for field in reversed(re.findall(r"[A-Za-z]+", error.rpartition(" at `$")[2])):
        if field in _HINTS:
            return f"; {_HINTS[field]}"
    return ""


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _check(path: str, profiles: Profiles) -> None:
    for kind, names in (
        ("profile", [profile.name for profile in profiles.profiles]),
        ("list", [item.name for item in profiles.lists]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ProfilesError(f"{path}: {kind} {twice[0]} is there twice; names must differ")
    for profile in profiles.profiles:
        where = f"{path}: profile {profile.name}"
        if isinstance(profile, HttpProfile) and not _is_url(profile.url):
            raise ProfilesError(f"{where}: url {profile.url!r} is none; write https://HOST:PORT/PATH")
        if isinstance(profile, ServiceNowProfile) and bool(profile.token_file) == bool(profile.username_file):
            raise ProfilesError(f"{where}: give it either tokenFile, or usernameFile and passwordFile")
        if isinstance(profile, ServiceNowProfile) and bool(profile.username_file) != bool(profile.password_file):
            raise ProfilesError(f"{where}: usernameFile and passwordFile go together")
        if isinstance(profile, ServiceNowProfile | JiraProfile):
            both = sorted(set(profile.approved) & set(profile.rejected))
            if both:
                raise ProfilesError(f"{where}: {both[0]} is under approved and rejected; leave it under one")


def secrets(files: Collection[str]) -> list[str]:
    """What the files that hold secrets hold, a line each, in their order. ProfilesError names one that cannot be read,
    and never what is in it."""
    found = []
    for name in files:
        try:
            text = Path(name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ProfilesError(f"the secret {name} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ProfilesError(f"the secret {name} is not text") from None
        if not text or not text.isprintable():
            raise ProfilesError(f"the secret {name} is empty, or more than one line of text")
        found.append(text)
    return found
