"""What the processes say to each other through the broker: task names, queues, Celery's settings. Pure.

A message carries names only, never state: whoever gets it reads the truth anew. So an old version's message is
understood by a new one, and a doubled or late one does no harm.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any, Final

CONTROL_QUEUE: Final = "control"
TABLE_QUEUE: Final = "table"
"""`place`, `publish` and `failover`, of which one run serves all: they must not wait behind a burst of single
namespaces."""
TICKETS_QUEUE: Final = "tickets"
"""Consumed by `hawse-tickets` alone: a ticket system that hangs holds up no address, and a burst of addresses no
ticket."""

BROKER_PREFIX: Final = "hawse-broker:"
"""What the broker's keys begin with in Redis."""

NAMESPACE_TASK: Final = "hawse.v1.namespace"
"""(name): bring one namespace's claim and binding, or its release, to where it should be."""
NAMESPACES_TASK: Final = "hawse.v1.namespaces"
"""(): run `namespace` for those that wait in the ledger's list: a message for each would cost as much as the work."""
NAMESPACES_LATER: Final = f"{NAMESPACES_TASK}:later"
"""What is pending while a message for `namespaces` waits that is for those whose turn is yet to come."""
PLACE_TASK: Final = "hawse.v1.place"
"""(): give every address without a node one."""
PUBLISH_TASK: Final = "hawse.v1.publish"
"""(): bring the nodes' table and the objects' status to where they should be."""
RECONCILE_TASK: Final = "hawse.v1.reconcile"
"""(): read everything and start what is missing."""
FAILOVER_TASK: Final = "hawse.v1.failover"
"""(): judge the nodes that have fallen silent, and those that are back."""
SWEEP_TASK: Final = "hawse.v1.sweep"
"""(): return lapsed reservations and end quarantines."""
TICKETS_TASK: Final = "hawse.v1.tickets"
"""(profile): tell the ticket system of one profile what is due, and ask it what was decided."""
NUDGE_TASK: Final = "hawse.v1.nudge"
"""(): to one node's queue: the table has changed."""
INSPECT_TASK: Final = "hawse.v1.inspect"
"""(namespace): to one node's queue: say what is on the node against what should be, of one namespace or ("") of all."""

TICKETS_EXPIRES: Final = 300
"""Seconds after which a run for a ticket profile is not worth doing: the reconcile has asked for another."""
NUDGE_EXPIRES: Final = 60
"""Seconds after which a nudge to a node that is away is dropped; the runner reads the table when it comes back."""
INSPECT_EXPIRES: Final = 15
"""Seconds after which nobody waits for what a node says of itself."""


def queue_of(task: str) -> str:
    """The queue of one of the control plane's tasks."""
    if task == TICKETS_TASK:
        return TICKETS_QUEUE
    return TABLE_QUEUE if task in (PLACE_TASK, PUBLISH_TASK, FAILOVER_TASK) else CONTROL_QUEUE


def node_queue(node: str) -> str:
    """The queue that only the runner of `node` consumes."""
    return f"node.{node}"


def nudge_message(identity: str, now: float) -> tuple[str, str]:
    """A nudge: see `node_message`."""
    return node_message(NUDGE_TASK, [], NUDGE_EXPIRES, identity, now)


def node_message(task: str, arguments: list[str], expires: int, identity: str, now: float) -> tuple[str, str]:
    """A task as it stands in a node's queue, sent at `now` (seconds since the epoch) and good for `expires` seconds:
    what comes before the queue's name, and what comes after it. `identity` is this message's alone.

    It is made once for all nodes, where sending a task would make it a thousand times. Its form is Celery's protocol 2
    in kombu's envelope for brokers without one of their own; tests/contract/ledger compares it with what Celery sends.
    """
    body = json.dumps([arguments, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    headers: dict[str, Any] = {
        "lang": "py",
        "task": task,
        "id": identity,
        "shadow": None,
        "eta": None,
        "expires": datetime.fromtimestamp(now + expires, UTC).isoformat(),
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": identity,
        "parent_id": None,
        "argsrepr": repr(tuple(arguments)),
        "kwargsrepr": "{}",
        "origin": "hawse",
        "ignore_result": None,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
    properties = {
        "correlation_id": identity,
        "reply_to": identity,
        "delivery_mode": 2,
        "expiration": str(expires * 1000),
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": identity,
    }
    message = {
        "body": base64.b64encode(body.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
    }
    head = json.dumps(message)[:-1] + ', "properties": ' + json.dumps(properties)[:-1]
    return head + ', "delivery_info": {"exchange": "", "routing_key": "', '"}}}'


def celery_config(redis_url: str) -> dict[str, Any]:
    """Celery's configuration, the same in every process.

    A task is acknowledged after it ran, so a killed worker's task runs again; all tasks may run twice.
    """
    return {
        "broker_url": redis_url.replace("unix://", "redis+socket://", 1),
        "result_backend": None,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "task_default_queue": CONTROL_QUEUE,
        "task_create_missing_queues": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # for ever: a Redis that is away for an hour ends no process
        "broker_transport_options": {
            # Seconds after which the broker gives a task that nobody acknowledged to another worker: one whose worker
            # was killed, but also one that still runs or waits for its next try (at most operations.BACKOFF_CAP).
            # Running one twice at a time does no harm; the reconcile does not wait for it.
            "visibility_timeout": 120,
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "global_keyprefix": BROKER_PREFIX,
        },
        "worker_hijack_root_logger": False,
        "worker_send_task_events": False,
        "enable_utc": True,
    }


def node_config(redis_url: str, node: str) -> dict[str, Any]:
    """Celery's configuration of the runner of `node`, so that it needs no rights in Redis but to its own queue.

    What it has taken and not acknowledged yet is kept apart from what the others have, and nobody controls it remotely,
    which would need channels that all processes share.
    """
    config = celery_config(redis_url)
    queue = node_queue(node)
    apart = {f"{key}_key": f"{queue}.{key}" for key in ("unacked", "unacked_index", "unacked_mutex")}
    return {
        **config,
        "broker_transport_options": {**config["broker_transport_options"], **apart},
        "worker_enable_remote_control": False,
    }


def sending_config(redis_url: str) -> dict[str, Any]:
    """Celery's configuration where tasks are only sent.

    What cannot be sent says so at once, and not after six seconds in which a runner would do nothing. Whoever consumes
    needs kombu's patience: a worker that fails to connect at the wrong moment ends.
    """
    config = celery_config(redis_url)
    options = {**config["broker_transport_options"], "max_retries": 1, "interval_start": 0}
    return {**config, "broker_transport_options": options}
