"""What OpenShift SDN itself puts on a node, before any egress address: its flows and its nat rules, as text.

Tables as openshift-sdn numbers them: 0 tells where a packet comes from; 10 checks the tunnel's sender; 20 takes a
pod's NetID into reg0; 21 would send services to conntrack; 30 routes; 40 and 50 carry ARP to local pods and to other
nodes; 70 and 80 IP to local pods, with isolation between NetIDs; 90 IP to other nodes; 100 is where traffic leaves the
cluster, 101 how.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address

from lab.net.topology import CLUSTER_NETWORK, NodeSpec, Pod

VXLAN_PORT = 1
TUN_PORT = 2
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
    return flows


def pod_flows(pod: Pod) -> list[str]:
    """What the SDN adds for a pod of the node."""
    netid, port = f"{pod.netid:#x}", pod.ofport
    mark = f"load:{netid}->NXM_NX_REG0[],goto_table:21"
    return [
        f"table=20,priority=100,in_port={port},arp,nw_src={pod.ip} actions={mark}",
        f"table=20,priority=100,in_port={port},ip,nw_src={pod.ip} actions={mark}",
        f"table=40,priority=100,arp,nw_dst={pod.ip} actions=output:{port}",
        f"table=70,priority=100,ip,nw_dst={pod.ip} "
        f"actions=load:{netid}->NXM_NX_REG1[],load:{port:#x}->NXM_NX_REG2[],goto_table:80",
        f"table=80,priority=100,ip,reg0={netid},reg1={netid} actions=output:NXM_NX_REG2[]",
    ]


def pod_flow_matches(ip: IPv4Address, ofport: int) -> list[str]:
    """What `ovs-ofctl del-flows` takes to remove a pod's flows (not table 80's: they belong to the NetID)."""
    return [f"table=20,in_port={ofport}", f"table=40,arp,nw_dst={ip}", f"table=70,ip,nw_dst={ip}"]


def base_nat() -> str:
    """The nat table, for `iptables-restore --noflush`. An egress address's SNAT comes before the last jump here."""
    return f"""*nat
:OPENSHIFT-MASQUERADE - [0:0]
:OPENSHIFT-MASQUERADE-2 - [0:0]
-A POSTROUTING -m comment --comment "rules for masquerading OpenShift traffic" -j OPENSHIFT-MASQUERADE
-A OPENSHIFT-MASQUERADE -m mark --mark 0x4000/0x4000 -j RETURN
-A OPENSHIFT-MASQUERADE -s {CLUSTER_NETWORK} -m comment --comment "masquerade pod-to-external traffic" \
-j OPENSHIFT-MASQUERADE-2
-A OPENSHIFT-MASQUERADE-2 -d {CLUSTER_NETWORK} -m comment \
--comment "masquerade pod-to-external traffic" -j RETURN
-A OPENSHIFT-MASQUERADE-2 -j MASQUERADE
COMMIT
"""
