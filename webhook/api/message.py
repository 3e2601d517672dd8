"""A signed message of a ticket system: whether it is the system's own, and what it decides. Pure but for the clock
that the signature's time is compared with."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from standardwebhooks import Webhook
from standardwebhooks.webhooks import EmptyWebhookSecretError

from egress.addresses import Address, AddressError, parse_address
from egress.forms import learn
from egress.objects import Decision, Verdict
from egress.operations import PermanentError

TOLERANCE = 300.0
"""By how many seconds a message's time may differ from our clock. The library's, too."""
OLDEST = 7 * 86400.0
"""For how many seconds a decision may have been on its way."""
SOURCE = "callback"
_PREFIX = "dev.hawse.ticket."
_SIGNED = ("webhook-id", "webhook-timestamp", "webhook-signature")
_ID = re.compile(r"[\x21-\x7e]{1,253}")
_TIMESTAMP = re.compile(r"[0-9]{1,12}")
_SIGNATURE_LIMIT = 4096


class ForgedError(Exception):
    """It is not signed with a secret that is valid now. The message says why, for our log and not for the sender."""


class SecretError(PermanentError):
    """One of our own secrets is none."""


class MessageError(ValueError):
    """It is signed, and means nothing; the message says what is wrong, for its sender."""


@dataclass(frozen=True, slots=True)
class Message:
    """A decision about the assignment `key` of `address`; `digest` is of all that was signed."""

    address: Address
    key: str
    decision: Decision
    digest: str


class _Data(msgspec.Struct, frozen=True):
    address: str
    key: Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,253}$")]
    by: Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
    reason: Annotated[str, msgspec.Meta(max_length=1024)] = ""


class _Body(msgspec.Struct, frozen=True):
    type: Literal["dev.hawse.ticket.approved", "dev.hawse.ticket.rejected", "dev.hawse.ticket.withdrawn"]
    timestamp: Annotated[datetime, msgspec.Meta(tz=True)]
    data: _Data


learn(_Body)


def read(body: bytes, headers: Mapping[str, str], secrets: Sequence[str]) -> Message:
    """The message in `body`, signed with one of `secrets` as Standard Webhooks has it. ForgedError,
    MessageError or SecretError."""
    lowered = {name.lower(): text for name, text in headers.items()}
    signed = {name: lowered.get(name, "") for name in _SIGNED}
    try:
        for secret in secrets:  # the library leaves out what is not base64, and so takes another key than was meant
            base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        keys = [Webhook(secret) for secret in secrets]
    except (ValueError, EmptyWebhookSecretError):
        raise SecretError("a secret of the callback is not base64, with or without whsec_ before it") from None
    _check_signature(body, signed, keys)
    fields = _fields(body)
    at, signed_at = fields.timestamp.timestamp(), float(signed["webhook-timestamp"])
    if at > signed_at + TOLERANCE:
        raise MessageError(f"timestamp is more than {TOLERANCE:.0f} s after webhook-timestamp")
    if at < signed_at - OLDEST:  # one whose first delivery failed comes again for days, signed anew
        raise MessageError(f"timestamp is more than {OLDEST / 86400:.0f} days before webhook-timestamp")
    data = fields.data
    for name, text in (("by", data.by), ("reason", data.reason)):
        if not text.isprintable():
            raise MessageError(f"data.{name} holds a character that cannot be printed, or a line's end")
    try:
        address = parse_address(data.address)
    except AddressError as error:
        raise MessageError(f"data.address: {error}") from None
    verdict = Verdict(fields.type.removeprefix(_PREFIX))
    decision = Decision(verdict, data.by, at, SOURCE, data.reason, signed["webhook-id"])
    return Message(address, data.key, decision, hashlib.sha256(body).hexdigest())


def _check_signature(body: bytes, signed: Mapping[str, str], keys: Sequence[Webhook]) -> None:
    if not _ID.fullmatch(signed["webhook-id"]) or not _TIMESTAMP.fullmatch(signed["webhook-timestamp"]):
        raise ForgedError("webhook-id or webhook-timestamp is missing, or has not their form")
    if len(signed["webhook-signature"]) > _SIGNATURE_LIMIT:
        raise ForgedError("webhook-signature is too long")
    reasons = [_reason(body, signed, key) for key in keys]  # all of them: how long it takes tells of none
    if all(reasons):
        raise ForgedError(reasons[-1])


def _reason(body: bytes, signed: Mapping[str, str], key: Webhook) -> str:
    """Why the message is not signed with `key`, or ""."""
    try:
        key.verify(body, dict(signed), json_parse=False)
    except Exception as error:  # noqa: BLE001 - the library lets what its parsers raise through
        return str(error) or type(error).__name__
    return ""


def _fields(body: bytes) -> _Body:
    try:
        return msgspec.convert(json.loads(body.decode(), object_pairs_hook=_once, parse_constant=_no_number), _Body)
    except RecursionError:
        raise MessageError("the body is nested too deep") from None
    except (ValueError, msgspec.ValidationError) as error:
        raise MessageError(f"the body is not what docs/firewall-team.md describes: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError for a name that is there twice, of which two readers may take different ones."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")
