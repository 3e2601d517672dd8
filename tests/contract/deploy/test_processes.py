"""All processes on a real API server and a real Valkey, each as its own user in both; and that no user can do more."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog
import yaml

from egress.actions import RetryRun, Trouble
from egress.adapters.ledger import Ledger
from egress.messages import PUBLISH_TASK
from egress.operations import Outcome, Step, StepRecord, TransientError
from egress.settings import Settings
from egress.table import Steering
from lab.control_plane import ControlPlane
from lab.kube import Kube, KubeError
from lab.net.broker import Broker
from lab.real_cluster import kubectl
from tests.contract.deploy.conftest import DEPLOY, Installed, until, until_established
from webhook.api.callbacks import publisher

pytestmark = pytest.mark.timeout(300)
SECRETS = DEPLOY / "components" / "redis-acl" / "redis-secrets.sh"
NODE = "node1"
NETID = 4711
NETWORK = {"apiVersion": "network.openshift.io/v1"}
NO_PERMISSION = r"(?i)permission|NOPERM"
ADMINISTRATION = [
    "KEYS *",
    "SCAN 0",
    "FLUSHALL",
    "CONFIG GET *",
    "ACL LIST",
    "SHUTDOWN",
    "MONITOR",
    "CLIENT LIST",
    "CLIENT KILL TYPE normal",
    "REPLICAOF NO ONE",
    "MODULE LIST",
    "SWAPDB 0 1",
]


def bound_to_node(rule: str) -> str:
    """The rule of a user for NODE's runner alone, made from that for all runners as docs/install.md says."""
    queue = f"~hawse-broker:node.{NODE} ~hawse-broker:node.{NODE}.unacked* ~hawse-broker:node.{NODE}[^-.a-z0-9]*"
    rule = rule.replace("user hawse-runner", f"user hawse-runner-{NODE}").replace("~hawse-broker:node.*", queue)
    rule = rule.replace("inspection:*", f"inspection:{NODE}:*")
    return rule.replace("node:*", f"node:{NODE}").replace("node.*", f"node.{NODE}")


