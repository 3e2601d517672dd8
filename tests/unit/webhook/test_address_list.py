"""What is on an address list, and how it is written."""

from __future__ import annotations

import json as plain_json
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress.objects import Decision, EgressAddress, Phase, Verdict
from webhook.api.address_list import Entry, Tenant, digest, entry_of, json, select, text

ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
ENTRIES = st.lists(
    st.builds(Entry, ADDRESSES, st.text(), st.just(""), st.text()), unique_by=lambda entry: entry.address
)


@given(ENTRIES, st.booleans())
def test_each_line_is_an_address_whatever_a_namespace_is_called(entries: list[Entry], comments: bool) -> None:
    written = text(select(entries, {}, (), {}), comments=comments)
    lines = written.split(b"\n")
    assert lines.pop() == b""
    read = [line.split(b" # ")[0].decode() for line in lines]
    assert read == [str(entry.address) for entry in sorted(entries, key=lambda entry: entry.order)]
    assert all(line.isascii() and line.decode().isprintable() for line in lines)
    assert comments or b"#" not in written


@given(ENTRIES)
def test_json_holds_the_same(entries: list[Entry]) -> None:
    read = plain_json.loads(json("all", entries))
    assert [item["address"] for item in read["addresses"]] == [str(entry.address) for entry in entries]


def test_numbers_are_in_their_order_and_ipv6_comes_last() -> None:
    entries = [Entry(address, "n", "", "p") for address in map(IPv4Address, ("10.0.0.10", "10.0.0.9", "9.0.0.1"))]
    mixed = [Entry(IPv6Address("::2:0"), "n", "", "p"), *entries, Entry(IPv6Address("::9"), "n", "", "p")]
    assert text(select(mixed, {}, (), {}), comments=False) == b"9.0.0.1\n10.0.0.9\n10.0.0.10\n::9\n::2:0\n"


def test_labels_are_those_of_the_very_namespace() -> None:
    entry = Entry(IPv4Address("10.0.0.1"), "shop", "u-1", "prod")
    wanted = {"team": "a"}
    assert select([entry], {"shop": Tenant("u-1", {"team": "a", "x": "y"})}, (), wanted) == [entry]
    for tenants in ({}, {"shop": Tenant("u-2", {"team": "a"})}, {"shop": Tenant("u-1", {"team": "b"})}):
        assert select([entry], tenants, (), wanted) == []
        assert select([entry], tenants, (), {}) == [entry]


def test_pools_are_those_that_are_named() -> None:
    entries = [Entry(IPv4Address(f"10.0.0.{n}"), "n", "", pool) for n, pool in enumerate(("a", "b", ""))]
    assert [entry.pool for entry in select([*entries, None], {}, ("b", "c"), {})] == ["b"]
    assert len(select(entries, {}, (), {})) == 3


@pytest.mark.parametrize(
    ("phase", "required", "verdict", "listed"),
    [
        (Phase.PENDING, False, None, True),
        (Phase.READY, False, None, True),
        (Phase.FAILED, False, None, True),
        (Phase.QUARANTINED, False, None, False),
        (Phase.QUARANTINED, True, Verdict.APPROVED, False),
        (Phase.READY, True, None, False),
        (Phase.READY, True, Verdict.APPROVED, True),
        (Phase.READY, True, Verdict.REJECTED, False),
        (Phase.READY, True, Verdict.WITHDRAWN, False),
    ],
)
def test_a_list_holds_what_may_leave(phase: Phase, required: bool, verdict: Verdict | None, listed: bool) -> None:
    decision = Decision(verdict, "ana", 1.0, "callback") if verdict else None
    claim = EgressAddress("10.0.0.1", "prod", "shop", "u-1", phase=phase, approval_required=required, decision=decision)
    assert (entry_of(claim) is not None) is listed


def test_a_digest_tells_contents_apart() -> None:
    assert digest(b"a") == digest(b"a") != digest(b"b")
