"""Nodes with IPv6 and without, and what the lab's SDN does for each."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from lab.net import sdn
from lab.net.topology import CLUSTER_NETWORK_6, OUTSIDE_NETWORK_6, Pod, node, nodes


def test_every_node_has_an_address_and_a_subnet_of_each_family() -> None:
    specs = nodes(20)
    sides = [spec.ipv6 for spec in specs if spec.ipv6 is not None]
    assert len(sides) == len({side.address for side in sides}) == len({side.subnet for side in sides}) == 20
    assert all(side.address in OUTSIDE_NETWORK_6 and side.subnet.subnet_of(CLUSTER_NETWORK_6) for side in sides)
    assert specs[0].addresses == (IPv4Address("192.168.1.17"), IPv6Address("fd00:192:168:1::17"))
    assert sides[1].subnet == IPv6Network("fd00:10:128:2::/64")
    assert sides[1].gateway == IPv6Address("fd00:10:128:2::1")


def test_an_ipv4_node_has_nothing_of_ipv6() -> None:
    first, second = nodes(2, ipv6=False)
    pod = Pod("p", "node1", 7, IPv4Address("10.128.0.2"), 3)
    assert first.addresses == (IPv4Address("192.168.1.17"),)
    texts = [*sdn.base_flows(first, [second]), *sdn.pod_flows(pod), *sdn.pod_flow_matches(pod)]
    assert not [text for text in texts if "ipv6" in text or "icmp6" in text]


def test_ipv6_takes_nothing_from_ipv4() -> None:
    first, second = nodes(2)
    pod = Pod("p", "node1", 7, IPv4Address("10.128.0.2"), 3, IPv6Address("fd00:10:128:1::2"))
    plain = sdn.base_flows(node(1, ipv6=False), [node(2, ipv6=False)])
    both = sdn.base_flows(first, [second])
    assert set(plain) < set(both)
    assert all("ipv6" in flow or "icmp6" in flow for flow in set(both) - set(plain))
    assert set(sdn.pod_flows(replace(pod, ip6=None))) < set(sdn.pod_flows(pod))
