"""What OpenShift SDN's master makes of objects: a NetNamespace for each namespace, and the egressIPs of those
HostSubnets that have egressCIDRs. It fills no status, for there is none, and says nowhere what a node could not do."""

from __future__ import annotations

import ipaddress
import zlib
from typing import Any

from lab.kube import Kube

Json = dict[str, Any]


class SdnController:
    """Brings NetNamespaces and HostSubnets to what the real one would. `sync` does it once."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    def sync(self) -> None:
        """Makes and removes NetNamespaces, then gives the nodes with egressCIDRs what these hold."""
        namespaces = {item["metadata"]["name"] for item in self._kube.list("Namespace")}
        there = {item["metadata"]["name"] for item in self._kube.list("NetNamespace")}
        for name in sorted(namespaces - there):
            netid = 0 if name == "default" else zlib.crc32(name.encode()) % 0xFFFFF0 + 10
            manifest = {"apiVersion": "network.openshift.io/v1", "kind": "NetNamespace", "metadata": {"name": name}}
            self._kube.create(manifest | {"netname": name, "netid": netid})
        for name in there - namespaces:
            self._kube.delete("NetNamespace", name)
        self._allocate()

    def _allocate(self) -> None:
        owners = {
            address: net["metadata"]["name"]
            for net in self._kube.list("NetNamespace")
            for address in net.get("egressIPs") or []
        }
        hosts = self._kube.list("HostSubnet")
        filled = [host for host in hosts if host.get("egressCIDRs")]
        by_hand = {text for host in hosts if host not in filled for text in host.get("egressIPs") or []}
        wanted: dict[str, list[str]] = {}
        for host in filled:
            wanted[host["host"]] = [
                text for text in host.get("egressIPs") or [] if text in owners and _holds(host, text)
            ]
        placed = {text for texts in wanted.values() for text in texts} | by_hand
        for text in sorted(owners.keys() - placed):
            fit = [
                host["host"]
                for host in filled
                if _holds(host, text) and owners[text] not in {owners[each] for each in wanted[host["host"]]}
            ]
            if fit:
                wanted[min(fit, key=lambda name: (len(wanted[name]), name))].append(text)
        for host in filled:
            if wanted[host["host"]] != (host.get("egressIPs") or []):
                self._kube.patch("HostSubnet", host["host"], {"egressIPs": wanted[host["host"]]})


def _holds(host: Json, text: str) -> bool:
    return any(ipaddress.ip_address(text) in ipaddress.ip_network(cidr) for cidr in host["egressCIDRs"])
