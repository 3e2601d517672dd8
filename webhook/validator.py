"""The validating webhooks: reads what the ledger knows, and lets `webhook.validation` judge."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import TypeVar

import structlog

from egress import pools
from egress.adapters import manifests
from egress.adapters.ledger import Ledger, NotReadyError, Offer, name_holder, request_holder
from egress.addresses import addresses_of
from egress.objects import ADDRESSES_ANNOTATION, OPERATION_ANNOTATION
from egress.operations import TransientError
from webhook import review, validation
from webhook.admission import CHANGED, FORGED
from webhook.review import Answer, Manifest, NamespaceObject, Request
from webhook.validation import Facts, RefusedError

T = TypeVar("T")
_log = structlog.get_logger()
UNCHECKED = "Hawse cannot reach its ledger now: this was not compared with what others have"


@dataclass(frozen=True, slots=True)
class Validator:
    """Answers the requests of the validating webhooks. `trusted_users`, Hawse's own workers, may do everything."""

    ledger: Ledger
    trusted_users: AbstractSet[str]
    cluster_networks: tuple[IPv4Network | IPv6Network, ...] = ()

    def namespace(self, request: Request[NamespaceObject]) -> Answer:
        """The last word on a namespace's addresses annotation, when every mutating webhook has had its own."""
        after = (request.object or NamespaceObject()).annotations.get(ADDRESSES_ANNOTATION)
        before = (request.old_object or NamespaceObject()).annotations.get(ADDRESSES_ANNOTATION)
        if after == before or request.object is None or self._trusts(request):
            return review.allow(request.uid)
        name = request.name or request.object.metadata.name
        if pools.is_system(name):
            return review.allow(request.uid)
        if request.operation != "CREATE":
            return review.deny(request.uid, CHANGED)
        try:
            right = self._is_given(name, request.object.annotations)
        except TransientError as error:
            _log.warning("not validated", resource="namespaces", name=name, error=str(error))
            return review.allow(request.uid, warnings=[UNCHECKED])
        if not right:
            _log.warning("refused", resource="namespaces", name=name, addresses=after, user=request.user_info.username)
            return review.deny(request.uid, FORGED)
        return review.allow(request.uid)

    def _is_given(self, name: str, annotations: Mapping[str, str]) -> bool:
        """Whether these annotations of a new namespace are what Hawse gave it. TransientError where that is not known.

        What it gave a moment ago may have been forgotten since. What a person writes does not come so far: the mutating
        webhook takes it away. And should it, the workers do, for no claim supports it.
        """
        holders = [name_holder(name)]
        if OPERATION_ANNOTATION in annotations:  # it had no name yet when it was given its addresses
            holders.append(request_holder(annotations[OPERATION_ANNOTATION]))
        right = validation.namespace_addresses(annotations, self.ledger.given(holders))
        if not right and self.ledger.is_index_new():
            raise NotReadyError("the index has just been built")
        return right

    def object(self, resource: str, request: Request[Manifest]) -> Answer:
        """The answer for an object of `resource`, one of RESOURCES."""
        if self._trusts(request):
            return review.allow(request.uid)
        try:
            warnings = _JUDGES[resource](self, request)
        except (RefusedError, manifests.ManifestError) as error:
            who = request.user_info.username
            _log.info("refused", resource=resource, name=request.name, user=who, error=str(error))
            return review.deny(request.uid, str(error))
        return review.allow(request.uid, warnings=warnings)

    def _trusts(self, request: Request[T]) -> bool:
        return request.user_info.username in self.trusted_users

    def _net_namespace(self, request: Request[Manifest]) -> list[str]:
        new = manifests.net_namespace(request.object)
        old = _read(manifests.net_namespace, request.old_object)
        mentioned = [*new.egress_ips, *(old.egress_ips if old else ())]
        facts, warnings = self._facts(mentioned, table=bool(mentioned))
        return validation.net_namespace(new, old, facts) + warnings

    def _host_subnet(self, request: Request[Manifest]) -> list[str]:
        new = manifests.host_subnet(request.object)
        old = _read(manifests.host_subnet, request.old_object)
        facts, warnings = self._facts(new.egress_ips, node=new.name)
        return validation.host_subnet(new, old, facts) + warnings

    def _egress_pool(self, request: Request[Manifest]) -> list[str]:
        old = _read(manifests.egress_pool, request.old_object)
        if request.operation == "DELETE":
            facts, warnings = self._facts(None)
            return validation.pool_deleted(old, facts) + warnings if old is not None else warnings
        new = manifests.egress_pool(request.object, strict=True)
        facts, warnings = self._facts(None)
        return validation.pool(new, old, facts, self.cluster_networks) + warnings

    def _egress_address(self, request: Request[Manifest]) -> list[str]:
        new = manifests.egress_address(request.object, strict=True)
        old = _read(manifests.egress_address, request.old_object)
        facts, warnings = self._facts([new.address])
        return validation.egress_address(new, old, facts) + warnings

    def _facts(self, texts: Iterable[str] | None, *, table: bool = False, node: str = "") -> tuple[Facts, list[str]]:
        """What the ledger knows of the addresses in `texts` (None: who has any), with the nodes' `table` and `node`'s
        link if they matter; nothing and a warning if it cannot be reached."""
        try:
            return self._known(texts, table=table, node=node)
        except TransientError as error:
            _log.warning("not validated", error=str(error))
            return Facts(), [UNCHECKED]

    def _known(self, texts: Iterable[str] | None, *, table: bool, node: str) -> tuple[Facts, list[str]]:
        offer: Offer = self.ledger.offer()
        addresses = addresses_of(texts or ())
        entries = self.ledger.usage() if texts is None else self.ledger.entries(addresses)
        listed = self.ledger.listed(addresses) if addresses else {}
        # Not yet known: what the index says for sure is said all the same.
        warnings = [UNCHECKED] if listed is None else []
        rows = self.ledger.read_table().rows.values() if table else ()
        netids = {row.netid: row.namespace for row in rows if row is not None and not row.former}
        report = self.ledger.reports([node]).get(node) if node else None
        texts_of = (report.link, *report.other_links) if report is not None and report.link else ()
        links = {node: tuple(map(ipaddress.ip_interface, texts_of))}
        return Facts(offer.pools, offer.node_ips, entries, listed or {}, netids, links), warnings


def _read(read: Callable[[object], T], manifest: Manifest | None) -> T | None:
    """The object before the change; None if there was none, or none that can be read: then all of it is judged anew."""
    try:
        return read(manifest) if manifest is not None else None
    except manifests.ManifestError:
        return None


Judge = Callable[[Validator, Request[Manifest]], list[str]]
"""Gives the warnings for a request. RefusedError or ManifestError if it must not pass."""
_JUDGES: dict[str, Judge] = {
    "netnamespaces": Validator._net_namespace,
    "hostsubnets": Validator._host_subnet,
    "egresspools": Validator._egress_pool,
    "egressaddresses": Validator._egress_address,
}
RESOURCES = {
    "netnamespaces": manifests.OPENSHIFT_GROUP,
    "hostsubnets": manifests.OPENSHIFT_GROUP,
    "egresspools": manifests.GROUP,
    "egressaddresses": manifests.GROUP,
}
"""What is validated beside namespaces: the resource and its API group."""
