"""The only code that touches the node: Open vSwitch, iptables, addresses, ARP and NDP, conntrack. One driver a file."""

from __future__ import annotations

from egress.addresses import Address
from egress.program import Layout
from egress.rules import OWN_PREFIX
from node_runner.drivers.ports import Node


def open_node(
    node_ip: Address,
    layout: Layout,
    *,
    bridge: str = "br0",
    vxlan: str = "vxlan0",
    tun: str = "tun0",
    iptables: str | None = None,
) -> Node:
    """The real drivers of the node whose IP is `node_ip`. Nothing is opened or started before its first use.

    `iptables` is "nft", "legacy" or None to find out which one the node's rules are in.
    """
    # They import pyroute2, which offline use does without.
    from node_runner.drivers.conntrack import KernelConntrack  # noqa: PLC0415
    from node_runner.drivers.flows import Bridge  # noqa: PLC0415
    from node_runner.drivers.links import InterfaceLinks  # noqa: PLC0415
    from node_runner.drivers.nat import Iptables  # noqa: PLC0415
    from node_runner.drivers.neighbours import LinkNeighbours  # noqa: PLC0415

    return Node(
        flows=Bridge(bridge, vxlan, tun, layout.egress_table),
        nat=Iptables(layout.masquerade_chain, iptables),
        links=InterfaceLinks(node_ip, {OWN_PREFIX, layout.masquerade_chain, "INPUT", "FORWARD"}),
        arp=LinkNeighbours(),
        conntrack=KernelConntrack(),
    )
