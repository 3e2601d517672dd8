"""What `hawse-api` knows of the cluster's objects without asking."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from egress.adapters import manifests
from egress.adapters.cluster import Cluster, Kind, Manifest
from egress.adapters.mirror import Mirror
from webhook.api.address_list import Entry, Tenant, entry_of

_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Mirrors:
    """Addresses, namespaces and pools, as far as lists ask of them: what else changes of an object is no change."""

    addresses: Mirror[Entry | None]
    tenants: Mirror[Tenant]
    pools: Mirror[str]

    @classmethod
    def of(cls, cluster: Cluster) -> Mirrors:
        """Mirrors of `cluster`, which know nothing before `start`."""
        return cls(
            Mirror(cluster, Kind.EGRESS_ADDRESS, _entry),
            Mirror(cluster, Kind.NAMESPACE, _tenant),
            Mirror(cluster, Kind.EGRESS_POOL, lambda manifest: str(manifest["metadata"]["name"])),
        )

    @property
    def all(self) -> tuple[Mirror[Entry | None], Mirror[Tenant], Mirror[str]]:
        """Each of them."""
        return self.addresses, self.tenants, self.pools

    def start(self, stop: threading.Event) -> None:
        """Begins, in threads, until `stop`."""
        for mirror in self.all:
            mirror.start(stop)

    def synced(self) -> bool:
        """Whether all objects were read once."""
        return all(mirror.synced() for mirror in self.all)

    def verdict(self) -> str | None:
        """Why something is not known yet, or None."""
        return next((verdict for mirror in self.all if (verdict := mirror.verdict())), None)

    def alive(self) -> str | None:
        """Why something is not kept up any more, or None."""
        return next((verdict for mirror in self.all if (verdict := mirror.alive())), None)

    def wait(self, seconds: float) -> bool:
        """Whether all objects are read within `seconds`."""
        deadline = time.monotonic() + seconds
        while not (synced := self.synced()) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
        return synced


def _entry(manifest: Manifest) -> Entry | None:
    return entry_of(manifests.egress_address(manifest, strict=True))


def _tenant(manifest: Manifest) -> Tenant:
    namespace = manifests.namespace(manifest)
    return Tenant(namespace.uid, namespace.labels)
