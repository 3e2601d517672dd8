"""`make demo`: the main job, end to end, seen on the wire."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import FrameType

from egress.operations import TransientError
from lab.cluster import ClusterError
from lab.control_plane import ControlPlaneError
from lab.kube import Json, KubeError
from lab.net import preflight
from lab.net.channel import LabError
from lab.net.guarded import GuardError
from lab.net.topology import Address
from lab.net.traffic import AccessLogEntry, Attempt
from lab.stack import Stack, wait_for
from lab.tickets.receiver import Desk

EGRESS_NETID = 0x1094C2
MANUAL_NETID = 0x2A11CE
OTHER_NETID = 0x00B0B0
NODE1, NODE2 = IPv4Address("192.168.1.17"), IPv4Address("192.168.1.18")
POOL = "192.168.1.102-192.168.1.110"
ASSIGNED = IPv4Address("192.168.1.102")
MANUAL = IPv4Address("192.168.1.120")
PAIR_NETID = 0x0D0A1E
PAIRS = ("192.168.1.116-192.168.1.119", "fd00:192:168:1::116-fd00:192:168:1::119")
PAIR = (IPv4Address("192.168.1.116"), IPv6Address("fd00:192:168:1::116"))
PATIENCE = 40.0
"""Seconds: two emulated nodes share one emulated processor, on a machine that may be busy."""


CONSOLE: Json = {"name": "console", "type": "console"}
PAYMENTS = "192.168.1.111-192.168.1.115"
PAYMENTS_NETID = 0x0A11E7


class DemoFailed(Exception):
    """A step was not seen to happen."""


FAILURES = (
    DemoFailed, LabError, GuardError, KubeError, ClusterError, ControlPlaneError, TransientError, TimeoutError, OSError,
)  # fmt: skip
"""What ends the demo with a message and not with a traceback."""


class Demo:
    """The steps, each of which raises DemoFailed unless it was seen on the wire."""

    def __init__(self, stack: Stack, say: Callable[[str], None]) -> None:
        self._stack = stack
        self._say = say

    def run(self) -> None:
        """All steps in their order."""
        self._prepare()
        self._before()
        self._assign()
        self._steered()
        self._by_hand()
        self._pair()
        self._release()

    def _prepare(self) -> None:
        stack = self._stack
        selector = {"matchLabels": {"environment": "production"}}
        stack.create_pool("production", POOL, namespaceSelector=selector, ticketProfile="console")
        selector = {"matchLabels": {"environment": "both"}}
        stack.create_pool("pairs", *PAIRS, namespaceSelector=selector, ipFamilyPolicy="RequireDualStack")
        # What OpenShift SDN does: a NetNamespace for each project, and its pods on the nodes' bridges.
        netids = {"egress-test": EGRESS_NETID, "by-hand": MANUAL_NETID, "both": PAIR_NETID, "bystander": OTHER_NETID}
        for name, netid in netids.items():
            stack.kube.create(_net_namespace(name, netid))
        stack.network.add_pod("pod", "node1", EGRESS_NETID)
        stack.network.add_pod("hand", "node1", MANUAL_NETID)
        stack.network.add_pod("both", "node1", PAIR_NETID)
        stack.network.add_pod("bystander", "node1", OTHER_NETID)
        stack.create_namespace("bystander")
        stack.create_namespace("by-hand")
        self._bystander = stack.network.traffic("bystander", interval=0.5, timeout=5)

    def _before(self) -> None:
        self._title("1. Before: the pod's request carries its node's IP")
        self._show(self._request("pod", NODE1))

    def _assign(self) -> None:
        self._title("2. A namespace is created, and comes back with its address")
        before = time.monotonic()
        namespace = self._stack.create_namespace("egress-test", environment="production")
        taken = time.monotonic() - before
        addresses = namespace["metadata"].get("annotations", {}).get("egress.hawse.dev/addresses")
        if addresses != str(ASSIGNED):
            raise DemoFailed(
                f"the namespace came back with {addresses!r} and not with {ASSIGNED}: "
                f"the webhook says why in {self._stack.control.log('webhook')}"
            )
        self._print(
            "$ kubectl create -f - <<< '{kind: Namespace, metadata: {name: egress-test, "
            "labels: {environment: production}}}'",
            f"  annotations: {{egress.hawse.dev/addresses: {addresses}}}    ({taken * 1000:.0f} ms, over TLS)",
        )

    def _steered(self) -> None:
        self._title("3. Seconds later: the same pod's requests carry the namespace's address")
        before = time.monotonic()
        entry = self._request("pod", ASSIGNED)
        self._say(f"steered {time.monotonic() - before:.1f} s after the namespace was created")
        self._show(entry)
        for _ in range(3):
            self._request("pod", ASSIGNED, patience=0, timeout=10)
        self._show_all("egress-test", ASSIGNED, EGRESS_NETID)
        self._explained("egress-test")
        self._told("assigned")

    def _by_hand(self) -> None:
        self._title("4. By hand: two merge patches, for a namespace that no pool serves")
        stack = self._stack
        self._show(self._request("hand", NODE1))
        host = stack.network.nodes["node2"].host
        current = (stack.kube.get("HostSubnet", host) or {}).get("egressIPs", [])
        self._print(
            f"$ kubectl patch hostsubnet {host} --type=merge -p "
            f"'{{\"egressIPs\": {_listed([*current, str(MANUAL)])}}}'",
            f"$ kubectl patch netnamespace by-hand --type=merge -p '{{\"egressIPs\": {_listed([str(MANUAL)])}}}'",
        )
        stack.kube.patch("HostSubnet", host, {"egressIPs": [*current, str(MANUAL)]})
        stack.kube.patch("NetNamespace", "by-hand", {"egressIPs": [str(MANUAL)]})
        self._show(self._request("hand", MANUAL))
        self._show_all("by-hand", MANUAL, MANUAL_NETID)

    def _pair(self) -> None:
        self._title("5. A dual-stack pool: an address of each IP version, each seen by the web server")
        namespace = self._stack.create_namespace("both", environment="both")
        addresses = namespace["metadata"].get("annotations", {}).get("egress.hawse.dev/addresses")
        if addresses != ",".join(map(str, PAIR)):
            raise DemoFailed(f"the namespace came back with {addresses!r} and not with {PAIR[0]},{PAIR[1]}")
        self._print(f"  annotations: {{egress.hawse.dev/addresses: {addresses}}}")
        for address in PAIR:
            self._show(self._request("both", address))

    def _release(self) -> None:
        self._title("6. The namespace is deleted: everything of it goes, and nobody else notices")
        stack = self._stack
        steady = stack.network.traffic("hand", interval=0.5, timeout=5)
        time.sleep(2)
        self._print("$ kubectl delete namespace egress-test")
        stack.kube.delete("Namespace", "egress-test")
        try:
            wait_for("the release", lambda: not self._remains(), PATIENCE, every=0.5)
        except TimeoutError:
            raise DemoFailed(f"the release left behind: {'; '.join(self._remains())}") from None
        for name in stack.network.nodes:
            self._print(f"{name}: no flow, address or rule of {ASSIGNED} is left")
        status = wait_for("the quarantine", self._quarantined, PATIENCE)
        self._print(f"EgressAddress {ASSIGNED}: {status['phase']} until {status['quarantinedUntil']}")
        self._told("released")
        time.sleep(2)
        self._undisturbed("by-hand", steady.stop(), MANUAL)
        self._undisturbed("bystander", self._bystander.stop(), NODE1)

    def _told(self, event: str) -> None:
        """Shows what the firewall team was told, which by the profile `console` is a line in a log."""
        log = self._stack.control.log("tickets")

        def told() -> Json | None:
            whole = [line for line in log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
            lines = [json.loads(line) for line in whole]
            return next((line for line in lines if line["event"] == "ticket" and line.get("told") == event), None)

        try:
            line = wait_for("the ticket", told, PATIENCE)
        except TimeoutError:
            raise DemoFailed(f"the firewall team was not told: {log} says why") from None
        self._print(f"firewall ticket {line['reference']}: {line['text']}")

    def _explained(self, namespace: str) -> None:
        done = self._stack.hawse("explain", namespace)
        self._print(f"$ hawse explain {namespace}", *(f"  {line}" for line in done.stdout.splitlines()))
        if done.returncode:
            raise DemoFailed(f"hawse explain {namespace} finds something wrong: {done.stderr or done.stdout}")

    def _quarantined(self) -> Json | None:
        """The status of the assigned address, once it is in quarantine."""
        status: Json = (self._stack.kube.get("EgressAddress", str(ASSIGNED)) or {}).get("status", {})
        return status if status.get("phase") == "Quarantined" else None

    def _remains(self) -> list[str]:
        """What the nodes still hold of the assigned address or of its namespace."""
        found = []
        for name in self._stack.network.nodes:
            found += [f"{name}: {flow}" for flow in self._stack.flows(name) if f"{EGRESS_NETID:#x}" in flow]
            found += [f"{name}: {rule}" for rule in self._stack.rules(name) if str(ASSIGNED) in rule]
            found += [f"{name}: {line}" for line in self._stack.addresses(name) if str(ASSIGNED) in line]
        return found

    def _undisturbed(self, namespace: str, attempts: list[Attempt], source: IPv4Address) -> None:
        wrong = [attempt for attempt in attempts if attempt.source != source]
        if wrong or not attempts:
            raise DemoFailed(f"namespace {namespace} noticed: {wrong[:3] or 'it sent nothing'}")
        self._print(f"namespace {namespace}: {len(attempts)} requests meanwhile, all answered, all from {source}")

    def _request(self, pod: str, source: Address, *, patience: float = PATIENCE, timeout: float = 1) -> AccessLogEntry:
        """A request of `pod` that the web server saw come from `source`; until then, requests are made again."""
        ipv6 = source.version == 6
        network = self._stack.network
        seen: set[Address] = set()

        def arrived() -> AccessLogEntry | None:
            before = len(network.access_log())
            network.request(pod, f"/from-{pod}", timeout=timeout, ipv6=ipv6)
            for entry in network.access_log()[before:]:
                if entry.path == f"/from-{pod}":
                    seen.add(entry.source)
                    if entry.source == source:
                        return entry
            return None

        try:
            entry = wait_for(f"a request from {source}", arrived, patience)
        except TimeoutError:
            raise DemoFailed(
                f"the web server never saw {pod}'s request come from {source}"
                f" but from {', '.join(map(str, seen)) or 'nowhere'}: read {self._stack.control.log('worker')} and "
                f"{self._stack.network.workdir}/runner-*.log"
            ) from None
        return entry

    def _show_all(self, namespace: str, address: IPv4Address, netid: int) -> None:
        stack = self._stack
        for name, spec in stack.network.nodes.items():
            subnet = stack.kube.get("HostSubnet", spec.host) or {}
            self._print(f"HostSubnet {spec.host}: egressIPs {_listed(subnet.get('egressIPs', []))}  ({name})")
        binding = stack.kube.get("NetNamespace", namespace) or {}
        self._print(f"NetNamespace {namespace}: netid {binding['netid']}, egressIPs {_listed(binding['egressIPs'])}")
        address_lines = [line for line in stack.addresses("node2") if f" {address}/" in line]
        flows = {
            name: [flow for flow in stack.flows(name) if f"reg0={netid:#x}" in flow] for name in stack.network.nodes
        }
        rules = [rule for rule in stack.rules("node2") if f"--to-source {address}" in rule]
        jump = [rule for rule in stack.rules("node2") if "-A OPENSHIFT-MASQUERADE -j HAWSE" in rule]
        self._print("node2 $ ip address show dev eth0", *(f"  {line}" for line in address_lines))
        for name, lines in flows.items():
            self._print(f"{name} $ ovs-ofctl dump-flows br0 table=100", *(f"  {line}" for line in lines))
        self._print("node2 $ iptables-save -c -t nat", *(f"  {rule}" for rule in [*jump, *rules]))
        used = {name: [flow for flow in lines if ",ip,reg0=" in flow] for name, lines in flows.items()}
        idle = [name for name, lines in used.items() if not lines or "n_packets=0," in lines[0]]
        if not address_lines or not rules or idle or rules[0].startswith("[0:"):
            raise DemoFailed(f"no packet was counted on the way of {address} ({', '.join(idle) or 'address or rule'})")

    def _show(self, entry: AccessLogEntry) -> None:
        when = time.strftime("%d/%b/%Y:%H:%M:%S %z", time.localtime(entry.time))
        self._print(f'web server\'s access log:  {entry.source} - - [{when}] "GET {entry.path}"')

    def _title(self, text: str) -> None:
        self._print("", f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text)

    def _print(self, *lines: str) -> None:
        for line in lines:
            print(f"   {line}" if line else "", flush=True)


def _net_namespace(name: str, netid: int) -> Json:
    head = {"apiVersion": "network.openshift.io/v1", "kind": "NetNamespace", "metadata": {"name": name}}
    return head | {"netname": name, "netid": netid}


def _listed(texts: list[str]) -> str:
    return "[" + ", ".join(f'"{text}"' for text in texts) + "]"


def _interrupted(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> int:
    """0 when every step was seen, 1 when one was not, 2 when this machine cannot run it, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave it running until Ctrl-C")
    keep = parser.parse_args().keep
    problems = preflight.check()
    if problems:
        print("The demo cannot run here:", *problems, sep="\n  ", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:5.1f} s] {text}", flush=True)

    directory = Path(tempfile.mkdtemp(prefix="hawse-demo-"))
    seen, worth_reading = False, True
    profiles = directory / "profiles.yaml"
    settings = {"HAWSE_TICKET_PROFILES": str(profiles), "HAWSE_API_LISTEN_HOST": "127.0.0.1"}
    if keep:
        settings["HAWSE_ANONYMOUS"] = "true"  # whoever looks at the dashboard is whoever is on this machine
    try:
        with Desk() as desk:
            profiles.write_text(json.dumps({"cluster": "demo", "profiles": [CONSOLE, desk.profile(directory)]}))
            with Stack(directory, say=say, settings=settings) as stack:
                Demo(stack, say).run()
                print()
                say("every step was seen on the wire")
                seen, worth_reading = True, False
                if keep:
                    _fail(stack, desk)
                    _keep(stack)
    except KeyboardInterrupt as interruption:
        print(f"\ninterrupted ({interruption}): everything is taken down", file=sys.stderr)
        worth_reading = False
        return 0 if seen else 130
    except FAILURES as error:
        worth_reading = True
        print(f"\nThe demo failed: {error}\nAll logs are below {directory}; remove it when read.", file=sys.stderr)
        return 1
    finally:
        if not worth_reading:
            shutil.rmtree(directory, ignore_errors=True)
    return 0


