"""The names on the wire and the broker's settings: what an older or newer process must find unchanged."""

import pytest

from egress import messages
from egress.operations import BACKOFF_CAP


def test_task_names_are_versioned_and_stable() -> None:
    assert {name: getattr(messages, name) for name in dir(messages) if name.endswith("_TASK")} == {
        "NAMESPACE_TASK": "hawse.v1.namespace",
        "NAMESPACES_TASK": "hawse.v1.namespaces",
        "PLACE_TASK": "hawse.v1.place",
        "FAILOVER_TASK": "hawse.v1.failover",
        "PUBLISH_TASK": "hawse.v1.publish",
        "RECONCILE_TASK": "hawse.v1.reconcile",
        "SWEEP_TASK": "hawse.v1.sweep",
        "TICKETS_TASK": "hawse.v1.tickets",
        "NUDGE_TASK": "hawse.v1.nudge",
        "INSPECT_TASK": "hawse.v1.inspect",
    }
    assert messages.queue_of(messages.PUBLISH_TASK) == messages.queue_of(messages.PLACE_TASK) == "table"
    assert messages.queue_of(messages.FAILOVER_TASK) == "table"
    assert messages.queue_of(messages.NAMESPACE_TASK) == "control"
    assert messages.queue_of(messages.TICKETS_TASK) == "tickets"
    assert (messages.CONTROL_QUEUE, messages.node_queue("node2.ocp.io")) == ("control", "node.node2.ocp.io")


def test_only_json_is_spoken_and_nothing_is_acknowledged_before_it_ran() -> None:
    config = messages.celery_config("redis://r:6379/0")
    assert (config["task_serializer"], config["accept_content"]) == ("json", ["json"])
    assert config["task_acks_late"]
    assert config["task_reject_on_worker_lost"]
    assert config["result_backend"] is None


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("redis://r:6379/0", "redis://r:6379/0"),
        ("rediss://r:6379/0", "rediss://r:6379/0"),
        ("unix:///run/valkey.sock", "redis+socket:///run/valkey.sock"),
    ],
)
def test_the_brokers_url_is_in_celerys_words(url: str, broker: str) -> None:
    assert messages.celery_config(url)["broker_url"] == broker


def test_a_broker_that_is_away_ends_no_process_and_waits_for_no_longer_than_tasks_do() -> None:
    config = messages.celery_config("redis://r:6379/0")
    assert config["broker_connection_max_retries"] is None
    assert config["broker_transport_options"]["visibility_timeout"] > 3 * BACKOFF_CAP
