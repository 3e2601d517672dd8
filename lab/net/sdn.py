"""What OpenShift SDN itself puts on a node, before any egress address: its flows and its nat rules, as text.

Tables as openshift-sdn numbers them: 0 tells where a packet comes from; 10 checks the tunnel's sender; 20 takes a
pod's NetID into reg0; 21 would send services to conntrack; 30 routes; 40 and 50 carry ARP to local pods and to other
nodes; 70 and 80 IP to local pods, with isolation between NetIDs; 90 IP to other nodes; 100 is where traffic leaves the
cluster, 101 how.

OpenShift SDN knows no IPv6. On a dual-stack node this one carries it through the same tables, with less neighbour
discovery than there is ARP: a pod's one neighbour is tun0, and table 70 puts the pod's MAC on whatever comes for it.
Table 40 carries what tun0 and the pods ask and tell each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from lab.net.topology import CLUSTER_NETWORK, CLUSTER_NETWORK_6, IPv6Side, NodeSpec, Pod

VXLAN_PORT = 1
TUN_PORT = 2
_SOLICITATION, _ADVERTISEMENT = 135, 136
_DISCOVERY = (_SOLICITATION, _ADVERTISEMENT)
_FROM_TUNNEL = "move:NXM_NX_TUN_ID[0..31]->NXM_NX_REG0[]"
_TO_TUNNEL = "move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31]"


def base_flows(node: NodeSpec, others: Iterable[NodeSpec]) -> list[str]:
    """The node's flows without any pod."""
    cluster, subnet, gateway = CLUSTER_NETWORK, node.subnet, node.gateway
    flows = [
        # 0: from the tunnel, from the node itself, from a pod
        f"table=0,priority=200,in_port=1,arp,nw_src={cluster},nw_dst={subnet} actions={_FROM_TUNNEL},goto_table:10",
        f"table=0,priority=200,in_port=1,ip,nw_src={cluster} actions={_FROM_TUNNEL},goto_table:10",
        f"table=0,priority=200,in_port=1,ip,nw_dst={cluster} actions={_FROM_TUNNEL},goto_table:10",
        "table=0,priority=150,in_port=1 actions=drop",
        "table=0,priority=250,in_port=2,ip,nw_dst=224.0.0.0/4 actions=drop",
        f"table=0,priority=200,in_port=2,arp,nw_src={gateway},nw_dst={cluster} actions=goto_table:30",
        "table=0,priority=200,in_port=2,ip actions=goto_table:30",
        "table=0,priority=150,in_port=2 actions=drop",
        "table=0,priority=100,arp actions=goto_table:20",
        "table=0,priority=100,ip actions=goto_table:20",
        "table=0,priority=0 actions=drop",
        "table=10,priority=0 actions=drop",
        "table=20,priority=0 actions=drop",
        "table=21,priority=0 actions=goto_table:30",
        # 30: to the node, to a pod here, to a pod elsewhere, out of the cluster
        f"table=30,priority=300,arp,nw_dst={gateway} actions=output:{TUN_PORT}",
        f"table=30,priority=200,arp,nw_dst={subnet} actions=goto_table:40",
        f"table=30,priority=100,arp,nw_dst={cluster} actions=goto_table:50",
        f"table=30,priority=300,ip,nw_dst={gateway} actions=output:{TUN_PORT}",
        f"table=30,priority=200,ip,nw_dst={subnet} actions=goto_table:70",
        f"table=30,priority=100,ip,nw_dst={cluster} actions=goto_table:90",
        "table=30,priority=0,ip actions=goto_table:100",
        "table=30,priority=0,arp actions=drop",
        *(f"table={table},priority=0 actions=drop" for table in (40, 50, 70, 80, 90)),
        # 80: from the node, and from or to NetID 0, everything; else only within one NetID
        f"table=80,priority=300,ip,nw_src={gateway} actions=output:NXM_NX_REG2[]",
        "table=80,priority=200,ip,reg0=0 actions=output:NXM_NX_REG2[]",
        "table=80,priority=200,ip,reg1=0 actions=output:NXM_NX_REG2[]",
        "table=100,priority=0 actions=goto_table:101",
        f"table=101,priority=0 actions=output:{TUN_PORT}",
    ]
    for other in others:
        tunnel = f"{_TO_TUNNEL},set_field:{other.address}->tun_dst,output:{VXLAN_PORT}"
        flows += [
            f"table=10,priority=100,tun_src={other.address} actions=goto_table:30",
            f"table=50,priority=100,arp,nw_dst={other.subnet} actions={tunnel}",
            f"table=90,priority=100,ip,nw_dst={other.subnet} actions={tunnel}",
        ]
        if other.ipv6 is not None:
            flows.append(f"table=90,priority=100,ipv6,ipv6_dst={other.ipv6.subnet} actions={tunnel}")
    return flows if node.ipv6 is None else flows + _ipv6_flows(node.ipv6)