class GuardedBroker(Broker):
    """A broker with the users that `redis-secrets.sh` makes, and an admin for the test."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, port=0)
        made = subprocess.run(["sh", SECRETS], capture_output=True, text=True, check=True).stdout
        secrets = {item["metadata"]["name"]: item["stringData"] for item in yaml.safe_load_all(made) if item}
        self._users = directory / "users.acl"
        rules = secrets["hawse-redis-acl"]["users.acl"].splitlines()
        rules += [bound_to_node(rule) for rule in rules if rule.startswith("user hawse-runner ")]
        self._users.write_text("\n".join([*rules, "user admin on nopass ~* &* +@all\n"]))
        self._users.chmod(0o600)
        self._passwords = {
            role: secrets[f"hawse-redis-{role}"]["url"].split("@")[0].rpartition(":")[2]
            for role in ("workers", "webhook", "api", "runner")
        }
        self._passwords[f"runner-{NODE}"] = self._passwords["runner"]

    def url(self, role: str) -> str:
        """For a process with the rights of `role`."""
        return f"unix://hawse-{role}:{self._passwords[role]}@{self.socket}"

    def client(self, user: str) -> redis.Redis:
        password = self._passwords.get(user.removeprefix("hawse-"), "none")
        return redis.Redis(unix_socket_path=str(self.socket), username=user, password=password, decode_responses=True)

    def refused(self) -> list[str]:
        """What was asked for without the right to it: user, command or key, in which context."""
        entries: Any = self.client("admin").acl_log()
        return [f"{entry['username']}: {entry['object']} ({entry['reason']}, {entry['context']})" for entry in entries]

    def _command(self) -> list[str]:
        return [*super()._command(), "--aclfile", str(self._users)]

    def _answers(self) -> bool:
        try:
            return bool(self.client("probe").ping())
        except redis.RedisError:
            return False


@pytest.fixture(scope="module")
def guarded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedBroker]:
    directory = tmp_path_factory.mktemp("acl")
    with GuardedBroker(directory) as broker:
        yield broker


@pytest.fixture(scope="module")
def installed_kube(
    tmp_path_factory: pytest.TempPathFactory, guarded_broker: GuardedBroker, start: Callable[[], Installed]
) -> Iterator[tuple[Installed, Kube]]:
    """All of the control plane on a real API server, each process as its own user there and in Redis."""
    installed = start()
    installed.applied("-k", str(DEPLOY / "overlays" / "runner"))
    until_established(installed)
    directory = tmp_path_factory.mktemp("processes")
    cluster = installed.cluster
    kube = Kube(cluster.url, cluster.ca_path, cluster.token)
    settings = {
        "HAWSE_SWEEP_INTERVAL": "0.5",
        "HAWSE_RECONCILE_INTERVAL": "1",
        "HAWSE_REPORT_WAIT": "0.5",
        "HAWSE_RESERVATION_LIFETIME": "1",
    }
    control = ControlPlane(
        directory / "control",
        redis_url=guarded_broker.url("workers"),
        kubeconfigs=installed.accounts.kubeconfigs(cluster.kubeconfig, directory),
        environment=settings,
    )
    try:
        control.start("worker", "beat", "watch")
        control.environment["HAWSE_REDIS_URL"] = guarded_broker.url("webhook")
        control.start("webhook")
        for kind in ("mutatingwebhookconfiguration", "validatingwebhookconfiguration"):
            assert installed.kubectl("delete", kind, "hawse").returncode == 0  # for one that finds the webhook here
        control.register_webhooks(kube)
        spec = {"cidrs": ["192.168.1.96/27"], "namespaceSelector": {}, "quarantine": "1s"}
        pool = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressPool", "metadata": {"name": "prod"}}
        kube.create(pool | {"spec": spec})
        ledger = Ledger(guarded_broker.url("workers"))
        until(lambda: ledger.is_ready() and ledger.offer().pools)
        ledger.close()
        yield installed, kube
        assert control.dead() == {}
    finally:
        control.stop()


@pytest.fixture
def kube(installed_kube: tuple[Installed, Kube]) -> Kube:
    """An admin's."""
    return installed_kube[1]


