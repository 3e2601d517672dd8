"""The webhook's application on a real Valkey server, asked with AdmissionReviews that a 1.36 API server sent."""

import base64
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonpatch
import pytest
from flask import Flask
from flask.testing import FlaskClient

from egress.adapters.ledger import Ledger, Offer
from egress.addresses import parse_address
from egress.objects import EgressPool, OnExhausted, Selector
from egress.settings import Settings
from lab.net.broker import Broker
from webhook.app import create_app

Json = dict[str, Any]
RECORDED = Path(__file__).parents[2] / "fixtures" / "admission"
TRUSTED = "system:serviceaccount:hawse-system:hawse-workers"
POOLS = (
    EgressPool(
        "prod",
        ("192.168.1.0/24",),
        excluded=("192.168.1.1",),
        namespace_selector=Selector({"kubernetes.io/metadata.name": "egress-test"}),
    ),
    EgressPool("spare", ("10.9.0.1-10.9.0.4",), namespace_selector=Selector()),
    EgressPool("one", ("10.8.0.1",)),
    EgressPool("waiting", ("10.7.0.1",), on_exhausted=OnExhausted.ADMIT),
    EgressPool("pair", ("10.6.0.1-10.6.0.3",), addresses_per_namespace=2),
    EgressPool("both", ("10.5.0.1-10.5.0.2", "fd00::1"), dual_stack=True),
)
NODES = frozenset(map(parse_address, ("192.168.1.17", "192.168.1.18")))


@dataclass
class Asked:
    """What the application answered, as the API server would take it."""

    review: Json
    allowed: bool
    warnings: list[str]
    message: str
    annotations: Json = field(default_factory=dict)
    """The object's annotations with the patch applied."""

    @property
    def own(self) -> Json:
        """The annotations without the operation, which is the request's uid."""
        operation = self.annotations.get("egress.hawse.dev/operation")
        assert operation == (self.review["response"]["uid"] if self.addresses else None)
        return {name: value for name, value in self.annotations.items() if name != "egress.hawse.dev/operation"}

    @property
    def addresses(self) -> str | None:
        return self.annotations.get("egress.hawse.dev/addresses")


def recorded(name: str) -> Json:
    """One recorded AdmissionReview."""
    review: Json = json.loads((RECORDED / f"{name}.json").read_text())
    return review


INDEX_NEW = "hawse:index-new"
"""What says that the index was built less than a minute ago."""


@pytest.fixture
def review() -> Callable[[str], Json]:
    return recorded


@pytest.fixture
def ready(ledger: Ledger) -> Ledger:
    """The ledger as the workers leave it: an index, pools to choose from, and no list with an address."""
    ledger.set_offer(Offer(POOLS, NODES))
    ledger.set_listed({})
    ledger.sync([], ledger.now(), ready=True)
    ledger._redis.delete(INDEX_NEW)
    return ledger


@pytest.fixture
def app(broker: Broker) -> Flask:
    return create_app(Settings(redis_url=broker.unix_url, trusted_users=TRUSTED))


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def ask(client: FlaskClient) -> Callable[..., Asked]:
    return lambda review: asked(client, review)


def asked(client: FlaskClient, review: Json) -> Asked:
    """Posts the review, and checks what holds for every answer."""
    answer = client.post("/admit/namespaces", data=json.dumps(review), content_type="application/json")
    assert answer.status_code == 200, answer.text
    body = answer.get_json()
    assert (body["apiVersion"], body["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response = body["response"]
    assert response["uid"] == review["request"]["uid"]
    assert ("patch" in response) == ("patchType" in response)
    patched = copy.deepcopy(review["request"]["object"])
    if "patch" in response:
        assert response["allowed"]
        assert response["patchType"] == "JSONPatch"
        patch = json.loads(base64.b64decode(response["patch"]))
        assert {operation["op"] for operation in patch} in ({"add"}, {"remove"})
        patched = jsonpatch.apply_patch(patched, patch)
    annotations = (patched or {}).get("metadata", {}).get("annotations") or {}
    status = response.get("status", {})
    return Asked(body, response["allowed"], response.get("warnings", []), status.get("message", ""), annotations)


@pytest.fixture
def create(ask: Callable[..., Asked], review: Callable[[str], Json]) -> Callable[..., Asked]:
    """Asks for a namespace; `annotations` None means none at all, not even an empty map."""

    def asking(name: str = "egress-test", annotations: Json | None = None, **request: object) -> Asked:
        body = review("create-namespace")
        metadata = body["request"]["object"]["metadata"]
        metadata["name"] = name
        metadata["labels"]["kubernetes.io/metadata.name"] = name
        if annotations is not None:
            metadata["annotations"] = annotations
        body["request"] |= {"name": name, "namespace": name, "uid": f"uid-of-{name}", **request}
        return ask(body)

    return asking
