"""Building a node inside the lab's kernel and playing OpenShift SDN on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from lab.net import sdn
from lab.net.kernel import MANAGEMENT
from lab.net.topology import (
    CLUSTER_NETWORK,
    CLUSTER_NETWORK_6,
    GATEWAY,
    GATEWAY_6,
    MANAGEMENT_INTERFACE,
    OUTSIDE_NETWORK,
    OUTSIDE_NETWORK_6,
    POD_MTU,
    UPLINK,
    NodeSpec,
    Pod,
)

Run = Callable[[str, list[str], str | None], str]
"""Runs a command in a namespace with an input, and returns what it prints; raises when it fails."""

_NODE_SETUP = f"""set -e
sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
    net.ipv4.conf.{UPLINK}.rp_filter=0 net.ipv4.conf.{MANAGEMENT_INTERFACE}.rp_filter=0 \
    net.ipv4.conf.{MANAGEMENT_INTERFACE}.arp_ignore=1 net.ipv4.conf.{MANAGEMENT_INTERFACE}.arp_announce=2
iptables-restore --noflush
mkdir -p "$OVS_RUNDIR"
ovsdb-tool create "$OVS_DBDIR/conf.db" /usr/share/openvswitch/vswitch.ovsschema
"""
_NODE_SETUP_6 = f"""
sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0
ip6tables-restore --noflush <<'END'
{sdn.base_nat(CLUSTER_NETWORK_6)}
END
"""
"""tun0 comes later and is nobody's but the node's: its address need not be asked for on the link. eth0's are."""
_POD_SETUP_6 = "sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.accept_ra=0"
_ANY_POD, _ANY_POD_MAC = "fe80::1", "0a:58:00:00:00:01"
"""The next hop of the node's route to the pods: the bridge puts the MAC of the right one in its place."""
_OVSDB_START = """set -e
ovsdb-server "$OVS_DBDIR/conf.db" --remote=punix:"$OVS_RUNDIR/db.sock" --pidfile --detach --no-chdir --log-file
"""
_BRIDGE_SETUP = f"""set -e
ovs-vsctl --no-wait init -- add-br br0 -- set bridge br0 fail-mode=secure datapath_type=system \
    -- add-port br0 vxlan0 -- set interface vxlan0 type=vxlan options:remote_ip=flow options:key=flow \
        ofport_request={sdn.VXLAN_PORT} \
    -- add-port br0 tun0 -- set interface tun0 type=internal ofport_request={sdn.TUN_PORT} mtu_request={POD_MTU}
"""
_VSWITCHD_START = """set -e
ovs-vswitchd --pidfile --detach --no-chdir --log-file
"""
_OVS_STOP = """
ovs-appctl -t ovs-vswitchd exit
ovs-appctl -t ovsdb-server exit
while [ -e "$OVS_RUNDIR/ovs-vswitchd.pid" ] || [ -e "$OVS_RUNDIR/ovsdb-server.pid" ]; do sleep 0.02; done
"""


def environment(node: NodeSpec) -> dict[str, str]:
    """What lets plain `ovs-vsctl` and `ovs-ofctl` find the node's own Open vSwitch."""
    directory = f"/run/ovs/{node.name}"
    names = ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR")
    return dict.fromkeys(names, directory)


def prepare(run: Run, node: NodeSpec) -> None:
    """Everything but ovs-vswitchd: links, addresses, nat rules, database."""
    name = node.name
    links = [
        f"link add {UPLINK} address {_mac(node)} netns {name} type veth peer name v-{name}",
        f"link set v-{name} master outside up",
        f"link add {MANAGEMENT_INTERFACE} netns {name} type veth peer name m-{name}",
        f"link set m-{name} master management up",
    ]
    run("root", ["sh", "-ec", f"ip netns add {name}; ip -batch -"], "\n".join(links))
    inside = [
        "link set lo up",
        f"address add {node.address}/{OUTSIDE_NETWORK.prefixlen} brd + dev {UPLINK}",
        f"link set {UPLINK} up",
        f"address add {node.management}/24 dev {MANAGEMENT_INTERFACE}",
        f"link set {MANAGEMENT_INTERFACE} up",
        f"route add default via {GATEWAY}",
        # The management network is for the node's own processes: nothing forwarded enters it.
        f"rule add iif tun0 to {MANAGEMENT} prohibit",
        f"rule add iif {UPLINK} to {MANAGEMENT} prohibit",
    ]
    setup = _NODE_SETUP
    if node.ipv6 is not None:
        inside += [
            f"address add {node.ipv6.address}/{OUTSIDE_NETWORK_6.prefixlen} dev {UPLINK} nodad",
            f"route add default via {GATEWAY_6}",
        ]
        setup += _NODE_SETUP_6
    run(name, ["ip", "-batch", "-"], "\n".join(inside))
    run(name, ["sh", "-c", setup], sdn.base_nat(CLUSTER_NETWORK))
    run(name, ["sh", "-c", _OVSDB_START + _BRIDGE_SETUP], None)


