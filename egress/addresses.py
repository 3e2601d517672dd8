"""Egress addresses: parsing, ranges, object names, and the packet mark of an address."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
VERSIONS = (4, 6)

KUBE_PROXY_BITS = 0x4000 | 0x8000
"""Mark bits that kube-proxy owns: 0x4000 asks for masquerade, 0x8000 for a drop. No mark of ours may hold either."""

_MARK_MASK = 0xFFFFFFFF
_PROBE_STEP = 0x00010000
"""What a mark is advanced by when it is taken: it leaves the sixteen bits that hold kube-proxy's alone."""


class AddressError(ValueError):
    """A text that is not an address, a CIDR or a range; the message quotes it and says what was expected."""


@lru_cache(maxsize=1 << 16)
def parse_address(text: str) -> Address:
    """The address that `text` denotes; AddressError unless it is a usable unicast IPv4 or IPv6 address.

    The same few texts come again and again, in objects, rows and reports: those of a big cluster are remembered.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise AddressError(f"{text!r} is not an IP address") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise AddressError(f"{text!r} carries a zone; an egress address has none")
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        raise AddressError(f"{text!r} is an IPv4 address in IPv6's form; write {address.ipv4_mapped}")
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise AddressError(f"{text!r} is not a unicast address that a node could hold")
    if isinstance(address, IPv4Address) and address == IPv4Address("255.255.255.255"):
        raise AddressError(f"{text!r} is the broadcast address")
    return address


def make_address(value: int, version: int) -> Address:
    """The address of IP `version` (4 or 6) whose integer value is `value`."""
    return IPv4Address(value) if version == 4 else IPv6Address(value)


def object_name(address: Address) -> str:
    """The name of the EgressAddress object that holds `address`: itself, or for IPv6 its expanded form with dashes."""
    return str(address) if isinstance(address, IPv4Address) else address.exploded.replace(":", "-")


def from_object_name(name: str) -> Address:
    """The address an EgressAddress object's name denotes; AddressError if the name is not one `object_name` gives."""
    address = parse_address(name.replace("-", ":") if "-" in name else name)
    if object_name(address) != name:
        raise AddressError(
            f"{name!r} is not the canonical object name of {address}; it would be {object_name(address)}"
        )
    return address


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """An inclusive range of addresses of one IP version, as integers."""

    version: int
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1

    @property
    def size(self) -> int:
        """How many addresses; unlike len() it has no upper bound, which an IPv6 range needs."""
        return self.last - self.first + 1

    def __contains__(self, address: Address) -> bool:
        return address.version == self.version and self.first <= int(address) <= self.last

    def __iter__(self) -> Iterator[Address]:
        return (make_address(value, self.version) for value in range(self.first, self.last + 1))

    def overlaps(self, other: Range) -> bool:
        """Whether both hold an address."""
        return self.version == other.version and self.first <= other.last and other.first <= self.last

    def __str__(self) -> str:
        first, last = make_address(self.first, self.version), make_address(self.last, self.version)
        return str(first) if first == last else f"{first}-{last}"


def parse_network(text: str, *, host_bits: bool = False) -> IPv4Network | IPv6Network:
    """The network that the CIDR `text` denotes; AddressError unless it is one. Host bits only with `host_bits`."""
    try:
        network = ipaddress.ip_network(text, strict=not host_bits)
    except ValueError as error:
        raise AddressError(f"{text!r} is not a CIDR such as 192.168.1.0/24: {error}") from None
    if text.partition("/")[2] != str(network.prefixlen):  # a bare address, a netmask, leading zeros
        raise AddressError(f"{text!r} is not a CIDR such as 192.168.1.0/24")
    return network


def parse_block(text: str) -> Range:
    """All addresses that a CIDR, an `A-B` range or a single address names, a CIDR's network and broadcast included.

    AddressError if that is none of them, or if a node could not hold one of its addresses.
    """
    first_text, dash, last_text = text.partition("-")
    if dash:
        first, last = parse_address(first_text.rstrip(" ")), parse_address(last_text.lstrip(" "))
        if first.version != last.version:
            raise AddressError(f"{text!r} mixes IPv4 and IPv6")
        if int(first) > int(last):
            raise AddressError(f"{text!r} ends before it begins")
        block = Range(first.version, int(first), int(last))
    elif "/" in text:
        block = _block(parse_network(text))
    else:
        address = parse_address(text)
        block = Range(address.version, int(address), int(address))
    for never in _NEVER:
        if block.overlaps(never):
            raise AddressError(f"{text!r} holds {never}, which no node could hold")
    return block


