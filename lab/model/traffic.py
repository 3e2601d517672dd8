"""Where a namespace's packets go, told from what the nodes really hold: flows, rules and addresses. Pure.

It knows nothing of tables, plans or programs: what it finds is what Open vSwitch and the kernel would do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from egress.addresses import Address
from egress.delta import Found, mark_in
from egress.program import Flow, Layout
from egress.rules import GUARD_CHAIN, SPINE_CHAIN, table_name

_STEER = re.compile(r"set_field:([0-9.]+)->tun_dst")
_MARK = re.compile(r"-m mark --mark (0x[0-9a-f]+)(?:/(0x[0-9a-f]+))?(?: |$)")
_SNAT = re.compile(r"-s \S+ -m mark --mark 0x[0-9a-f]+ -j SNAT --to-source ([0-9a-f.:]+)")


@dataclass(frozen=True, slots=True, order=True)
class Exit:
    """Packets leave the cluster at `node`: with `address`, or with None by the node's own IP."""

    node: str
    address: Address | None


def flow_for(found: Found, netid: int) -> Flow | None:
    """The flow of ours that a NetID's packets meet."""
    return next((flow for flow in found.flows if flow.match == f"ip,reg0={netid:#x}"), None)


def exits(
    netid: int, source: str, nodes: Mapping[str, Found], ips: Mapping[str, str], layout: Layout
) -> frozenset[Exit]:
    """Where packets of `netid` leave that a pod on `source` sends out of the cluster; nothing when they are dropped.

    A node that is not in `nodes` is away, and what is sent to it is lost. `ips` are the nodes' names by their IPs.
    """
    flow = flow_for(nodes[source], netid)
    if flow is None:
        return frozenset({Exit(source, None)})
    if mark_in(flow) is not None:
        return frozenset({sent_out(mark_in(flow), source, nodes[source], layout)})
    found = set()
    for steered in _targets(flow, nodes[source]):
        target = ips.get(steered, "")
        if target not in nodes or target == source:
            continue
        there = flow_for(nodes[target], netid)
        if there is None:
            found.add(Exit(target, None))
        elif mark_in(there) is not None:
            found.add(sent_out(mark_in(there), target, nodes[target], layout))
        # Else it drops, or steers on: Open vSwitch never sends a packet back to the port that it came from.
    return frozenset(found)


def _targets(flow: Flow, found: Found) -> Iterator[str]:
    """The IPs of the nodes to which the flow may send packets."""
    texts = [flow.actions]
    for group in found.groups:
        if flow.actions == f"group:{group.group_id}":
            texts += group.buckets
    for text in texts:
        yield from _STEER.findall(text)


def sent_out(mark: int | None, node: str, found: Found, layout: Layout) -> Exit:
    """What the node's nat table makes of packets with a mark."""
    jump = f"-j {SPINE_CHAIN}"
    if mark is None or found.rules.parents.get(("nat", layout.masquerade_chain), ())[:1] != (jump,):
        return Exit(node, None)
    return Exit(node, translation(found.rules.own, mark, IPv4Network(layout.networks(4)[0])))


def translation(
    own: Mapping[tuple[str, str], Sequence[str]], mark: int, source: IPv4Network | IPv6Network
) -> Address | None:
    """The address that our chains give a packet with `mark` that leaves the cluster, of a pod in `source`: walked as
    the kernel walks them. None where they give it none, or would not load."""
    nat = table_name("nat", source.version)
    frames = [(SPINE_CHAIN, 0)]
    while frames:
        chain, position = frames.pop()
        if (nat, chain) not in own:
            return None  # no kernel takes a jump to nowhere
        for number, spec in enumerate(own[nat, chain][position:], start=position):
            if not _meets(spec, mark, source):
                continue
            if (snat := _SNAT.fullmatch(spec)) is not None:
                return ip_address(snat[1])
            verb, _, target = spec.rpartition(" ")
            if (nat, target) in own:
                frames += [(chain, number + 1)] if verb.endswith("-j") else []
                frames.append((target, 0))
            elif target != "RETURN":
                return None  # somebody else's rule has decided
            break
    return None


def _meets(spec: str, mark: int, source: IPv4Network | IPv6Network) -> bool:
    """Whether a rule is for such a packet. Its destination is not in the cluster, which a -d of ours names."""
    found = _MARK.search(spec)
    value, mask = (int(found[1], 16), int(found[2] or "0xffffffff", 16)) if found is not None else (0, 0)
    addressed = " -d " in f" {spec}" or (spec.startswith("-s ") and not spec.startswith(f"-s {source} "))
    return not addressed and mark & mask == value


def is_guarded(found: Found) -> bool:
    """Whether connections that began before their namespace got its address are cut on this node."""
    return found.rules.parents.get(("filter", "FORWARD"), ())[:1] == (f"-j {GUARD_CHAIN}",)