def start_switch(run: Run, node: NodeSpec, others: Iterable[NodeSpec], pods: Iterable[Pod]) -> None:
    """ovs-vswitchd, the base flows and tun0. Not in the kernel's first ten seconds: see the caller."""
    run(node.name, ["sh", "-c", _VSWITCHD_START], None)
    install_flows(run, node, others, pods)
    tun = [
        f"address add {node.gateway}/{node.subnet.prefixlen} dev tun0",
        "link set tun0 up",
        f"route add {CLUSTER_NETWORK} dev tun0",
    ]
    if node.ipv6 is not None:
        tun += [
            f"address add {node.ipv6.gateway}/{node.ipv6.subnet.prefixlen} dev tun0 nodad",
            f"neighbour add {_ANY_POD} lladdr {_ANY_POD_MAC} nud permanent dev tun0",
            f"route add {CLUSTER_NETWORK_6} via {_ANY_POD} dev tun0",
        ]
    run(node.name, ["ip", "-batch", "-"], "\n".join(tun))


def install_flows(run: Run, node: NodeSpec, others: Iterable[NodeSpec], pods: Iterable[Pod]) -> None:
    """The SDN's flows, as its node process installs them at start and whenever Open vSwitch was restarted."""
    flows = sdn.base_flows(node, others)
    for pod in pods:
        flows += sdn.pod_flows(pod)
    add_flows(run, node, flows)


def add_flows(run: Run, node: NodeSpec, flows: list[str]) -> None:
    run(node.name, ["ovs-ofctl", "-O", "OpenFlow13", "--no-names", "add-flows", "br0", "-"], "\n".join(flows) + "\n")


def restart_switch(run: Run, node: NodeSpec) -> None:
    """Stop and start both daemons, as `systemctl restart openvswitch`: bridge and ports return, flows do not."""
    run(node.name, ["sh", "-c", _OVS_STOP], None)
    run(node.name, ["sh", "-c", _OVSDB_START + _VSWITCHD_START], None)


def add_pod(run: Run, node: NodeSpec, pod: Pod) -> Pod:
    """Make the pod's namespace and port. The pod again, with the port number the switch gave."""
    name = pod.name
    cable = f"ip link add eth0 address {pod.mac} netns {name} type veth peer name v-{name} netns {node.name}"
    prepare = [f"ip netns add {name}"] + ([f"ip netns exec {name} {_POD_SETUP_6}"] if pod.ip6 else [])
    run("root", ["sh", "-ec", "; ".join([*prepare, cable])], None)
    links = [
        "link set lo up",
        f"link set eth0 mtu {POD_MTU} up",
        f"address add {pod.ip}/{node.subnet.prefixlen} dev eth0",
        f"route add {CLUSTER_NETWORK} dev eth0",
        f"route add default via {node.gateway}",
    ]
    if pod.ip6 is not None and node.ipv6 is not None:
        links += [
            f"address add {pod.ip6}/128 dev eth0 nodad",
            f"route add {node.ipv6.gateway} dev eth0",
            f"route add default via {node.ipv6.gateway} dev eth0",
        ]
    run(name, ["ip", "-batch", "-"], "\n".join(links))
    plug = (
        f"ip link set v-{name} mtu {POD_MTU} up; ovs-vsctl --timeout=60 add-port br0 v-{name}; "
        f"ovs-vsctl --timeout=60 get interface v-{name} ofport"
    )
    ofport = int(run(node.name, ["sh", "-ec", plug], None))
    plugged = replace(pod, ofport=ofport)
    add_flows(run, node, sdn.pod_flows(plugged))
    return plugged


def remove_pod(run: Run, node: NodeSpec, pod: Pod) -> None:
    matches = "\n".join(sdn.pod_flow_matches(pod)) + "\n"
    run(node.name, ["ovs-ofctl", "-O", "OpenFlow13", "--no-names", "del-flows", "br0", "-"], matches)
    run(node.name, ["sh", "-ec", f"ovs-vsctl --timeout=60 del-port br0 v-{pod.name}; ip link del v-{pod.name}"], None)
    run("root", ["ip", "netns", "del", pod.name], None)


def set_uplink(run: Run, node: NodeSpec, state: str) -> None:
    """The node's cable to the outside, plugged ("up") or not ("down"), at the switch's end."""
    run("root", ["ip", "link", "set", f"v-{node.name}", state], None)


def unplug(run: Run, node: NodeSpec) -> None:
    """Both cables at once, as when the power goes: nobody hears of the node again."""
    run("root", ["ip", "-batch", "-"], f"link set v-{node.name} down\nlink set m-{node.name} down\n")


def destroy(run: Run, node: NodeSpec, pods: Iterable[Pod]) -> None:
    """Remove a node that is off, so that it can be built again from nothing."""
    name = node.name
    commands = [f"ip netns del {pod.name}" for pod in pods]
    commands += [f"ip link del v-{name}", f"ip link del m-{name}", f"ip netns del {name}", f"rm -rf /run/ovs/{name}"]
    run("root", ["sh", "-ec", "; ".join(commands)], None)


def _mac(node: NodeSpec) -> str:
    """Readable in a capture, and the same after the node was off: 02:00 and the address."""
    return "02:00:" + ":".join(f"{octet:02x}" for octet in node.address.packed)