def parse_range(text: str) -> Range:
    """The assignable addresses of a CIDR, an `A-B` range or a single address.

    A CIDR's network and broadcast address (IPv4, up to /30) and subnet-router anycast address (IPv6, up to /126) are
    left out; a range means every address it names.
    """
    block = parse_block(text)
    if "/" not in text or block.size <= 2:
        return block
    return Range(block.version, block.first + 1, block.last - 1 if block.version == 4 else block.last)


def _block(network: IPv4Network | IPv6Network) -> Range:
    return Range(network.version, int(network.network_address), int(network.broadcast_address))


_NEVER = tuple(
    _block(ipaddress.ip_network(text))
    for text in ("0.0.0.0/32", "127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::/127", "ff00::/8")
)
"""What `parse_address` refuses: unspecified, loopback, multicast, broadcast."""


def subtract(ranges: Iterable[Range], holes: Iterable[Range]) -> tuple[Range, ...]:
    """`ranges` as sorted, disjoint ranges, without any address of `holes`."""
    result: list[Range] = []
    for piece in sorted(ranges):
        if result and result[-1].version == piece.version and piece.first <= result[-1].last + 1:
            result[-1] = Range(piece.version, result[-1].first, max(result[-1].last, piece.last))
        else:
            result.append(piece)
    for hole in holes:
        kept: list[Range] = []
        for piece in result:
            if not piece.overlaps(hole):
                kept.append(piece)
                continue
            if piece.first < hole.first:
                kept.append(Range(piece.version, piece.first, hole.first - 1))
            if hole.last < piece.last:
                kept.append(Range(piece.version, hole.last + 1, piece.last))
        result = kept
    return tuple(result)


def preferred_mark(address: Address) -> int:
    """The mark an address gets unless another address on the node has it already.

    An IPv4 address is its own mark where that keeps kube-proxy's bits clear (192.168.1.102 is 0xc0a80166). Otherwise
    the two bits are folded into the two highest, so that addresses of one pool still get distinct marks. An IPv6
    address folds its four words together first.
    """
    value = int(address)
    if address.version == 6:
        value = (value ^ value >> 32 ^ value >> 64 ^ value >> 96) & _MARK_MASK
    return (value & ~KUBE_PROXY_BITS) ^ ((value & KUBE_PROXY_BITS) << 16)


def assign_marks(addresses: Iterable[Address], previous: Mapping[Address, int] | None = None) -> dict[Address, int]:
    """A mark for each of a node's addresses: 32 bits, unique on the node, never 0, without kube-proxy's bits.

    An address keeps the mark it has in `previous` (what the node's rules hold now) whatever comes or goes beside it:
    a mark that changed hands would for a moment send one namespace's packets out under another's address. Next come
    addresses that are their own mark, then the others; the result does not depend on the order of `addresses`.
    """
    wanted = sorted(set(addresses), key=lambda address: (address.version, int(address)))
    marks: dict[Address, int] = {}
    taken = {0}
    if previous:
        # The mark of an address that goes is free once its rule is gone, which is only after this pass. There may be
        # thousands beside a wanted one: marks are counted, for to hash each address would take long, and not even that
        # where none of the wanted has one.
        mine = {address: previous[address] for address in wanted if address in previous}
        if mine:
            held = Counter(previous.values())
            held.subtract(mine.values())
            taken.update(mark for mark, holders in held.items() if holders)
        else:
            taken.update(previous.values())
        for address, mark in mine.items():
            if mark not in taken and not mark & KUBE_PROXY_BITS and mark <= _MARK_MASK:
                marks[address] = mark
                taken.add(mark)
        wanted = [address for address in wanted if address not in marks]
    wanted.sort(key=lambda address: address.version == 6 or bool(int(address) & KUBE_PROXY_BITS))
    for address in wanted:
        mark = start = preferred_mark(address)
        while mark in taken:
            mark = (mark + _PROBE_STEP) & _MARK_MASK & ~KUBE_PROXY_BITS
            if mark == start:  # every value of the high half is taken: step the low half
                mark = start = (mark + 1) & _MARK_MASK & ~KUBE_PROXY_BITS
        marks[address] = mark
        taken.add(mark)
    return marks


def addresses_of(texts: Iterable[str]) -> list[Address]:
    """The addresses among `texts`, without what is none: planning names that, with its object."""
    found = []
    for text in texts:
        try:
            found.append(parse_address(text))
        except AddressError:
            continue
    return found
