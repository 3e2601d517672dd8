"""ARP for IPv4 addresses and NDP for IPv6 ones, side by side: nobody waits for one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from egress.addresses import Address
from node_runner.drivers.arp import LinkArp
from node_runner.drivers.ndp import LinkNdp
from node_runner.drivers.ports import LinkFacts, ProbeTiming, askable

_DEFAULT_TIMING = ProbeTiming()


class LinkNeighbours:
    """The link of an interface, for addresses of both IP versions."""

    def __init__(self) -> None:
        self._arp = LinkArp()
        self._ndp = LinkNdp()

    def probe(
        self, interface: str, mac: str, addresses: Iterable[Address], timing: ProbeTiming = _DEFAULT_TIMING
    ) -> dict[Address, str]:
        """See ports.Arp."""
        four, six = _sorted(addresses)
        if not six:
            return self._arp.probe(interface, mac, four, timing)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(self._arp.probe, interface, mac, four, timing)
            return self._ndp.probe(interface, mac, six, timing) | other.result()

    def who_has(
        self, link: LinkFacts, source: Address, addresses: Iterable[Address], timing: ProbeTiming = _DEFAULT_TIMING
    ) -> dict[Address, str]:
        """See ports.Arp."""
        four, six = _sorted(addresses)
        by_source: dict[Address, list[Address]] = {}
        for address in four:
            if (own := askable(link, source, address)) is not None:
                by_source.setdefault(own, []).append(address)
        if not six and len(by_source) == 1:
            ((own, asked),) = by_source.items()
            return self._arp.who_has(link, own, asked, timing)
        with ThreadPoolExecutor(1 + len(by_source)) as pool:
            others = [pool.submit(self._arp.who_has, link, own, asked, timing) for own, asked in by_source.items()]
            found = self._ndp.who_has(link, source, six, timing) if six else {}
            for other in others:
                found |= other.result()
        return found

    def announce(self, interface: str, mac: str, addresses: Iterable[Address]) -> None:
        """See ports.Arp."""
        four, six = _sorted(addresses)
        self._arp.announce(interface, mac, four)
        self._ndp.announce(interface, mac, six)


def _sorted(addresses: Iterable[Address]) -> tuple[list[Address], list[Address]]:
    """Those of IPv4, and those of IPv6."""
    four: list[Address] = []
    six: list[Address] = []
    for address in addresses:
        (four if address.version == 4 else six).append(address)
    return four, six