@pytest.fixture
def runner(guarded_broker: GuardedBroker, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A node runner in a network of its own, where there is nothing to program: it says so, and does all the rest."""
    if os.geteuid() or shutil.which("unshare") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs root and unshare")
    environment = {
        "PATH": os.environ["PATH"],
        "HAWSE_REDIS_URL": guarded_broker.url(f"runner-{NODE}"),  # what it may do, the user of all runners may
        "HAWSE_NODE_NAME": NODE,
        "HAWSE_NODE_IP": "192.168.1.17",
        "HAWSE_HEALTH_PORT": "0",
        "HAWSE_CHECK_INTERVAL": "0.2",
        "HAWSE_LOG_LEVEL": "debug",
    }
    command = ["unshare", "--net", str(Path(sys.executable).with_name("hawse-node-runner"))]
    with (tmp_path / "runner.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
    yield process
    process.kill()
    process.wait()


def test_all_processes_do_their_work_with_the_rights_of_their_users(
    kube: Kube, guarded_broker: GuardedBroker, runner: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    ledger = Ledger(guarded_broker.url("workers"))
    host = {"host": NODE, "hostIP": "192.168.1.17", "subnet": "10.128.0.0/23"}
    kube.create(NETWORK | {"kind": "HostSubnet", "metadata": {"name": NODE}, **host})
    made = kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    assert made["metadata"]["annotations"]["egress.hawse.dev/addresses"] == "192.168.1.97"
    rows = until(lambda: ledger.read_table().rows)
    change = ledger.read_table().change
    assert [row.namespace for row in rows.values()] == ["shop"]

    report = until(lambda: ledger.reports([NODE]).get(NODE))
    assert report.problem.startswith(("InterfaceMissing", "BridgeMissing")), report.problem
    log = tmp_path / "runner.log"
    until(lambda: b'"nudged"' in log.read_bytes() or None)
    admin = guarded_broker.client("admin")
    until(lambda: not admin.exists(f"hawse-broker:node.{NODE}", f"hawse-broker:node.{NODE}.unacked"))

    api = Ledger(guarded_broker.url("api"))
    api.ask_inspection([NODE], "shop")
    inspection = until(lambda: api.inspections([NODE], "shop").get(NODE))
    assert inspection.problem.startswith(("InterfaceMissing", "BridgeMissing")), inspection
    api.close()

    kube.delete("Namespace", "shop")
    until(lambda: ledger.read_table().change > change)
    until(lambda: not kube.list("EgressAddress"))
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(20) == 0
    assert [entry for entry in guarded_broker.refused() if not entry.startswith("probe:")] == []
    ledger.close()


def test_draining_takes_back_what_was_given_and_leaves_what_was_set_by_hand(
    installed_kube: tuple[Installed, Kube], guarded_broker: GuardedBroker
) -> None:
    """deploy/drain.sh, as docs/uninstall.md has it; that a NetID without a row is left alone is the nodes' tests'."""
    installed, kube = installed_kube
    by_hand = "192.168.1.200"
    host = {"host": "node2", "hostIP": "192.168.1.18", "subnet": "10.128.2.0/23"}
    net = {"netname": "by-hand", "netid": NETID, "egressIPs": [by_hand]}
    kube.create(NETWORK | {"kind": "HostSubnet", "metadata": {"name": "node2"}, **host})
    kube.create(NETWORK | {"kind": "NetNamespace", "metadata": {"name": "by-hand"}, **net})
    opted_out = {"name": "by-hand", "annotations": {"egress.hawse.dev/pool": "none"}}
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": opted_out})
    until(lambda: [item["spec"]["origin"] for item in kube.list("EgressAddress")] == ["manual"])
    given = [
        kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})["metadata"]["annotations"]
        for name in ("one", "two")
    ]
    addresses = [annotations["egress.hawse.dev/addresses"] for annotations in given]
    pool = {"cidrs": ["fd00:192:168:1::a1/128"], "namespaceSelector": {"matchLabels": {"team": "six"}}}
    head = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressPool", "metadata": {"name": "six"}}
    kube.create(head | {"spec": pool})
    six = {"name": "six", "labels": {"team": "six"}, "annotations": {"egress.hawse.dev/pool": "six"}}
    until(lambda: _has_address(kube, six))
    ledger = Ledger(guarded_broker.url("workers"))
    until(lambda: {row.namespace for row in ledger.read_table().rows.values()} == {"by-hand", "one", "two", "six"})
    bound = {"by-hand": [by_hand], "one": [addresses[0]], "two": [addresses[1]], "six": ["fd00:192:168:1::a1"]}
    # Without a runner nobody says that it drops a new NetID: that is waited for, and not for ever.
    until(lambda: {item["metadata"]["name"]: item["egressIPs"] for item in kube.list("NetNamespace")} == bound, 60)
    # Only now: before there is a claim, an address on a HostSubnet counts as set by hand.
    kube.patch("HostSubnet", "node2", {"egressIPs": [addresses[0], by_hand]})

    folder = Path(kubectl() or "").parent
    home = str(installed.directory)  # kubectl keeps a cache there
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "KUBECONFIG": str(installed.cluster.kubeconfig),
        "HOME": home,
    }
    done = subprocess.run(["sh", DEPLOY / "drain.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    until(lambda: {row.namespace for row in ledger.read_table().rows.values()} == {"by-hand"})
    assert [item["metadata"]["name"] for item in kube.list("EgressAddress")] == [by_hand]
    assert kube.list("EgressPool") == [], "afterwards nobody would take their finalizer away"
    assert {item["metadata"]["name"]: item["egressIPs"] for item in kube.list("NetNamespace")} == {
        "by-hand": [by_hand],
        "one": [],
        "two": [],
        "six": [],
    }
    subnets = {item["metadata"]["name"]: item.get("egressIPs") for item in kube.list("HostSubnet")}
    assert subnets["node2"] == [by_hand], done.stdout
    for name in ("one", "two", "six"):
        namespace = kube.get("Namespace", name)
        assert namespace is not None
        assert "egress.hawse.dev/addresses" not in namespace["metadata"].get("annotations", {})
    # And so it stays: nothing gives the addresses out again, in a few reconciles.
    published = ledger.read_table().change
    time.sleep(3)
    assert (ledger.read_table().change, len(kube.list("EgressAddress"))) == (published, 1)
    ledger.close()


def _has_address(kube: Kube, metadata: dict[str, Any]) -> bool:
    """Whether a new namespace comes back with an address: not before the reconcile has told the webhook of its pool."""
    try:
        made = kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    except KubeError:
        return False
    return "egress.hawse.dev/addresses" in made["metadata"]["annotations"]


def test_the_watch_makes_the_certificate_with_the_rights_that_it_has(
    installed: Installed, broker: Broker, tmp_path: Path
) -> None:
    """As after `kubectl apply -k`: the webhook's Secret and both webhook configurations, by the watch's own account."""
    kubeconfigs = installed.accounts.kubeconfigs(installed.cluster.kubeconfig, tmp_path)
    own = {"HAWSE_CERTIFICATES": "own"}
    control = ControlPlane(tmp_path, redis_url=broker.unix_url, kubeconfigs=kubeconfigs, environment=own)
    admin = installed.as_("admin")
    registration = "/apis/admissionregistration.k8s.io/v1"

    def certificate() -> str:
        secret = admin.get("/api/v1/namespaces/hawse-system/secrets/hawse-webhook-tls").body
        return str(secret.get("data", {}).get("tls.crt", ""))

    def has_authority(kind: str) -> bool:
        webhooks = admin.get(f"{registration}/{kind}webhookconfigurations/hawse").body["webhooks"]
        return all(webhook["clientConfig"].get("caBundle") for webhook in webhooks)

    try:
        control.start("watch")
        until(lambda: certificate() and has_authority("mutating") and has_authority("validating"))
        assert control.dead() == {}
        # What is applied again, as an upgrade does, takes none of it away.
        made = certificate()
        installed.applied("-k", str(DEPLOY / "overlays" / "runner"))
        assert certificate() == made
        assert has_authority("mutating")
        assert has_authority("validating")
    finally:
        control.stop()


@pytest.mark.parametrize(
    ("user", "command"),
    [
        # What would steer traffic.
        ("hawse-runner", "HSET hawse:table 1 x"),
        ("hawse-runner", "SET hawse:epoch x"),
        ("hawse-runner", "SET hawse:change 9"),
        ("hawse-runner", "ZADD hawse:changes 9 1"),
        ("hawse-runner", "SET hawse:run x"),
        # What others have.
        ("hawse-runner", "GET hawse:offer"),
        ("hawse-runner", "HGETALL hawse:addresses"),
        ("hawse-runner", "GET hawse:node:node2"),
        ("hawse-runner", "LPUSH hawse:history:shop x"),
        ("hawse-runner", "DEL hawse:pending:hawse.v1.reconcile"),
        ("hawse-runner", "SET hawse:lock:publish x"),
        ("hawse-runner", "RPOP hawse-broker:control"),
        ("hawse-runner", "HGET hawse-broker:unacked x"),
        ("hawse-runner", "PUBLISH hawse-broker:/0.celery.pidbox x"),
        # What other nodes' runners have, for a user that is bound to its node.
        (f"hawse-runner-{NODE}", "SET hawse:node:node2 x"),
        (f"hawse-runner-{NODE}", f"SET hawse:node:{NODE}0 x"),
        (f"hawse-runner-{NODE}", "RPOP hawse-broker:node.node2"),
        (f"hawse-runner-{NODE}", f"RPOP hawse-broker:node.{NODE}0"),
        (f"hawse-runner-{NODE}", f"LPUSH hawse-broker:node.{NODE}-b x"),
        (f"hawse-runner-{NODE}", "HGETALL hawse-broker:node.node2.unacked"),
        (f"hawse-runner-{NODE}", "HSET hawse:table 1 x"),
        # What the server is ruled by, and what tells of others.
        *((user, command) for user in ("hawse-runner", "hawse-webhook", "hawse-api") for command in ADMINISTRATION),
        ("hawse-workers", "FLUSHALL"),
        ("hawse-workers", "CONFIG SET save x"),
        ("hawse-workers", "ACL SETUSER x on"),
        ("hawse-workers", "GET other"),
        ("hawse-webhook", "HSET hawse:table 1 x"),
        ("hawse-webhook", "SET hawse:offer x"),
        ("hawse-webhook", "HSET hawse:listed c0a80166 node1|"),
        ("hawse-webhook", "SET hawse:node:node1 x"),
        ("hawse-webhook", "DEL hawse:addresses"),
        ("hawse-webhook", "RPOP hawse-broker:control"),
        ("hawse-webhook", "LPUSH hawse-broker:node.node1 x"),
        ("hawse-api", "HSET hawse:table 1 x"),
        ("hawse-api", "SET hawse:offer x"),
        ("hawse-api", "SET hawse:note:other x"),
        ("hawse-api", "RPOP hawse-broker:table"),
        ("hawse-api", "RPOP hawse-broker:node.node1"),
        ("hawse-api", "SET hawse:inspection:node1: x"),
        (f"hawse-runner-{NODE}", "SET hawse:inspection:node2: x"),
        ("hawse-api", "RPOP hawse-broker:control"),
        ("hawse-api", "SET hawse:lost x"),
        ("hawse-api", "GET hawse:offer"),
        ("probe", "GET hawse:table"),
        ("probe", "INFO"),
    ],
)
def test_a_user_may_do_no_more(guarded_broker: GuardedBroker, user: str, command: str) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        guarded_broker.client(user).execute_command(*command.split())


def test_a_script_may_do_no_more_than_its_user(guarded_broker: GuardedBroker) -> None:
    """The runner may load scripts and call them: with another one it gets no further."""
    client = guarded_broker.client("hawse-runner")
    sha = client.script_load("return redis.call('HSET', 'hawse:table', '1', 'x')")
    with pytest.raises(redis.exceptions.ResponseError, match=NO_PERMISSION):
        client.evalsha(sha, 0)
    assert not guarded_broker.client("admin").hexists("hawse:table", "1")


def test_the_api_does_its_work_as_its_user(guarded_broker: GuardedBroker) -> None:
    url = guarded_broker.url("api")
    guarded_broker.client("admin").acl_log_reset()
    ledger = Ledger(url)
    assert ledger.first_seen("prod.txt", "a", 0.0) == ledger.first_seen("prod.txt", "a", 0.0)
    ledger.remember("callback:desk:id", "digest", 60.0)
    assert ledger.recall("callback:desk:id") == "digest"
    run = RetryRun(1.0, "ana", Trouble.FAILED, "NetlinkFailed", ("shop", "bank"))
    assert ledger.run(ledger.keep_run(run)) == run
    ledger.record(StepRecord("decided", Step.DECISION, Outcome.DONE, 0.0, by="ana"))
    guarded_broker.client("admin").delete(f"hawse:pending:{PUBLISH_TASK}")
    with structlog.testing.capture_logs() as logged:
        publisher(Settings(redis_url=url), ledger)()
    assert logged == []
    ledger.done_with(PUBLISH_TASK)
    ledger.close()
    assert [entry for entry in guarded_broker.refused() if entry.startswith("hawse-api:")] == []


def test_a_runners_ledger_cannot_publish(guarded_broker: GuardedBroker) -> None:
    ledger = Ledger(guarded_broker.url("runner"))
    with pytest.raises(TransientError, match=NO_PERMISSION):
        ledger.publish({NETID: Steering(NETID, "shop", ())}, expected=ledger.change_number(), epoch="mine")
    ledger.close()


def test_without_a_password_nobody_gets_in(guarded_broker: GuardedBroker) -> None:
    for user in ("default", "hawse-runner", "hawse-webhook", "hawse-api", "hawse-workers"):
        client = redis.Redis(unix_socket_path=str(guarded_broker.socket), username=user, password="guess")
        with pytest.raises(redis.exceptions.AuthenticationError):
            client.ping()
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(unix_socket_path=str(guarded_broker.socket)).ping()
