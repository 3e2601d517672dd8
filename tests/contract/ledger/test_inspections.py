"""What nodes are asked, in the very form in which Celery asks."""

from __future__ import annotations

import base64
import json
from typing import Any

from celery import Celery

from egress.adapters.ledger import Ledger
from egress.messages import INSPECT_EXPIRES, INSPECT_TASK, node_queue, sending_config
from lab.net.broker import Broker

Json = dict[str, Any]
OWN = ("id", "root_id", "correlation_id", "reply_to", "delivery_tag", "origin", "expires", "argsrepr", "routing_key")
"""Fields of one message alone, or that nobody reads."""


def waiting(ledger: Ledger, node: str) -> list[Json]:
    return [json.loads(text) for text in ledger._redis.lrange(f"hawse-broker:{node_queue(node)}", 0, -1)]


def without_own(value: object) -> object:
    if isinstance(value, dict):
        return {name: without_own(item) for name, item in value.items() if name not in OWN}
    return value


def test_a_node_is_asked_as_celery_would(ledger: Ledger, broker: Broker) -> None:
    app = Celery("test", set_as_current=False)
    app.conf.update(sending_config(broker.unix_url))
    app.send_task(INSPECT_TASK, args=["shop"], queue=node_queue("node1"), expires=INSPECT_EXPIRES, retry=False)
    ledger.ask_inspection([f"node{number}" for number in range(2, 302)], "shop")
    (wanted,) = waiting(ledger, "node1")
    for number in (2, 301):
        (made,) = waiting(ledger, f"node{number}")
        assert without_own(made) == without_own(wanted)
        assert json.loads(base64.b64decode(made["body"])) == json.loads(base64.b64decode(wanted["body"]))
        assert made["properties"]["delivery_info"]["routing_key"] == node_queue(f"node{number}")
    assert waiting(ledger, "node302") == []
