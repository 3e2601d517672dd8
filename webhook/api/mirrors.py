"""What `hawse-api` knows of the cluster's objects without asking."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from egress.adapters import manifests
from egress.adapters.cluster import Cluster, Kind, Manifest
from egress.adapters.mirror import Mirror, Snapshot
from egress.objects import EgressAddress, EgressPool, PoolHeader
from webhook.api.address_list import Entry, Tenant, entry_of

_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool as its object says it. `spec` is None where that cannot be read."""

    header: PoolHeader
    spec: EgressPool | None


class Entries:
    """What lists ask of addresses: what else changes of an object is no change."""

    def __init__(self, claims: Mirror[EgressAddress]) -> None:
        self._claims = claims
        self._lock = threading.Lock()
        self._made_of: Snapshot[EgressAddress] = Snapshot(-1)
        self._made: Snapshot[Entry | None] = Snapshot()

    def snapshot(self) -> Snapshot[Entry | None]:
        """All entries and the version that they make up."""
        claims = self._claims.snapshot()
        with self._lock:
            if claims.version > self._made_of.version:
                self._make(claims)
            return self._made

    def _make(self, claims: Snapshot[EgressAddress]) -> None:
        before, known = self._made_of.items, self._made.items
        items = {
            # A claim that is the very same is not looked at again: one of ten thousand changes at a time.
            name: known[name] if before.get(name) is claim else entry_of(claim)
            for name, claim in claims.items.items()
        }
        if items != known or self._made_of.version < 0:
            self._made = Snapshot(self._made.version + 1, MappingProxyType(items))
        self._made_of = claims


@dataclass(frozen=True)
class Mirrors:
    """Addresses, namespaces (as far as lists ask of them) and pools."""

    claims: Mirror[EgressAddress]
    tenants: Mirror[Tenant]
    pools: Mirror[Pool]
    addresses: Entries = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "addresses", Entries(self.claims))

    @classmethod
    def of(cls, cluster: Cluster) -> Mirrors:
        """Mirrors of `cluster`, which know nothing before `start`."""
        return cls(
            Mirror(cluster, Kind.EGRESS_ADDRESS, lambda manifest: manifests.egress_address(manifest, strict=True)),
            Mirror(cluster, Kind.NAMESPACE, _tenant),
            Mirror(cluster, Kind.EGRESS_POOL, _pool),
        )

    @property
    def all(self) -> tuple[Mirror[EgressAddress], Mirror[Tenant], Mirror[Pool]]:
        """Each of them."""
        return self.claims, self.tenants, self.pools

    @property
    def versions(self) -> Mapping[str, int]:
        """The version of each kind: another one means that something is different."""
        return {mirror.kind.label: mirror.version for mirror in self.all}

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


def _pool(manifest: Manifest) -> Pool:
    try:
        spec = manifests.egress_pool(manifest)
    except manifests.ManifestError:
        spec = None
    return Pool(manifests.pool_header(manifest), spec)


def _tenant(manifest: Manifest) -> Tenant:
    namespace = manifests.namespace(manifest)
    return Tenant(namespace.uid, namespace.labels)
