"""Open vSwitch: the bridge's facts, our flows and groups on it, and changes to them as one atomic bundle."""

from __future__ import annotations

import json
import pathlib
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

from ovs.flow.kv import ParseError
from ovs.flow.ofp import OFPFlow

from egress.delta import FlowChange, is_ours
from egress.program import COOKIE, COOKIE_MASK, GROUPS, Flow, Group, Traffic
from node_runner.commands import CommandFailed, Standby, follow, printed
from node_runner.drivers.errors import (
    BridgeMissing,
    FlowUnreadable,
    OpenVSwitchRefused,
    OpenVSwitchUnavailable,
    PortMissing,
)
from node_runner.drivers.ports import MAC, BridgeFacts, FlowCount, FlowsFound, Path, checked_name

# OpenFlow 1.3 is what OpenShift's br0 allows; a bridge that allows all versions takes it too. Without the option
# ovs-ofctl speaks 1.0, which br0 refuses and which prints the same actions in other words.
# --no-names saves 0.7 MB of table features a call (docs/decisions/0004).
_OFCTL = ("ovs-ofctl", "--no-names", "-O", "OpenFlow13", "--timeout=10")
_VSCTL = ("ovs-vsctl", "--timeout=5", "--no-wait")
_MONITOR = ("ovs-ofctl", "--no-names", "-O", "OpenFlow13", "--timeout=60", "monitor")
"""It ends by itself after a minute, so that none outlives a killed runner for longer."""
_PORT_MAX = 0xFEFF
_DEFAULT_PRIORITY = 0x8000
"""What ovs-ofctl leaves out."""

_FLOW = re.compile(
    r" cookie=0x(?P<cookie>[0-9a-f]{1,16}), (?:table=(?P<table>\d{1,3}), )?"
    r"priority=(?P<priority>\d{1,5}),(?P<match>ip(?:v6)?,reg0=0x[0-9a-f]{1,8}) actions=(?P<actions>\S+)"
)
"""Exactly the form of our own flows; whatever else a bridge holds is parsed by the OVS library."""
_COUNT = re.compile(
    r" cookie=0x(?P<cookie>[0-9a-f]{1,16}), .*?n_packets=(?P<packets>\d+), "
    r"n_bytes=(?P<bytes>\d+), .*?priority=\d+,ip(?P<six>v6)?,reg0=0x(?P<netid>[0-9a-f]{1,8}) actions=(?P<actions>\S+)"
)
"""One of our flows as it is printed with its counts."""
_GROUP = re.compile(r" group_id=(?P<id>\d{1,10}),type=")
_BUCKET = re.compile(r"bucket=actions=(move:[^,]+,set_field:[^,]+->tun_(?:ipv6_)?dst,output:\d+)")


_IF_INET6 = "/proc/thread-self/net/if_inet6"
"""The IPv6 addresses of this network namespace: address, index, prefix length, scope, flags and interface of each."""
_GLOBAL_SCOPE = "00"


