"""Who programs the nodes: Hawse's own runners, OpenShift SDN or OVN-Kubernetes. Pure.

One of them, never two: a second writer fights the first. The cluster says which by what it serves, and a setting may
overrule it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from egress.operations import PermanentError

AUTO = "auto"
"""The setting's value that leaves it to the cluster."""


class Network(StrEnum):
    """Who makes it so. All but `RUNNER` are native: the cluster's own network programs the nodes from objects."""

    RUNNER = "runner"
    OPENSHIFT_SDN = "openshift-sdn"
    OVN_KUBERNETES = "ovn-kubernetes"

    @property
    def native(self) -> bool:
        """Whether Hawse writes objects alone, and no runner of ours may be at work."""
        return self is not Network.RUNNER

    @property
    def known_as(self) -> str:
        """As people write it."""
        return {"runner": "Hawse's node runners", "openshift-sdn": "OpenShift SDN"}.get(self.value, "OVN-Kubernetes")

    @property
    def unseen(self) -> str:
        """What nobody can say of a cluster in this mode; "" where the runners say it all."""
        if not self.native:
            return ""
        return (
            f"{self.known_as} programs the nodes: objects and their status are shown; flows, rules and addresses on "
            "the nodes are not looked at"
        )


class NetworkError(PermanentError):
    """It cannot be said who programs the nodes, or whoever is named cannot; the message says what to set."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What a cluster shows of its network.

    `network_type` and `migrating_to` are those of the status of Network.config.openshift.io; "" where there is none.
    `cluster_networks` says whether ClusterNetwork is served, which OpenShift SDN alone has; `host_subnets` whether
    HostSubnet and NetNamespace are, which Hawse ships for its runners; `egress_ips` whether EgressIP is.
    """

    network_type: str = ""
    migrating_to: str = ""
    cluster_networks: bool = False
    host_subnets: bool = False
    egress_ips: bool = False


_TYPES = {"openshiftsdn": Network.OPENSHIFT_SDN, "ovnkubernetes": Network.OVN_KUBERNETES}
_SET = "set HAWSE_NETWORK to runner, openshift-sdn or ovn-kubernetes"


def choose(wish: str, signs: Signs) -> Network:
    """The network that `wish` (`auto`, or one by its name) and the `signs` lead to. NetworkError if none does, or two.

    A cluster that shows nothing is one for runners: their CRDs are on their way.
    """
    if wish != AUTO:
        return _served(Network(wish), signs, f"HAWSE_NETWORK is {wish}")
    found = _found(signs)
    if len(found) > 1:
        reasons = "; ".join(f"{network} would, for {reason}" for network, reason in found.items())
        raise NetworkError(f"two would program the nodes: {reasons}. Remove one, or {_SET}")
    for network, reason in found.items():
        return _served(network, signs, reason)
    return Network.RUNNER


def _found(signs: Signs) -> dict[Network, str]:
    """Every network that would apply, and why."""
    kind = _TYPES.get(signs.network_type.lower())
    later = _TYPES.get(signs.migrating_to.lower())
    found: dict[Network, str] = {}
    if kind is not None:
        found[kind] = f"Network.config.openshift.io says {signs.network_type}"
    if later is not None:
        found.setdefault(later, f"Network.config.openshift.io says that the cluster migrates to {signs.migrating_to}")
    if signs.host_subnets and not signs.cluster_networks:
        # Where ClusterNetwork is served these are OpenShift's own, which may outlive OpenShift SDN.
        found[Network.RUNNER] = "HostSubnet and NetNamespace are served without OpenShift SDN's ClusterNetwork"
    if kind is None:
        if signs.egress_ips:
            found.setdefault(Network.OVN_KUBERNETES, "EgressIP of k8s.ovn.org is served")
        if signs.cluster_networks:
            found.setdefault(Network.OPENSHIFT_SDN, "ClusterNetwork of network.openshift.io is served")
    return found


def _served(network: Network, signs: Signs, why: str) -> Network:
    """`network`, if the cluster serves what Hawse would write."""
    if network is Network.OVN_KUBERNETES and not signs.egress_ips:
        raise NetworkError(f"{why}, but the cluster does not serve EgressIP of k8s.ovn.org: {_SET}")
    if network is Network.OPENSHIFT_SDN and not signs.host_subnets:
        raise NetworkError(f"{why}, but the cluster does not serve HostSubnet and NetNamespace: {_SET}")
    return network
