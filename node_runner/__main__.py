"""`hawse-node-runner`: the runner of the node it runs on."""

from __future__ import annotations

import os
import signal
import threading

import click
import structlog
from celery import Celery
from celery.bootsteps import StartStopStep
from celery.signals import setup_logging, worker_shutdown
from celery.worker import state
from kombu.exceptions import OperationalError
from prometheus_client import REGISTRY

from egress import logs, settings
from egress.adapters.ledger import Ledger
from egress.addresses import AddressError, parse_address
from egress.health import Health, HealthError
from egress.liveness import Identity
from egress.messages import FAILOVER_TASK, INSPECT_TASK, NUDGE_TASK, node_config, node_queue, queue_of, sending_config
from egress.operations import TransientError
from egress.processes import begin_again_unless, end_at_sigterm
from node_runner import lean
from node_runner.drivers import open_node
from node_runner.drivers.ports import ProbeTiming
from node_runner.heartbeat import Heartbeat
from node_runner.metrics import Passes, TrafficCollector
from node_runner.programmer import Programmer
from node_runner.runner import Runner

TELL_GUARD_SECONDS = 5.0
FIRST_PASS_SECONDS = 1.0
"""How long Celery's start waits for the first pass: one that takes longer waits for something itself."""
REDIS_SECONDS = 0.75
"""How long Redis is waited for, twice. A node that is cut off must know it before others have its addresses."""
_log = structlog.get_logger()


@click.command()
def main() -> None:
    """Run the node runner. HAWSE_NODE_NAME and HAWSE_NODE_IP say which node this is; docs/settings.md has the rest."""
    try:
        current = settings.load()
        layout = current.layout()
        node_ip = parse_address(current.node_ip)
    except settings.SettingsError as error:
        raise click.UsageError(str(error)) from None
    except AddressError as error:
        raise click.UsageError(f"HAWSE_NODE_IP must be the node's IP on the outside link: {error}") from None
    if not current.node_name:
        raise click.UsageError("set HAWSE_NODE_NAME to the name of this node's HostSubnet")
    logs.configure(current, f"node-runner/{current.node_name}")

    lean.pyroute2()
    drivers = open_node(
        node_ip,
        layout,
        bridge=current.bridge,
        vxlan=current.vxlan_interface,
        tun=current.tun_interface,
        iptables=None if current.iptables == "auto" else current.iptables,
    )
    timing = ProbeTiming(current.probe_count, current.probe_interval, current.probe_wait)
    ledger = Ledger(current.redis_url, timeout=REDIS_SECONDS)
    app = Celery("hawse-node-runner")
    app.conf.update(node_config(current.redis_url, current.node_name))
    sending = Celery("hawse-sender", set_as_current=False)
    sending.conf.update(sending_config(current.redis_url))

    me = Identity(current.node_name, current.node_ip)
    passes = Passes()
    runner = Runner(
        me,
        Programmer(current.node_name, drivers, layout, timing),
        ledger,
        lambda task: tell(sending, ledger, task),
        retry=current.refused_retry,
        patience=current.heartbeat_patience,
    )
    heartbeat = Heartbeat(
        me,
        ledger,
        drivers,
        runner.addresses_of,
        lambda: tell(sending, ledger, FAILOVER_TASK),
        patience=current.heartbeat_patience,
    )
    runner.observe = passes.observe
    REGISTRY.register(TrafficCollector(drivers.flows.counts, runner.namespaces))
    try:
        Health(current.health_host, current.health_port, passes.ready, alive=passes.alive).start()
    except HealthError as error:
        raise click.UsageError(str(error)) from None
    end_at_sigterm(app.steps["worker"], StartStopStep)
    stop = threading.Event()
    loop = threading.Thread(target=_loop, args=(runner, stop, current.check_interval), name="loop")
    watchers = [
        threading.Thread(target=runner.watch, args=(drivers.links, runner.look_anew, stop), name="links", daemon=True),
        threading.Thread(target=runner.watch, args=(drivers.flows, runner.touched, stop), name="flows", daemon=True),
        threading.Thread(
            target=heartbeat.beat_until, args=(stop, current.heartbeat_interval), name="heartbeat", daemon=True
        ),
        threading.Thread(target=heartbeat.look_until, args=(stop,), name="witness", daemon=True),
    ]
    _consume(app, current.node_name, runner, ledger, stop)
    queue = node_queue(current.node_name)
    arguments = ["worker", "-Q", queue, "--pool", "solo", "-n", f"runner@{current.node_name}"]
    try:
        for thread in (loop, *watchers):
            thread.start()
        # Celery's start would take turns with the first pass at the interpreter, and the node matters more.
        passes.begun.wait(FIRST_PASS_SECONDS)
        app.worker_main([*arguments, "--without-gossip", "--without-mingle", "--without-heartbeat"])
    finally:
        stop.set()
        runner.wake()
        loop.join()
        drivers.close()
    # kombu 5.7 gives up when it loses the broker at the wrong moment.
    begin_again_unless(state.should_stop, state.should_terminate, reason="Celery's worker gave up")


def tell(app: Celery, ledger: Ledger, task: str) -> None:
    """Asks the workers for a task that looks at this node's report, or at what it saw, unless somebody has asked just
    now. TransientError if the broker is away."""
    if not ledger.first_to(task, TELL_GUARD_SECONDS):
        return
    try:
        app.send_task(task, queue=queue_of(task), retry=False)
    except (OperationalError, OSError) as error:
        ledger.done_with(task)  # nobody was asked: the next one must not believe so
        raise TransientError(f"the broker is away: {error}") from error


def _loop(runner: Runner, stop: threading.Event, interval: float) -> None:
    """The runner's loop; should it ever end by itself, so does the process, for somebody to start it again."""
    try:
        runner.run(stop, interval)
    finally:
        if not stop.is_set():
            os.kill(os.getpid(), signal.SIGTERM)


def _consume(app: Celery, node: str, runner: Runner, ledger: Ledger, stop: threading.Event) -> None:
    """Registers the tasks of this node's queue: look at the table, and say what is on the node."""

    @app.task(name=NUDGE_TASK)
    def nudge() -> None:
        try:
            ledger.done_with(f"{NUDGE_TASK}:{node_queue(node)}")
        finally:
            runner.wake()
            _log.debug("nudged")

    @app.task(name=INSPECT_TASK)
    def inspect(namespace: str) -> None:
        runner.inspect(namespace)

    def keep_logging(**_: object) -> None:
        """`egress.logs` has set logging up."""

    def end(**_: object) -> None:
        stop.set()
        runner.wake()

    setup_logging.connect(keep_logging, weak=False)
    worker_shutdown.connect(end, weak=False)