def _fail(stack: Stack, desk: Desk) -> None:
    """Makes an assignment of which the firewall team could not be told, and then can: there is something to retry."""
    stack.create_pool(
        "payments", PAYMENTS, namespaceSelector={"matchLabels": {"team": "payments"}}, ticketProfile=desk.name
    )
    stack.kube.create(_net_namespace("payments", PAYMENTS_NETID))
    stack.create_namespace("payments", team="payments")

    def refused() -> bool:
        claims = [item for item in stack.kube.list("EgressAddress") if item["spec"]["namespace"]["name"] == "payments"]
        return any(item.get("status", {}).get("ticket", {}).get("failed") for item in claims)

    wait_for("the ticket that is refused", refused, PATIENCE)
    desk.closed = False


def _keep(stack: Stack) -> None:
    print(
        f"""
It goes on until Ctrl-C. The dashboard, where the ticket of namespace payments has failed and Retry helps:
   {stack.control.api_url}/
In another shell:
   export HAWSE_SERVER={stack.control.api_url}; {Path(sys.executable).parent / "hawse"} status
   export KUBECONFIG={stack.cluster.kubeconfig}      # {stack.cluster.url}
   kubectl get namespaces,hostsubnets,netnamespaces,egresspools,egressaddresses
   kubectl create namespace mine --dry-run=client -o yaml | kubectl label -f - --local environment=production -o yaml |
     kubectl create -f -
   kubectl get egressaddresses --watch
   curl {stack.control.api_url}/lists/pools/production.txt
Logs: {stack.control.directory}, {stack.network.workdir}
""",
        flush=True,
    )
    while True:
        for component, how in stack.control.dead().items():
            raise DemoFailed(f"{component} ended, {how}\nAll of it is in {stack.control.log(component)}")
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