class Bridge:
    """The bridge `name`. `table` is the egress table: there also the keys of foreign flows are of interest."""

    def __init__(self, name: str = "br0", vxlan: str = "vxlan0", tun: str = "tun0", table: int = 100) -> None:
        self._name = checked_name(name)
        self._vxlan = checked_name(vxlan)
        self._tun = checked_name(tun)
        self._table = table
        self._lines: dict[str, Flow | None] = {}
        self._bundle = "bundle", self._name, "-"
        self._standby = Standby()

    def facts(self) -> BridgeFacts:
        """See ports.Flows."""
        ports, rows = self._interfaces()
        for port in (self._vxlan, self._tun):
            if port not in ports or port not in rows:
                raise PortMissing(
                    f"bridge {self._name} has no port {port}; it has {', '.join(sorted(ports)) or 'none'}: "
                    "set the names of the VXLAN and tunnel ports, or start the cluster's network on this node"
                )
        number, mac = rows[self._vxlan][0], rows[self._tun][1]
        if not isinstance(number, int) or not 0 < number <= _PORT_MAX:
            raise PortMissing(
                f"{self._vxlan} on {self._name} has no OpenFlow port number (ofport {number!r}): "
                f"see `ovs-vsctl get interface {self._vxlan} error`"
            )
        if not isinstance(mac, str) or not MAC.fullmatch(mac):
            raise PortMissing(f"{self._tun} on {self._name} has no MAC; see `ovs-vsctl list interface {self._tun}`")
        return BridgeFacts(number, mac, _has_ipv6(self._tun))

    def read(self, *, everywhere: bool = False) -> FlowsFound:
        """See ports.Flows. One process, or two where groups are in use or looked for."""
        self._standby.tidy()
        if not everywhere:
            flows, foreign = self._flows(f"table={self._table}")
            grouped = any("group:" in flow.actions for flow in flows)
            return FlowsFound(flows, self._groups() if grouped else frozenset(), foreign)
        with ThreadPoolExecutor(1) as pool:
            groups = pool.submit(self._groups)
            flows, foreign = self._flows()
            return FlowsFound(flows, groups.result(), foreign)

    def _flows(self, *where: str) -> tuple[frozenset[Flow], frozenset[tuple[int, int, str]]]:
        """Our flows, and the keys of those of others in the egress table."""
        known = self._lines  # most lines are what they were; only those that are not are parsed
        self._lines = {
            line: known[line] if line in known else _own_form(line) or _any_form(line)
            for line in self._ofctl("--no-stats", "dump-flows", self._name, *where).splitlines()
        }
        flows: set[Flow] = set()
        foreign: set[tuple[int, int, str]] = set()
        for flow in self._lines.values():
            if flow is None:
                continue
            if is_ours(flow.cookie):
                flows.add(flow)
            elif flow.table == self._table:
                foreign.add(flow.key)
        return frozenset(flows), frozenset(foreign)

    def _groups(self) -> frozenset[Group]:
        return _groups(self._ofctl("dump-groups", self._name))

    def counts(self) -> dict[Traffic, FlowCount]:
        """See ports.Flows. One process."""
        lines = self._ofctl("dump-flows", self._name, f"table={self._table}").splitlines()
        found = [match for line in lines if (match := _COUNT.fullmatch(line)) and is_ours(int(match["cookie"], 16))]
        return {
            (int(match["netid"], 16), 6 if match["six"] else 4): FlowCount(
                path_of(match["actions"]), int(match["packets"]), int(match["bytes"])
            )
            for match in found
        }

    def ready(self) -> None:
        """See ports.Flows. ovs-ofctl connects when it has read what to do."""
        self._standby.ready([*_OFCTL, *self._bundle])

    def apply(self, change: FlowChange) -> None:
        """See ports.Flows."""
        if not change:
            return
        # A flow may only name a group that exists, and deleting a group deletes the flows that name it.
        lines = [f"group add_or_mod {group}" for group in change.add_groups]
        lines += [f"flow delete_strict {_ours(flow)}" for flow in change.remove]
        lines += [f"flow add cookie={flow.cookie:#x},{flow}" for flow in change.add]
        lines += [f"group delete group_id={group.group_id}" for group in change.remove_groups]
        self._ofctl(*self._bundle, stdin="\n".join([*lines, ""]))

    def close(self) -> None:
        """See ports.Flows."""
        self._standby.close()

    def watch(self, callback: Callable[[], None], stop: Event) -> None:
        """See ports.Flows. One process; it tells of our own changes too: whoever is called back finds nothing to do."""
        # Each connection begins with a line, and so with a look: Open vSwitch may have restarted without our flows.
        try:
            follow([*_MONITOR, self._name, f"watch:!initial,table={self._table}"], callback, stop)
        except CommandFailed as error:
            if error.returncode != -signal.SIGALRM:
                callback()  # perhaps it restarts just now
                raise OpenVSwitchUnavailable(f"{self._name} tells nothing of its flows: {error}") from error

    def _interfaces(self) -> tuple[set[str], dict[str, tuple[Any, Any]]]:
        """The names of the bridge's ports, and [OpenFlow port, MAC] of those that we ask for, in one process."""
        query = ("--if-exists", "--columns=name,ofport,mac_in_use", "list", "Interface", self._vxlan, self._tun)
        try:
            text = printed([*_VSCTL, "--format=json", "list-ifaces", self._name, "--", *query], timeout=8)
        except CommandFailed as error:
            if "no bridge named" in error.stderr:
                raise BridgeMissing(
                    f"Open vSwitch has no bridge {self._name}: start the cluster's network on this node, "
                    "or set the bridge's name"
                ) from error
            raise OpenVSwitchUnavailable(f"Open vSwitch's database does not answer; is it running? {error}") from error
        *ports, table = text.splitlines()
        return set(ports), {name: (number, mac) for name, number, mac in json.loads(table)["data"]}

    def _ofctl(self, *arguments: str, stdin: str | None = None) -> str:
        try:
            if stdin is None:
                return printed([*_OFCTL, *arguments], timeout=15)
            return self._standby.run([*_OFCTL, *arguments], stdin=stdin, timeout=15)
        except CommandFailed as error:
            if "is not a bridge or a socket" in error.stderr:
                raise BridgeMissing(
                    f"bridge {self._name} is not there: start Open vSwitch and the cluster's network on this node, "
                    "or set the bridge's name"
                ) from error
            if "OFPT_ERROR" in error.stderr or "Error OFP" in error.stderr:
                raise OpenVSwitchRefused(f"Open vSwitch refused the change and applied none of it. {error}") from error
            raise OpenVSwitchUnavailable(f"{self._name} does not answer; is ovs-vswitchd running? {error}") from error


