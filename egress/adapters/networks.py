"""Finds out who programs the nodes of a cluster, from what it serves. `egress.networks` has the rules."""

from __future__ import annotations

import threading

import msgspec
import structlog

from egress.adapters.cluster import Cluster, Kind, RefusedError
from egress.forms import learn
from egress.networks import Network, NetworkError, Signs, choose
from egress.operations import TransientError

_log = structlog.get_logger()


class _Migration(msgspec.Struct, rename="camel"):
    network_type: str = ""


class _Status(msgspec.Struct, rename="camel"):
    network_type: str = ""
    migration: _Migration | None = None


class _Network(msgspec.Struct):
    status: _Status | None = None


learn(_Network)


class Detector:
    """Says who programs the nodes: asked once, and kept for the life of the process.

    `wish` is the setting HAWSE_NETWORK. Where it says `runner` nothing is asked. Threads may share it.
    """

    def __init__(self, cluster: Cluster, wish: str) -> None:
        self._cluster = cluster
        self._wish = wish
        self._lock = threading.Lock()
        self._found: Network | None = Network.RUNNER if wish == Network.RUNNER else None

    def __call__(self) -> Network:
        """The network. NetworkError if none applies, or two; TransientError while the API server is away, or does not
        let this process ask: for some seconds after its start it knows of nobody's rights."""
        with self._lock:
            if self._found is None:
                try:
                    signs = read_signs(self._cluster)
                except RefusedError as error:
                    raise TransientError(f"the API server does not say who programs the nodes: {error}") from error
                self._found = choose(self._wish, signs)
                _log.info("network", network=self._found.value, wish=self._wish)
            return self._found


def read_signs(cluster: Cluster) -> Signs:
    """What the cluster shows of its network. NetworkError where its Network object may not be read."""
    openshift = cluster.resources("network.openshift.io/v1")
    signs = Signs(
        cluster_networks="clusternetworks" in openshift,
        host_subnets={"hostsubnets", "netnamespaces"} <= openshift,
        egress_ips="egressips" in cluster.resources("k8s.ovn.org/v1"),
    )
    if "networks" not in cluster.resources("config.openshift.io/v1"):
        return signs
    try:
        manifest = cluster.get(Kind.NETWORK, "cluster")
        status = msgspec.convert(manifest or {}, _Network).status or _Status()
    except (RefusedError, msgspec.ValidationError) as error:
        raise NetworkError(f"Network.config.openshift.io cluster cannot be read: {error}; set HAWSE_NETWORK") from None
    later = status.migration.network_type if status.migration is not None else ""
    return Signs(status.network_type, later, signs.cluster_networks, signs.host_subnets, signs.egress_ips)
