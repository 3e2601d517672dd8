"""The lab: start it, run things in it, break it, look at what went over the wire."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.net import node as building
from lab.net import preflight
from lab.net.capture import Capture
from lab.net.channel import CommandFailed, Completed, LabError, Place, RemoteProcess
from lab.net.kernel import HOST_ADDRESS, Kernel, boot
from lab.net.topology import (
    CLUSTER_NETWORK,
    CLUSTER_NETWORK_6,
    DEFAULT_NODES,
    GATEWAY,
    GATEWAY_6,
    OUTSIDE_NETWORK,
    OUTSIDE_NETWORK_6,
    UPLINK,
    WEB,
    WEB_6,
    Address,
    NodeSpec,
    Pod,
    checked_name,
)
from lab.net.traffic import AccessLogEntry, Datagram, Response, Traffic, WebLog

BROKER_ADDRESS = HOST_ADDRESS
"""Where the lab's nodes reach what listens in the lab's network namespace on the host."""

_PATH = "/run/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_WEB_LOG = "/run/lab/web.log"
_SWITCH_MAY_START = 10.2
"""Seconds of uptime. Started earlier, ovs-vswitchd believes that there is no CPU and loses every packet."""


class NetworkLab:
    """Nodes, pods and a web server inside one kernel. Everything on the host is in `workdir` or dies with this process.

    Inside, the host's files are there to read under their own names, and `workdir` alone to write. Calls may come from
    several threads. After `start`, wall clocks inside and outside agree. The lab is dual-stack when its `nodes` are.
    """

    def __init__(self, workdir: Path, nodes: tuple[NodeSpec, ...] = DEFAULT_NODES, *, memory_mb: int = 1024) -> None:
        self.workdir = workdir.resolve()
        self.nodes = {checked_name(node.name): node for node in nodes}
        self.pods: dict[str, Pod] = {}
        self.web = WEB
        self.web6 = WEB_6
        self._memory_mb = memory_mb
        self._kernel: Kernel | None = None
        self._pods_lock = threading.Lock()
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- life

    def start(self) -> None:
        """Boot, build the outside and the nodes. Raises LabError, naming what the machine lacks."""
        if problems := preflight.check(self.workdir):
            raise LabError("; ".join(problems))
        self.workdir.mkdir(parents=True, exist_ok=True)
        for stale in (*self.workdir.glob("*.log"), *self.workdir.glob("*.pcap")):
            stale.unlink()
        self._kernel = boot(self.workdir, self._memory_mb)
        try:
            self._build()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the kernel: no process, namespace or interface remains. Harmless when already stopped."""
        if self._kernel is not None:
            self._kernel.stop()
            self._kernel = None
            self.pods.clear()

    @property
    def holder(self) -> int:
        """A process on the host in the lab's network namespace, where BROKER_ADDRESS is; for ``Broker(netns=...)``."""
        return self._running().holder

    @property
    def dual_stack(self) -> bool:
        return any(node.ipv6 is not None for node in self.nodes.values())

    @property
    def cluster_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks of the pods, IPv4 first."""
        return (CLUSTER_NETWORK, CLUSTER_NETWORK_6) if self.dual_stack else (CLUSTER_NETWORK,)

    def _build(self) -> None:
        kernel = self._running()
        outside = [
            "link add outside type bridge mcast_snooping 0",
            "link set outside up",
            "link add eth0 netns web type veth peer name v-web",
            "link set v-web master outside up",
        ]
        self._do("root", ["sh", "-ec", "ip netns add web; ip -batch -"], "\n".join(outside))
        web = [
            "link set lo up",
            f"address add {WEB}/{OUTSIDE_NETWORK.prefixlen} brd + dev eth0",
            f"address add {GATEWAY}/{OUTSIDE_NETWORK.prefixlen} dev eth0",
            "link set eth0 up",
        ]
        serving: list[Address] = [WEB]
        if self.dual_stack:
            web += [
                f"address add {WEB_6}/{OUTSIDE_NETWORK_6.prefixlen} dev eth0 nodad",
                # Deprecated: it is to forward, not to ask with.
                f"address add {GATEWAY_6}/{OUTSIDE_NETWORK_6.prefixlen} dev eth0 nodad preferred_lft 0",
            ]
            serving.append(WEB_6)
        self._do("web", ["ip", "-batch", "-"], "\n".join(web))
        server = self.spawn("web", _python("web.py", _WEB_LOG, *map(str, serving)), log="web")
        self._web_log = WebLog(kernel.channel, _WEB_LOG)
        for node in self.nodes.values():
            building.prepare(self._do, node)
        time.sleep(max(0.0, _SWITCH_MAY_START - kernel.channel.clock()["uptime"]))
        for node in self.nodes.values():
            building.start_switch(self._do, node, self._others(node), [])
        _wait_for_line(server, "ready")

    # -- commands

    def run(
        self,
        where: str,
        argv: Sequence[str | Path],
        *,
        timeout: float = 30,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = False,
    ) -> Completed:
        """Run a command in "root", "web", a node or a pod. About 60 ms.

        On a node, plain `ovs-vsctl`, `ovs-ofctl` and `iptables` mean the node's own. Raises TimeoutError, and with
        `check` CommandFailed, which carries what the command printed.
        """
        words = [str(word) for word in argv]
        data = None if input is None else input.encode()
        done = self._running().channel.run(
            self._place(where), words, env=self._environment(where, env), timeout=timeout, data=data
        )
        if check and done.returncode:
            raise CommandFailed(
                f"{' '.join(words)[:200]} in {where}: status {done.returncode}: {(done.stderr or done.stdout).strip()}"
            )
        return done

    def spawn(
        self, where: str, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, log: str | None = None
    ) -> RemoteProcess:
        """Start a command and leave it running; what it prints is in workdir/`log`.log as it prints it."""
        name = log or f"process-{next(self._numbers)}"
        return self._running().channel.spawn(
            self._place(where),
            [str(word) for word in argv],
            env=self._environment(where, env),
            log=self.workdir / f"{name}.log",
        )

    # -- pods and their traffic

    def add_pod(self, name: str, node: str, netid: int, ip: str | IPv4Address | None = None) -> Pod:
        """A pod of the namespace with `netid`, on `node`; the next free address unless one is given.

        On a dual-stack node it has an IPv6 address too, with the same number in the node's subnet.
        """
        spec = self._node(node)
        with self._pods_lock:
            if checked_name(name) in self.pods or name in self.nodes:
                raise ValueError(f"the lab has a {name!r} already")
            address = self._free_address(spec) if ip is None else IPv4Address(ip)
            number = int(address) - int(spec.subnet.network_address)
            ip6 = None if spec.ipv6 is None else spec.ipv6.subnet[number]
            pod = building.add_pod(self._do, spec, Pod(name, node, netid, address, 0, ip6))
            self.pods[name] = pod
        return pod

    def remove_pod(self, name: str) -> None:
        with self._pods_lock:
            pod = self.pods.pop(name)
            self._running().channel.kill_namespaces([name])
            building.remove_pod(self._do, self._node(pod.node), pod)

    def request(self, pod: str | Pod, path: str = "/", *, timeout: float = 2, ipv6: bool = False) -> Response:
        """One HTTP request from a pod to the web server: what it answered, or why not."""
        server = f"[{WEB_6}]" if ipv6 else str(WEB)
        return Response.of(
            self.run(
                _name(pod),
                ["curl", "-gsS", "-w", "\n%{http_code}", "--max-time", f"{timeout:g}", f"http://{server}{path}"],
                timeout=timeout + 10,
            )
        )

    def access_log(self) -> list[AccessLogEntry]:
        """Every request the web server has had, oldest first. Complete: it writes before it answers."""
        return self._web_log.requests()

    def datagrams(self) -> list[Datagram]:
        """Every datagram the web server has had."""
        return self._web_log.datagrams()

    def traffic(
        self,
        pod: str | Pod,
        *,
        interval: float = 0.05,
        timeout: float = 1.0,
        protocol: str = "http",
        ipv6: bool = False,
    ) -> Traffic:
        """A new connection to the web server every `interval` seconds, or with "udp" a numbered datagram."""
        argv = _python("stream.py", protocol, str(WEB_6 if ipv6 else WEB), str(interval), str(timeout))
        process = self.spawn(_name(pod), argv, log=f"traffic-{_name(pod)}-{next(self._numbers)}")
        _wait_for_line(process, "ready")
        return Traffic(process)

    def capture(self, where: str = "outside", filter: str = "", *, interface: str | None = None) -> Capture:
        """Record what passes: on the outside link ("outside"), or on an interface of a namespace (default eth0)."""
        if where == "outside":
            where, interface = "root", "outside"
        name = f"capture-{next(self._numbers)}"
        inside = f"/run/lab/{name}.pcap"
        options = f"-i {interface or UPLINK} -Z root -n -U --immediate-mode -w {inside}"
        process = self.spawn(where, ["tcpdump", *options.split(), filter], log=name)
        _wait_for_line(process, "listening on")
        return Capture(process, self._running().channel, inside, self.workdir / f"{name}.pcap")

    # -- trouble

    def restart_ovs(self, node: str, *, reinstall: bool = True) -> None:
        """Restart Open vSwitch as `systemctl` would; then the SDN puts its own flows back, unless told otherwise."""
        spec = self._node(node)
        building.restart_switch(self._do, spec)
        if reinstall:
            self.reinstall_flows(node)

    def reinstall_flows(self, node: str) -> None:
        """What the SDN's node process does when it finds its flows gone."""
        spec = self._node(node)
        building.install_flows(self._do, spec, self._others(spec), self._pods_of(node))

    @contextmanager
    def hold_cache(self, node: str) -> Iterator[None]:
        """Meanwhile the node's kernel goes on with what it has cached of flows that Open vSwitch has changed since."""
        process = self.spawn(node, _python("hold_cache.py"), log=f"hold-cache-{next(self._numbers)}")
        try:
            _wait_for_line(process, "ready")
            yield
        finally:
            process.kill()
            process.wait(60)

    def isolate(self, node: str) -> None:
        """Pull the node's cable to the outside; its processes and the management network go on."""
        building.set_uplink(self._do, self._node(node), "down")

    def restore(self, node: str) -> None:
        building.set_uplink(self._do, self._node(node), "up")

    def power_off(self, node: str) -> None:
        """Cut both cables, then kill every process of the node and its pods: nobody gets a goodbye."""
        spec = self._node(node)
        building.unplug(self._do, spec)
        self._running().channel.kill_namespaces([node, *(pod.name for pod in self._pods_of(node))])

    def power_on(self, node: str) -> None:
        """The node boots, having lost its power if it had not: no address, flow, rule or process of before.

        Its MAC is the same, and so are its pods.
        """
        self.power_off(node)
        spec = self._node(node)
        pods = self._pods_of(node)
        building.destroy(self._do, spec, pods)
        building.prepare(self._do, spec)
        building.start_switch(self._do, spec, self._others(spec), [])
        with self._pods_lock:
            for pod in pods:
                self.pods[pod.name] = building.add_pod(self._do, spec, pod)

    # -- inner

    def _running(self) -> Kernel:
        if self._kernel is None:
            raise LabError("the lab is not running: call start()")
        return self._kernel

    def _node(self, name: str) -> NodeSpec:
        if name not in self.nodes:
            raise ValueError(f"the lab has no node {name!r}, only {', '.join(self.nodes)}")
        return self.nodes[name]

    def _others(self, node: NodeSpec) -> list[NodeSpec]:
        return [other for other in self.nodes.values() if other != node]

    def _pods_of(self, node: str) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.node == node]

    def _free_address(self, node: NodeSpec) -> IPv4Address:
        taken = {pod.ip for pod in self.pods.values()} | {node.gateway}
        return next(address for address in node.subnet.hosts() if address not in taken)

    def _place(self, where: str) -> Place:
        node = self.nodes.get(where)
        return Place(where, node.host if node else where)

    def _environment(self, where: str, env: Mapping[str, str] | None) -> dict[str, str]:
        node = self.nodes.get(where)
        basic = {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
        return basic | (building.environment(node) if node else {}) | dict(env or {})

    def _do(self, where: str, argv: list[str], data: str | None) -> str:
        return self.run(where, argv, input=data, check=True).stdout


def _name(pod: str | Pod) -> str:
    return pod if isinstance(pod, str) else pod.name


def _python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", str(Path(__file__).parent / "inside" / script), *arguments]


def _wait_for_line(process: RemoteProcess, text: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not process.log.exists() or text not in process.log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            said = process.log.read_text(errors="replace").strip() if process.log.exists() else ""
            raise LabError(f"{process.log.stem} did not get ready: {said or 'it said nothing'}")
        time.sleep(0.01)
