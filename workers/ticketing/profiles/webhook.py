"""The profile `webhook`: CloudEvents 1.0 in structured JSON, signed as Standard Webhooks demands.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md, https://www.standardwebhooks.com
"""

from __future__ import annotations

import binascii
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import msgspec
from jinja2.sandbox import ImmutableSandboxedEnvironment
from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from egress.forms import learn
from egress.objects import Event
from egress.operations import PermanentError
from egress.ticket_profiles import ProfilesError, WebhookProfile
from egress.tickets import Notice, Receipt
from workers.ticketing.errors import NotReachedError
from workers.ticketing.http import Client, words_of
from workers.ticketing.profiles import text
from workers.ticketing.profiles.base import TicketSystem

TYPE = "dev.hawse.egress.{event}.v1"
MAX_REFERENCE = 256


class _Answer(msgspec.Struct):
    """What a receiver may answer, if it has tickets; anything else is passed over."""

    reference: str = ""
    url: str = ""


learn(_Answer)


class WebhookSystem(TicketSystem):
    """A receiver of webhooks. A notice sent again has the same `webhook-id`, by which a receiver knows it."""

    def __init__(self, profile: WebhookProfile, clock: Callable[[], float] = time.time) -> None:
        """ProfilesError if the template is none, or does not always render to JSON."""
        self._profile = profile
        self._clock = clock
        self._client = Client.of(profile, clock)
        self._template = _template(profile.name, profile.template_file) if profile.template_file else None

    def tell(self, notice: Notice, *, resumed: bool) -> Receipt:
        """POSTs the event."""
        body = self._body(notice)
        now = int(self._clock())
        headers = {
            "Content-Type": "application/cloudevents+json; charset=utf-8",
            "webhook-id": notice.id,
            "webhook-timestamp": str(now),
            "webhook-signature": self._signature(notice.id, now, body),
        }
        answer = self._client.call("POST", headers=headers, body=body.encode())
        try:
            receipt = msgspec.json.decode(answer.body, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return Receipt()  # it was taken: that is all that was asked
        return Receipt(receipt.reference[:MAX_REFERENCE], receipt.url if receipt.url.startswith("http") else "")

    def _body(self, notice: Notice) -> str:
        event = {
            "specversion": "1.0",
            "id": notice.id,
            "source": "/hawse" + (f"/{quote(notice.cluster, safe='')}" if notice.cluster else ""),
            "type": TYPE.format(event=notice.event.value),
            "subject": notice.address,
            "time": datetime.fromtimestamp(notice.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "datacontenttype": "application/json",
            "data": text.data(notice) if self._template is None else self._rendered(self._template, notice),
        }
        return msgspec.json.encode(event).decode()

    def _rendered(self, template: jinja2.Template, notice: Notice) -> Any:  # noqa: ANN401 - what the template makes
        try:
            return _render(template, notice)
        except Exception as error:  # noqa: BLE001 - a template may fail in as many ways as a program
            raise PermanentError(f"the template {self._profile.template_file}: {_why(error)}") from None

    def _signature(self, identity: str, now: int, body: str) -> str:
        """One signature for each secret, the newest first, so that both old and new receivers can verify it."""
        when = datetime.fromtimestamp(now, UTC)
        signatures = []
        for name, secret in zip(self._profile.secret_files, words_of(*self._profile.secret_files), strict=True):
            try:
                signatures.append(Webhook(secret).sign(identity, when, body))
            except (binascii.Error, ValueError, EmptyWebhookSecretError):
                raise NotReachedError(f"the secret {name} is not `whsec_` and base64") from None
        return " ".join(signatures)


def _template(profile: str, path: str) -> jinja2.Template:
    """The template of a file, tried with notices of every kind, with all that may be in them and with nothing."""
    where = f"profile {profile}: templateFile: {path}"
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"default": _not_json}
    try:
        template = environment.from_string(Path(path).read_text())
        for event in Event:
            for notice in (_sparse(event), _full(event)):
                _render(template, notice)
    except Exception as error:  # noqa: BLE001 - a template may fail in as many ways as a program
        raise ProfilesError(
            f"{where}: {_why(error)}; it must render to JSON for every event: write {{{{ address | tojson }}}}"
        ) from None
    return template


def _render(template: jinja2.Template, notice: Notice) -> Any:  # noqa: ANN401 - what the template makes
    return json.loads(template.render(text.data(notice)), parse_constant=_no_number)


def _not_json(value: object) -> None:
    """Refuses what `tojson` was given; what is undefined says by itself what it is called."""
    raise TypeError(f"{value} is no JSON")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _why(error: Exception) -> str:
    """What is wrong, without what was rendered."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _sparse(event: Event) -> Notice:
    return Notice(event, "i", "hawse-u-1", 0.0, "", "shop", "u", "192.0.2.7", "pool")


def _full(event: Event) -> Notice:
    awkward = 'a "quoted" \\ text,\nin two lines'
    return Notice(
        event,
        "i",
        "hawse-u-1",
        0.0,
        awkward,
        "shop",
        "u",
        "2001:db8::7",
        "pool",
        node="node-1",
        previous_node="node-2",
        owner={"openshift.io/requester": awkward},
        justification=awkward,
        operation="op",
        link="https://dashboard/",
        quarantined_until=1.0,
        conflict=awkward,
        approval_required=True,
        reference=awkward,
    )
