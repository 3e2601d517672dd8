"""Who makes it so: between what should be, which the rest of `workers` works out, and the cluster's network.

`runner` is Hawse's own data plane; the two native ones write objects alone. A process has one of them for its life.
"""

from __future__ import annotations

from egress.networks import Network
from workers.context import Context
from workers.makers.maker import Maker
from workers.makers.openshift_sdn import OpenShiftSdn
from workers.makers.ovn_kubernetes import OvnKubernetes
from workers.makers.runner import Runner

__all__ = ["Maker", "of"]

_MAKERS: dict[Network, Maker] = {
    Network.RUNNER: Runner(),
    Network.OPENSHIFT_SDN: OpenShiftSdn(),
    Network.OVN_KUBERNETES: OvnKubernetes(),
}


def of(context: Context) -> Maker:
    """The maker of the cluster's network. NetworkError if none applies, or two; TransientError."""
    return _MAKERS[context.network()]
