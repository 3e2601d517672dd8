"""What a maker does. The words are those of the objects that Hawse began with: a HostSubnet is a node with its own IP
and what it hosts, a NetNamespace what a namespace is to leave with, whatever objects of the cluster say so."""

from __future__ import annotations

from typing import Protocol

from egress.adapters.cluster import Kind
from egress.addresses import Address
from egress.objects import HostSubnet, Namespace, NetNamespace
from workers.context import Context


class Maker(Protocol):
    """Makes it so on one kind of network. What it knows is in the cluster and the ledger."""

    @property
    def watched(self) -> tuple[Kind, ...]:
        """The kinds whose changes may give work."""

    def nodes(self, context: Context) -> list[HostSubnet]:
        """The nodes: their own IPs, and what they host. A node with several IPs may be listed for each."""

    def bindings(self, context: Context) -> list[NetNamespace]:
        """What every namespace is to leave with, as the objects say."""

    def binding(self, context: Context, name: str) -> NetNamespace | None:
        """The same of one namespace."""

    def bind(
        self,
        context: Context,
        namespace: Namespace,
        there: NetNamespace | None,
        addresses: tuple[Address, ...],
        former: list[str],
        *,
        returning: bool,
    ) -> bool:
        """Lets the namespace leave with `addresses` and what an admin has set by hand, without `former` ones, in one
        write, and asks for publishing what it wrote. Whether it wrote. `there` is its binding; `returning` says that
        it had a claim before.

        PermanentError where it cannot be, until somebody changes something; TransientError where it cannot be yet.
        """

    def unbind(self, context: Context, name: str, addresses: list[str]) -> None:
        """Takes `addresses` out of a namespace's binding."""

    def end(self, context: Context, name: str, addresses: list[str]) -> None:
        """Ends the binding of a namespace that is gone, of which `addresses` are Hawse's."""

    def place(self, context: Context) -> int:
        """Gives addresses a node, as far as that is Hawse's to choose, and answers who wishes for another. How many got
        one."""

    def publish(self, context: Context) -> int:
        """Brings what the nodes follow, and the status of the addresses, to what the objects say. How many rows of the
        nodes' table changed."""

    def failover(self, context: Context) -> None:
        """Judges which nodes are lost, as far as that is Hawse's to judge."""
