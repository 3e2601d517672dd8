"""Hawse's own data plane: HostSubnet, NetNamespace, and the table that the node runners follow."""

from __future__ import annotations

from egress.adapters.cluster import Kind
from egress.addresses import Address
from egress.objects import HostSubnet, Namespace, NetNamespace
from workers import binding, failover, placing, publishing
from workers.context import Context


class Runner:
    """See `workers.makers.maker.Maker`; `binding`, `placing`, `publishing` and `failover` do the work."""

    watched = (
        Kind.EGRESS_POOL, Kind.HOST_SUBNET, Kind.NET_NAMESPACE, Kind.NAMESPACE, Kind.EGRESS_ADDRESS, Kind.NODE,
    )  # fmt: skip

    def nodes(self, context: Context) -> list[HostSubnet]:
        return context.host_subnets()

    def bindings(self, context: Context) -> list[NetNamespace]:
        return context.net_namespaces()

    def binding(self, context: Context, name: str) -> NetNamespace | None:
        return binding.net_namespace(context, name)

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
        return binding.bind(context, namespace, there, addresses, former, returning=returning)

    def unbind(self, context: Context, name: str, addresses: list[str]) -> None:
        binding.unbind(context, name, addresses)

    def end(self, context: Context, name: str, addresses: list[str]) -> None:
        binding.end(context, name, addresses)

    def place(self, context: Context) -> int:
        return len(placing.run(context).nodes)

    def publish(self, context: Context) -> int:
        return publishing.run(context)

    def failover(self, context: Context) -> None:
        failover.run(context)