def _ipv6_flows(side: IPv6Side) -> list[str]:
    cluster = CLUSTER_NETWORK_6
    return [
        f"table=0,priority=200,in_port=1,ipv6,ipv6_src={cluster} actions={_FROM_TUNNEL},goto_table:10",
        f"table=0,priority=200,in_port=1,ipv6,ipv6_dst={cluster} actions={_FROM_TUNNEL},goto_table:10",
        *(f"table=0,priority=260,in_port=2,icmp6,icmp_type={kind} actions=goto_table:40" for kind in _DISCOVERY),
        "table=0,priority=250,in_port=2,ipv6,ipv6_dst=ff00::/8 actions=drop",
        "table=0,priority=200,in_port=2,ipv6 actions=goto_table:30",
        "table=0,priority=100,ipv6 actions=goto_table:20",
        # What is meant for one link goes nowhere from here.
        *(f"table=30,priority=400,ipv6,ipv6_dst={link} actions=drop" for link in ("ff00::/8", "fe80::/10")),
        f"table=30,priority=300,ipv6,ipv6_dst={side.gateway} actions=output:{TUN_PORT}",
        f"table=30,priority=200,ipv6,ipv6_dst={side.subnet} actions=goto_table:70",
        f"table=30,priority=100,ipv6,ipv6_dst={cluster} actions=goto_table:90",
        "table=30,priority=0,ipv6 actions=goto_table:100",
        f"table=80,priority=300,ipv6,ipv6_src={side.gateway} actions=output:NXM_NX_REG2[]",
        "table=80,priority=200,ipv6,reg0=0 actions=output:NXM_NX_REG2[]",
        "table=80,priority=200,ipv6,reg1=0 actions=output:NXM_NX_REG2[]",
    ]


def pod_flows(pod: Pod) -> list[str]:
    """What the SDN adds for a pod of the node."""
    netid, port = f"{pod.netid:#x}", pod.ofport
    mark = f"load:{netid}->NXM_NX_REG0[],goto_table:21"
    flows = [
        f"table=20,priority=100,in_port={port},arp,nw_src={pod.ip} actions={mark}",
        f"table=20,priority=100,in_port={port},ip,nw_src={pod.ip} actions={mark}",
        f"table=40,priority=100,arp,nw_dst={pod.ip} actions=output:{port}",
        f"table=70,priority=100,ip,nw_dst={pod.ip} "
        f"actions=load:{netid}->NXM_NX_REG1[],load:{port:#x}->NXM_NX_REG2[],goto_table:80",
        f"table=80,priority=100,ip,reg0={netid},reg1={netid} actions=output:NXM_NX_REG2[]",
    ]
    if pod.ip6 is None:
        return flows
    return [
        *flows,
        *(
            f"table=20,priority=110,in_port={port},dl_src={pod.mac},icmp6,icmp_type={kind} actions=output:{TUN_PORT}"
            for kind in _DISCOVERY
        ),
        f"table=20,priority=100,in_port={port},ipv6,ipv6_src={pod.ip6} actions={mark}",
        f"table=40,priority=110,icmp6,dl_dst={pod.mac} actions=output:{port}",
        f"table=40,priority=100,icmp6,icmp_type={_SOLICITATION},nd_target={pod.ip6} actions=output:{port}",
        f"table=70,priority=100,ipv6,ipv6_dst={pod.ip6} actions=set_field:{pod.mac}->eth_dst,"
        f"load:{netid}->NXM_NX_REG1[],load:{port:#x}->NXM_NX_REG2[],goto_table:80",
        f"table=80,priority=100,ipv6,reg0={netid},reg1={netid} actions=output:NXM_NX_REG2[]",
    ]


def pod_flow_matches(pod: Pod) -> list[str]:
    """What `ovs-ofctl del-flows` takes to remove a pod's flows (not table 80's: they belong to the NetID)."""
    matches = [f"table=20,in_port={pod.ofport}", f"table=40,arp,nw_dst={pod.ip}", f"table=70,ip,nw_dst={pod.ip}"]
    if pod.ip6 is not None:
        matches += [
            f"table=40,icmp6,dl_dst={pod.mac}",
            f"table=40,icmp6,icmp_type={_SOLICITATION},nd_target={pod.ip6}",
            f"table=70,ipv6,ipv6_dst={pod.ip6}",
        ]
    return matches


def base_nat(cluster: IPv4Network | IPv6Network) -> str:
    """The nat table, for `iptables-restore --noflush` or ip6tables' of the pods' network `cluster`.

    An egress address's SNAT comes before the last jump here.
    """
    return f"""*nat
:OPENSHIFT-MASQUERADE - [0:0]
:OPENSHIFT-MASQUERADE-2 - [0:0]
-A POSTROUTING -m comment --comment "rules for masquerading OpenShift traffic" -j OPENSHIFT-MASQUERADE
-A OPENSHIFT-MASQUERADE -m mark --mark 0x4000/0x4000 -j RETURN
-A OPENSHIFT-MASQUERADE -s {cluster} -m comment --comment "masquerade pod-to-external traffic" \
-j OPENSHIFT-MASQUERADE-2
-A OPENSHIFT-MASQUERADE-2 -d {cluster} -m comment \
--comment "masquerade pod-to-external traffic" -j RETURN
-A OPENSHIFT-MASQUERADE-2 -j MASQUERADE
COMMIT
"""
