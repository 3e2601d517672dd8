"""One frozen settings object, read from the environment once per process. docs/settings.md explains each for users."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import msgspec

from egress.forms import learn
from egress.program import Layout

PREFIX = "HAWSE_"
_SERVICE_LINK = re.compile(
    r"\w+_(SERVICE_(HOST|PORT\w*)=.*|PORT(_[0-9]+_(TCP|UDP|SCTP))?(_(PROTO|PORT|ADDR)=.*|=\w+://.*))"
)
"""What Kubernetes puts into every pod's environment for a Service whose name begins with `hawse`."""


class SettingsError(ValueError):
    """An environment variable holds what it cannot mean; the message names the variable."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Every field is set by the environment variable of its name in capitals, after `HAWSE_`. Times are in seconds."""

    redis_url: str = "redis://127.0.0.1:6379/0"
    redis_timeout: float = 0.5
    """How long admission waits for Redis before it lets the namespace pass with a warning."""
    kubeconfig: str = ""
    """Path of a kubeconfig; empty means the service account of the pod we run in."""
    log_format: str = "json"
    """json or console."""
    log_level: str = "info"
    health_host: str = "0.0.0.0"  # noqa: S104 - probes and Prometheus come from other machines
    health_port: int = 8081
    """Where /metrics, /healthz and /readyz are served, over plain HTTP; 0 for nowhere."""

    listen_host: str = "0.0.0.0"  # noqa: S104 - a webhook is called from other machines
    listen_port: int = 8443
    tls_cert: str = ""
    tls_key: str = ""
    webhook_threads: int = 4
    drain_time: float = 10.0
    """How long the webhook goes on serving after SIGTERM, so that everybody has heard that it ends."""
    trusted_users: str = "system:serviceaccount:hawse-system:hawse-workers"
    """User names, separated by commas, whose writes are never refused: Hawse's own workers."""

    api_listen_host: str = "0.0.0.0"  # noqa: S104 - firewalls and ticket systems call from other machines
    api_listen_port: int = 8080
    """HAWSE_API_PORT would be what Kubernetes says of the Service hawse-api."""
    api_threads: int = 16
    api_listeners: int = 250
    anonymous: bool = False
    """Whether everybody may do everything with the API. Only where it listens on loopback: for a demonstration."""
    auth_proxies: str = ""
    """CIDRs, separated by commas, of the proxies whose word counts of who somebody is; empty for none."""
    auth_user_header: str = "X-Forwarded-User"
    auth_groups_header: str = "X-Forwarded-Groups"
    """The headers in which such a proxy names the user, and its groups, separated by commas."""
    api_actions_per_minute: int = 120
    """How many actions one user may ask the API for in a minute."""

    network: str = "auto"
    """Who programs the nodes, see `egress.networks`: runner, openshift-sdn, ovn-kubernetes; auto: what the cluster
    shows."""
    label_nodes: bool = False
    """Whether Hawse labels the nodes that pools select, so that OVN-Kubernetes may give them addresses."""
    namespace: str = ""
    """The namespace of Hawse's own objects; empty means that of the pod's service account, else hawse-system."""
    lease_duration: float = 15.0
    """After how long without a renewal another beat or watch may take the lead."""
    lease_renew_deadline: float = 10.0
    """After how long without a renewal the leader itself gives up: well before another may begin."""
    lease_retry: float = 2.0
    certificates: str = "own"
    """own: Hawse makes and rotates the webhook's certificates. external: somebody else does."""
    certificate_wait: float = 300.0
    """After how long every API server has surely seen a new authority, so that it may sign."""

    reconcile_interval: float = 15.0
    full_interval: float = 900.0
    """How long a reconcile that found nothing may be followed by others that look only whether anything has changed."""
    sweep_interval: float = 5.0
    reservation_lifetime: float = 60.0
    create_net_namespaces: bool = True
    """Whether Hawse makes the NetNamespace of a namespace that has none. Off where OpenShift SDN makes them."""
    fence_wait: float = 10.0
    """How long a new NetNamespace waits at most for the nodes to drop its NetID first."""
    status_interval: float = 5.0
    """How often the status of an address on its way is written at most. Ready and Failed are written at once; Ready may
    be late by 30 seconds where ten namespaces or more wait for their tasks."""
    report_wait: float = 10.0
    """How long a rebuilt table waits for the nodes to say what they hold before it counts them as holding nothing."""
    drain_cordoned: bool = False
    """Whether a cordoned node's addresses move elsewhere. If not it keeps them, and gets no more."""
    moves_per_minute: int = 20
    """How many addresses a minute are moved at most from nodes that live; 0 for none."""
    rejoin_after: float = 60.0
    """How long a lost node must have been back before it gets addresses that another node could have, and before
    anything moves for balance."""

    ticket_profiles: str = ""
    """Path of the YAML file of ticket profiles, see `egress.ticket_profiles`; empty for none."""
    ticket_attempts: int = 10
    """How often a ticket is tried that fails while others do not, before somebody must look at it."""
    ticket_retry_cap: float = 300.0
    """How long a ticket waits at most for its next try, unless the ticket system asks for more."""

    node_name: str = ""
    node_ip: str = ""
    bridge: str = "br0"
    vxlan_interface: str = "vxlan0"
    tun_interface: str = "tun0"
    cluster_networks: str = "10.128.0.0/14"
    """CIDRs of either IP version, separated by commas."""
    egress_table: int = 100
    next_table: int = 101
    flow_priority: int = 100
    masquerade_chain: str = "OPENSHIFT-MASQUERADE"
    iptables: str = "auto"
    """auto, nft or legacy."""
    check_interval: float = 2.0
    """How often a runner compares its node with its program when nothing wakes it."""
    heartbeat_interval: float = 0.2
    """How often a runner says that its node lives."""
    heartbeat_patience: float = 0.6
    """After how long without a heartbeat other nodes look for the node on the link."""
    runner_timeout: float = 120.0
    """After how long without a heartbeat a node counts as lost whose IP still answers, if none of its egress addresses
    does. What a node still answers for is never taken from it."""
    probe_count: int = 3
    probe_interval: float = 0.15
    probe_wait: float = 0.2
    refused_retry: float = 5.0
    """After how long a node asks again for an address that it was refused."""

    def layout(self) -> Layout:
        """The network layout these settings describe; SettingsError if a CIDR is none."""
        try:
            networks = tuple(ip_network(text.strip()) for text in self.cluster_networks.split(","))
        except ValueError as error:
            raise SettingsError(f"{PREFIX}CLUSTER_NETWORKS: {error}") from None
        return Layout(networks, self.egress_table, self.next_table, self.flow_priority, self.masquerade_chain)

    def proxies(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks of `auth_proxies`; SettingsError if a CIDR is none."""
        try:
            return tuple(ip_network(text.strip()) for text in self.auth_proxies.split(",") if text.strip())
        except ValueError as error:
            raise SettingsError(f"{PREFIX}AUTH_PROXIES: {error}") from None


learn(Settings)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings in `environ`; SettingsError names the variable that is wrong or unknown."""
    names = {field.name for field in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in names and _SERVICE_LINK.fullmatch(f"{variable}={text}"):
            continue
        if name not in names:
            raise SettingsError(f"{variable} is not a setting of Hawse; docs/settings.md lists them")
        values[name] = text
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        message = str(error)
        for name in values:
            message = message.replace(f"`$.{name}`", f"{PREFIX}{name.upper()}")
        raise SettingsError(message) from None
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    """SettingsError where a value of the right type cannot be meant."""
    for name, (pattern, meaning) in _FORMS.items():
        text = getattr(settings, name)
        if not re.fullmatch(pattern, text, re.ASCII):
            raise SettingsError(f"{PREFIX}{name.upper()} is {text!r}; give it {meaning}")
    for name in _POSITIVE:
        if not 0 < getattr(settings, name) < float("inf"):
            raise SettingsError(f"{PREFIX}{name.upper()} must be more than 0")
    for name, (least, most, meaning) in _WITHIN.items():
        if not least <= getattr(settings, name) <= most:
            raise SettingsError(f"{PREFIX}{name.upper()} must be {meaning}")
    if settings.anonymous and not _is_loopback(settings.api_listen_host):
        raise SettingsError(
            f"{PREFIX}ANONYMOUS lets everybody do everything: only where {PREFIX}API_LISTEN_HOST is a loopback address"
        )
    settings.proxies()
    if settings.heartbeat_patience < 2 * settings.heartbeat_interval:
        raise SettingsError(
            f"{PREFIX}HEARTBEAT_PATIENCE must be at least twice {PREFIX}HEARTBEAT_INTERVAL: a late one is no death"
        )
    # A renewal reads and then writes, each within one retry: the last one must be over before another may begin.
    if settings.lease_renew_deadline + 2 * settings.lease_retry >= settings.lease_duration:
        raise SettingsError(
            f"{PREFIX}LEASE_DURATION must be more than {PREFIX}LEASE_RENEW_DEADLINE "
            f"and twice {PREFIX}LEASE_RETRY together"
        )


_INTERFACE = (r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,14}", "the name of an interface, of at most 15 characters")
_FORMS = {
    "redis_url": (
        r"rediss?://([^/?#@]*@)?([^/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[0-9]*)?(\?.*)?|unix://.+",
        "redis://HOST:PORT/DB, rediss://... or unix:///PATH",
    ),
    "log_format": ("json|console", "json or console"),
    "log_level": ("(?i:debug|info|warning|error|critical)", "debug, info, warning, error or critical"),
    "certificates": ("own|external", "own or external"),
    "iptables": ("auto|nft|legacy", "auto, nft or legacy"),
    "network": ("auto|runner|openshift-sdn|ovn-kubernetes", "auto, runner, openshift-sdn or ovn-kubernetes"),
    "bridge": _INTERFACE,
    "vxlan_interface": _INTERFACE,
    "tun_interface": _INTERFACE,
    "namespace": (r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?|", "the name of a namespace"),
    "masquerade_chain": (r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,27}", "the name of a chain, of at most 28 characters"),
}
"""The form of each setting that is not any text: what it must match as a whole, and how to say so."""
_POSITIVE = (
    "redis_timeout", "lease_duration", "lease_renew_deadline", "lease_retry", "certificate_wait",
    "reconcile_interval", "full_interval", "sweep_interval", "check_interval", "refused_retry",
    "ticket_retry_cap",
    "heartbeat_interval", "heartbeat_patience", "runner_timeout",
)  # fmt: skip
_WITHIN = {
    "listen_port": (0, 65535, "a port, 0 to 65535"),
    "health_port": (0, 65535, "a port, 0 to 65535"),
    "api_listen_port": (0, 65535, "a port, 0 to 65535"),
    "api_threads": (1, 1000, "1 to 1000"),
    "api_listeners": (0, 2000, "0 to 2000"),
    "api_actions_per_minute": (1, 100000, "1 to 100000"),
    "drain_time": (0.0, 3600.0, "0 to 3600"),
    "moves_per_minute": (0, 6000, "0 to 6000"),
    "ticket_attempts": (1, 1000, "1 to 1000"),
    "rejoin_after": (0.0, 86400.0, "0 to 86400"),
}
"""The bounds of each setting that has two, and how to say them."""
