"""What ovn-kubernetes' cluster manager makes of EgressIP objects: which node gets which address, and what it says.

It follows the rules of the real one as its source has them: nodes with the label, ready ones, the least laden first; on
a network that holds the address; one address of an EgressIP on a node; a node's own IP, and an address that another
EgressIP has, end the whole object's turn. What has a node keeps it while that node may host it.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any

from lab.kube import Kube, KubeError

Json = dict[str, Any]
LABEL = "k8s.ovn.org/egress-assignable"
HOST_CIDRS = "k8s.ovn.org/host-cidrs"


class OvnController:
    """Brings the status of every EgressIP to what the real one would. `sync` does it once."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self.events: list[tuple[str, str]] = []
        """The reason of each warning, and the EgressIP that it is about; they are Events in the cluster, too."""

    def sync(self) -> int:
        """How many objects it changed."""
        nodes = {node["metadata"]["name"]: node for node in self._kube.list("Node")}
        objects = sorted(self._kube.list("EgressIP"), key=lambda item: item["metadata"]["creationTimestamp"])
        load: dict[str, set[str]] = {name: set() for name in nodes if _assignable(nodes[name])}
        owners: dict[str, str] = {}
        kept = {}
        for item in objects:
            name = item["metadata"]["name"]
            kept[name] = [each for each in _items(item) if _stays(each, item, nodes)]
            for each in kept[name]:
                owners.setdefault(each["egressIP"], name)
                load[each["node"]].add(each["egressIP"])
        changed = 0
        for item in objects:
            name = item["metadata"]["name"]
            items = [*kept[name], *self._assign(name, item, kept[name], nodes, load, owners)]
            if items != _items(item) or "status" not in item:
                changed += self._write(name, items)
        return changed

    def _write(self, name: str, items: list[Json]) -> bool:
        try:
            self._kube.patch("EgressIP", name, {"status": {"items": items}})
        except KubeError as error:
            if error.code != 404:  # deleted meanwhile
                raise
            return False
        return True

    def _assign(
        self, name: str, item: Json, kept: list[Json], nodes: dict[str, Json], load: dict[str, set[str]],
        owners: dict[str, str],
    ) -> list[Json]:  # fmt: skip
        missing = [text for text in item["spec"]["egressIPs"] if text not in {each["egressIP"] for each in kept}]
        used = {each["node"] for each in kept}
        found: list[Json] = []
        if not missing:
            return found
        if not load:
            self._warn("NoMatchingNodeFound", name)
            return found
        for text in missing:
            try:
                address = ipaddress.ip_address(text)
            except ValueError:
                self._warn("InvalidEgressIP", name)
                return found
            if any(str(address) in _ips(node) for node in nodes.values()):
                self._warn("EgressIPConflict", name)
                return found
            if owners.get(str(address), name) != name:
                self._warn("UnsupportedRequest", name)
                return found
            for node in sorted(load, key=lambda each: (len(load[each]), each)):
                if node in used or not any(address in network for network in _networks(nodes[node])):
                    continue
                found.append({"node": node, "egressIP": str(address)})
                used.add(node)
                load[node].add(str(address))
                owners[str(address)] = name
                break
        if not found:
            self._warn("NoMatchingNodeFound", name)
        elif len(found) < len(missing):
            self._warn("UnassignedRequest", name)
        return found

    def _warn(self, reason: str, name: str) -> None:
        self.events.append((reason, name))
        about = {"kind": "EgressIP", "name": name}
        manifest = {"apiVersion": "v1", "kind": "Event", "metadata": {"generateName": f"{name}."}}
        self._kube.create(manifest | {"involvedObject": about, "reason": reason, "type": "Warning", "message": reason})


def add_node(kube: Kube, name: str, cidr: str, *others: str, assignable: bool = True) -> None:
    """A ready node as ovn-kubernetes leaves it: with its address on the outside link, and those on other networks."""
    ips = [text.partition("/")[0] for text in (cidr, *others)]
    metadata = {
        "name": name,
        "labels": {LABEL: ""} if assignable else {},
        "annotations": {HOST_CIDRS: json.dumps([cidr, *others])},
    }
    status = {
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        "addresses": [{"type": "InternalIP", "address": ip} for ip in ips],
    }
    kube.create({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status})


def _items(item: Json) -> list[Json]:
    return list((item.get("status") or {}).get("items") or [])


def _stays(each: Json, item: Json, nodes: dict[str, Json]) -> bool:
    node = nodes.get(each["node"])
    address = ipaddress.ip_address(each["egressIP"])
    wanted = each["egressIP"] in item["spec"]["egressIPs"]
    return wanted and node is not None and _assignable(node) and any(address in net for net in _networks(node))


def _assignable(node: Json) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or []
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and LABEL in (node["metadata"].get("labels") or {})


def _networks(node: Json) -> list[Any]:
    texts = json.loads((node["metadata"].get("annotations") or {}).get(HOST_CIDRS, "[]"))
    return [ipaddress.ip_network(text, strict=False) for text in texts]


def _ips(node: Json) -> set[str]:
    return {each["address"] for each in (node.get("status") or {}).get("addresses") or []}