def _ours(flow: Flow) -> str:
    return f"cookie={COOKIE:#x}/{COOKIE_MASK:#x},table={flow.table},priority={flow.priority},{flow.match}"


def path_of(actions: str) -> Path:
    """Where a flow of ours with these actions lets packets go."""
    if actions == "drop":
        return Path.DROPPED
    return Path.OUT if "pkt_mark" in actions else Path.STEERED


def _own_form(line: str) -> Flow | None:
    """The flow of a line in exactly the form in which ours are printed."""
    found = _FLOW.fullmatch(line)
    if found is None:
        return None
    return Flow(
        int(found["table"] or 0), int(found["priority"]), found["match"], int(found["cookie"], 16), found["actions"]
    )


def _any_form(line: str) -> Flow | None:
    """What identifies any other flow, by OVS's own parser; None for a line that is no flow, such as a reply's header.

    The actions are not parsed: those of others may be newer than the parser, and they do not matter here.
    """
    head, mark, actions = line.strip().partition(" actions=")
    if not mark:
        return None
    try:
        parsed = OFPFlow(f"{head} actions=drop")
    except (ValueError, ParseError) as error:
        raise FlowUnreadable(f"a flow on the bridge cannot be read: {line.strip()!r}: {error}") from error
    priority = int(parsed.match.get("priority", _DEFAULT_PRIORITY))
    match = parsed.section("match").string.removeprefix(f"priority={priority}").removeprefix(",")
    return Flow(int(parsed.info.get("table", 0)), priority, match, int(parsed.info.get("cookie", 0)), actions)


def _groups(text: str) -> frozenset[Group]:
    """Our groups. One whose buckets are not as we make them comes with its whole text, and so is replaced."""
    groups: set[Group] = set()
    for line in text.splitlines():
        found = _GROUP.match(line)
        if found is None or int(found["id"]) & 0xFF000000 not in GROUPS.values():
            continue
        group = Group(int(found["id"]), tuple(_BUCKET.findall(line)))
        groups.add(group if str(group) == line.strip() else Group(group.group_id, (line.strip(),)))
    return frozenset(groups)


def _has_ipv6(interface: str) -> bool:
    try:
        lines = pathlib.Path(_IF_INET6).read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return False  # a kernel without IPv6
    return any(fields[5] == interface and fields[3] == _GLOBAL_SCOPE for fields in map(str.split, lines))
