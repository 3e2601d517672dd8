"""The users of deploy/components/redis-acl on a real Valkey: each process does its work, and no user can do more."""

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
import yaml

from egress.adapters.ledger import Ledger
from egress.operations import TransientError
from egress.table import Steering
from lab.accounts import Accounts
from lab.apiserver.process import EmbeddedCluster
from lab.control_plane import ControlPlane, install
from lab.kube import Kube
from lab.net.broker import Broker

SECRETS = Path(__file__).parents[3] / "deploy" / "components" / "redis-acl" / "redis-secrets.sh"
NODE = "node1"
NETID = 4711
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


class GuardedBroker(Broker):
    """A broker with the users that `redis-secrets.sh` makes, and an admin for the test."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, port=0)
        made = subprocess.run(["sh", SECRETS], capture_output=True, text=True, check=True).stdout
        secrets = {item["metadata"]["name"]: item["stringData"] for item in yaml.safe_load_all(made) if item}
        self._users = directory / "users.acl"
        self._users.write_text(secrets["hawse-redis-acl"]["users.acl"] + "user admin on nopass ~* &* +@all\n")
        self._users.chmod(0o600)
        self._passwords = {
            role: secrets[f"hawse-redis-{role}"]["url"].split("@")[0].rpartition(":")[2]
            for role in ("workers", "webhook", "runner")
        }

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
def kube(tmp_path_factory: pytest.TempPathFactory, guarded_broker: GuardedBroker) -> Iterator[Kube]:
    """All of the control plane, each process as its own user."""
    directory = tmp_path_factory.mktemp("processes")
    cluster = EmbeddedCluster(directory / "cluster")
    accounts = Accounts(directory / "cluster")
    with cluster:
        kube = Kube(cluster.url, cluster.ca_path, cluster.token)
        install(kube)
        settings = {
            "HAWSE_SWEEP_INTERVAL": "0.5",
            "HAWSE_RECONCILE_INTERVAL": "1",
            "HAWSE_REPORT_WAIT": "0.5",
            "HAWSE_RESERVATION_LIFETIME": "1",
        }
        control = ControlPlane(
            directory / "control",
            redis_url=guarded_broker.url("workers"),
            kubeconfigs=accounts.kubeconfigs(cluster.kubeconfig, directory),
            environment=settings,
        )
        try:
            control.start("worker", "beat", "watch")
            control.environment["HAWSE_REDIS_URL"] = guarded_broker.url("webhook")
            control.start("webhook")
            control.register_webhooks(kube)
            yield kube
            assert control.dead() == []
        finally:
            control.stop()


def until(check: Callable[[], Any], seconds: float = 20) -> Any:  # noqa: ANN401 - whatever `check` gives
    deadline = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(0.05)
    return value


@pytest.fixture
def runner(guarded_broker: GuardedBroker, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A node runner in a network of its own, where there is nothing to program: it says so, and does all the rest."""
    if os.geteuid() or shutil.which("unshare") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs root and unshare")
    environment = {
        "PATH": os.environ["PATH"],
        "HAWSE_REDIS_URL": guarded_broker.url("runner"),
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
    kube.create(
        {
            "apiVersion": "network.openshift.io/v1",
            "kind": "HostSubnet",
            "metadata": {"name": NODE},
            "host": NODE,
            "hostIP": "192.168.1.17",
            "subnet": "10.128.0.0/23",
        }
    )
    pool = {"cidrs": ["192.168.1.96/27"], "namespaceSelector": {}, "quarantine": "1s"}
    kube.create(
        {
            "apiVersion": "egress.hawse.dev/v1alpha1",
            "kind": "EgressPool",
            "metadata": {"name": "prod"},
            "spec": pool,
        }
    )
    until(lambda: ledger.is_ready() and ledger.offer().pools)
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

    kube.delete("Namespace", "shop")
    until(lambda: ledger.read_table().change > change)
    until(lambda: not kube.list("EgressAddress"))
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(20) == 0
    assert [entry for entry in guarded_broker.refused() if not entry.startswith("probe:")] == []
    ledger.close()


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
        # What the server is ruled by, and what tells of others.
        *((user, command) for user in ("hawse-runner", "hawse-webhook") for command in ADMINISTRATION),
        ("hawse-workers", "FLUSHALL"),
        ("hawse-workers", "CONFIG SET save x"),
        ("hawse-workers", "ACL SETUSER x on"),
        ("hawse-workers", "GET other"),
        ("hawse-webhook", "HSET hawse:table 1 x"),
        ("hawse-webhook", "SET hawse:offer x"),
        ("hawse-webhook", "SET hawse:node:node1 x"),
        ("hawse-webhook", "DEL hawse:addresses"),
        ("hawse-webhook", "RPOP hawse-broker:control"),
        ("hawse-webhook", "LPUSH hawse-broker:node.node1 x"),
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


def test_a_runners_ledger_cannot_publish(guarded_broker: GuardedBroker) -> None:
    ledger = Ledger(guarded_broker.url("runner"))
    with pytest.raises(TransientError, match=NO_PERMISSION):
        ledger.publish({NETID: Steering(NETID, "shop", ())}, expected=ledger.change_number(), epoch="mine")
    ledger.close()


def test_without_a_password_nobody_gets_in(guarded_broker: GuardedBroker) -> None:
    for user in ("default", "hawse-runner", "hawse-webhook", "hawse-workers"):
        client = redis.Redis(unix_socket_path=str(guarded_broker.socket), username=user, password="guess")
        with pytest.raises(redis.exceptions.AuthenticationError):
            client.ping()
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(unix_socket_path=str(guarded_broker.socket)).ping()
