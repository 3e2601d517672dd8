"""Which network a cluster's signs lead to."""

import pytest

from egress.networks import Network, NetworkError, Signs, choose

NOTHING = Signs()
OURS = Signs(host_subnets=True)
SDN = Signs("OpenShiftSDN", cluster_networks=True, host_subnets=True)
OVN = Signs("OVNKubernetes", egress_ips=True)


@pytest.mark.parametrize(
    ("signs", "network"),
    [
        (NOTHING, Network.RUNNER),
        (OURS, Network.RUNNER),
        (SDN, Network.OPENSHIFT_SDN),
        (Signs(cluster_networks=True, host_subnets=True), Network.OPENSHIFT_SDN),  # OpenShift 3
        (OVN, Network.OVN_KUBERNETES),
        (Signs(egress_ips=True), Network.OVN_KUBERNETES),  # without OpenShift
        (Signs("OVNKubernetes", "", True, True, True), Network.OVN_KUBERNETES),  # what OpenShift SDN left behind
        (Signs("OVNKubernetes", "OVNKubernetes", egress_ips=True), Network.OVN_KUBERNETES),  # its MTU changes
        (Signs("Calico", host_subnets=True), Network.RUNNER),
    ],
)
def test_signs_of_one_network(signs: Signs, network: Network) -> None:
    assert choose("auto", signs) is network


@pytest.mark.parametrize(
    "signs",
    [
        Signs(host_subnets=True, egress_ips=True),
        Signs("OVNKubernetes", host_subnets=True, egress_ips=True),
        Signs("OpenShiftSDN", "OVNKubernetes", True, True, True),
        Signs(cluster_networks=True, host_subnets=True, egress_ips=True),
    ],
)
def test_signs_of_two_are_refused_and_a_setting_ends_it(signs: Signs) -> None:
    with pytest.raises(NetworkError, match=r"two would program the nodes: .* set HAWSE_NETWORK to runner"):
        choose("auto", signs)
    for network in Network:
        assert choose(network.value, signs) is network


@pytest.mark.parametrize(
    ("wish", "signs", "lacks"),
    [
        ("auto", Signs("OVNKubernetes"), "EgressIP"),
        ("auto", Signs("OpenShiftSDN"), "HostSubnet"),
        ("ovn-kubernetes", SDN, "EgressIP"),
        ("openshift-sdn", OVN, "HostSubnet"),
    ],
)
def test_a_network_without_its_kinds_is_refused(wish: str, signs: Signs, lacks: str) -> None:
    with pytest.raises(NetworkError, match=f"does not serve {lacks}"):
        choose(wish, signs)
