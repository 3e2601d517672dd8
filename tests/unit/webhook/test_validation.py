"""What is refused and what is warned of, kind by kind."""

from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress.addresses import parse_address
from egress.listing import Listed
from egress.objects import ADDRESSES_ANNOTATION, EgressAddress, EgressPool, HostSubnet, NetNamespace, Origin
from webhook import validation
from webhook.validation import Facts, RefusedError

PROD = EgressPool("prod", ("192.168.1.96/27",))
HELD = {
    parse_address(address): entry
    for address, entry in {
        "192.168.1.100": ("claimed", "ns/shop"),
        "192.168.1.101": ("reserved", "ns/shop"),
        "192.168.1.102": ("quarantined", "ns/shop"),
        "192.168.1.103": ("reserved", "uid/4711"),
        "192.168.1.104": ("claimed", "manual/by-hand"),
        "192.168.1.105": ("claimed", "manual/node/node2"),
    }.items()
}
FACTS = Facts(
    pools=(PROD,),
    node_ips=frozenset({parse_address("192.168.1.17"), parse_address("192.168.1.97")}),
    entries=HELD,
    listed={
        parse_address(address): listed
        for address, listed in {
            "192.168.1.100": Listed(("node2",), ("shop",)),
            "192.168.1.104": Listed((), ("by-hand",)),
            "192.168.1.105": Listed(("node2",)),
            "10.0.0.4": Listed(("node1", "node2")),
            "10.0.0.5": Listed(("node2",), ("by-hand",)),
            "10.0.0.6": Listed(("node2",), ("by-hand", "other")),
        }.items()
    },
    netids={5: "shop", 6: "by-hand"},
    links={"node1": (IPv4Interface("192.168.1.17/24"), IPv6Interface("2001:db8::17/64"))},
)


def net_namespace(name: str, *addresses: str, netid: int = 7) -> NetNamespace:
    return NetNamespace(name, netid, addresses)


def refusal(*arguments: object) -> str:
    judge = {
        NetNamespace: validation.net_namespace,
        HostSubnet: validation.host_subnet,
        EgressPool: validation.pool,
        EgressAddress: validation.egress_address,
    }[type(arguments[0])]
    with pytest.raises(RefusedError) as caught:
        judge(*arguments)
    return str(caught.value)


# Namespaces


@pytest.mark.parametrize(
    ("written", "given_", "right"),
    [
        ("192.168.1.100", ["192.168.1.100"], True),
        ("192.168.1.100,192.168.1.101", ["192.168.1.101", "192.168.1.100"], True),
        ("192.168.1.100", ["192.168.1.101", "192.168.1.100"], True),
        ("192.168.1.100", [], False),
        ("192.168.1.100,192.168.1.9", ["192.168.1.100"], False),
        ("", ["192.168.1.100"], False),
        ("nonsense", ["192.168.1.100"], False),
        (" 192.168.1.100", ["192.168.1.100"], False),
        ("192.168.1.100,", ["192.168.1.100"], False),
        ("192.168.1.100,192.168.1.100", ["192.168.1.100"], False),
    ],
)
def test_an_annotation_says_what_was_given_or_is_forged(written: str, given_: list[str], right: bool) -> None:
    addresses = [parse_address(text) for text in given_]
    assert validation.namespace_addresses({ADDRESSES_ANNOTATION: written}, addresses) is right


# NetNamespaces


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("192.168.1.100", "address 192.168.1.100 is held by namespace shop: choose another"),
        ("192.168.1.101", "address 192.168.1.101 is being given to namespace shop: choose another"),
        ("192.168.1.102", "address 192.168.1.102 is in quarantine after namespace shop: choose another"),
        (
            "192.168.1.103",
            "address 192.168.1.103 is being given to a namespace that is just created: choose another",
        ),
        ("192.168.1.17", "address 192.168.1.17 is a node's own IP"),
        ("192.168.1", "egressIPs: '192.168.1' is not an IP address"),
        ("127.0.0.1", "egressIPs: '127.0.0.1' is not a unicast address that a node could hold"),
    ],
)
def test_a_net_namespace_takes_nothing_of_anothers(address: str, message: str) -> None:
    assert refusal(net_namespace("web", address), None, FACTS) == message
    assert refusal(net_namespace("web", address), net_namespace("web"), FACTS) == message


def test_a_net_namespace_may_have_what_is_its_own() -> None:
    for address in ("192.168.1.100", "192.168.1.101", "192.168.1.102"):
        assert validation.net_namespace(net_namespace("shop", address), None, FACTS) == []
    assert validation.net_namespace(net_namespace("by-hand", "192.168.1.104"), None, FACTS) == []


def test_an_address_set_by_hand_elsewhere_is_a_warning_for_it_may_be_gone() -> None:
    (warning,) = validation.net_namespace(net_namespace("web", "192.168.1.104"), None, FACTS)
    assert "was last seen in NetNamespace by-hand" in warning


def test_an_address_of_another_net_namespace_is_a_warning_whoever_has_seen_it() -> None:
    (warning,) = validation.net_namespace(net_namespace("web", "10.0.0.5"), net_namespace("web"), FACTS)
    assert warning == (
        "address 10.0.0.5 was last seen in NetNamespace by-hand: while both have it, the traffic of both drops"
    )
    (warning,) = validation.net_namespace(net_namespace("by-hand", "10.0.0.6"), None, FACTS)
    assert "in NetNamespace other:" in warning
    assert validation.net_namespace(net_namespace("by-hand", "10.0.0.5"), None, FACTS) == []


def test_two_addresses_of_a_net_namespace_on_one_node_are_a_warning() -> None:
    before = net_namespace("web", "10.0.0.4")
    (warning,) = validation.net_namespace(net_namespace("web", "10.0.0.4", "192.168.1.105"), before, FACTS)
    assert warning == (
        "addresses 10.0.0.4, 192.168.1.105 of namespace web are on one node, node2: none of them carries its traffic "
        "until each is on a node of its own"
    )
    after = net_namespace("web", "10.0.0.4", "192.168.1.105", "10.0.0.1")
    assert validation.net_namespace(after, net_namespace("web", "10.0.0.4", "192.168.1.105"), FACTS) == []


def test_an_address_that_a_node_hosts_by_hand_is_nobodys() -> None:
    assert validation.net_namespace(net_namespace("web", "192.168.1.105"), None, FACTS) == []


def test_a_free_address_of_a_pool_is_a_warning() -> None:
    (warning,) = validation.net_namespace(net_namespace("web", "192.168.1.110"), None, FACTS)
    assert "is in pool prod" in warning
    assert validation.net_namespace(net_namespace("web", "10.0.0.1"), None, FACTS) == []


@pytest.mark.parametrize("texts", [("10.0.0.1", "10.0.0.1"), ("fd00::1", "fd00:0::1")])
def test_an_address_is_listed_once(texts: tuple[str, ...]) -> None:
    assert "is listed twice" in refusal(net_namespace("web", *texts), None, FACTS)
    assert "is listed twice" in refusal(net_namespace("web", *texts), net_namespace("web", texts[0]), FACTS)


def test_what_is_there_already_is_not_judged_again() -> None:
    bad = ("192.168.1.100", "nonsense", "192.168.1.17", "nonsense")
    for after in (bad, bad[:2], bad[::-1], ()):
        assert validation.net_namespace(net_namespace("web", *after), net_namespace("web", *bad), FACTS) == []
    added = net_namespace("web", *bad, "10.0.0.1")
    assert validation.net_namespace(added, net_namespace("web", *bad), FACTS) == []


@pytest.mark.parametrize("netid", [0, -1, 1 << 24])
def test_a_netid_that_can_have_no_address_is_refused_with_one(netid: int) -> None:
    new = net_namespace("web", "10.0.0.1", netid=netid)
    assert f"NetID {netid} is" in refusal(new, None, FACTS)
    assert f"NetID {netid} is" in refusal(new, net_namespace("web", "10.0.0.1"), FACTS)
    assert f"NetID {netid} is" in refusal(new, net_namespace("web", netid=netid), FACTS)
    assert validation.net_namespace(net_namespace("web", netid=netid), None, FACTS) == []
    assert validation.net_namespace(new, net_namespace("web", "10.0.0.1", "10.0.0.2", netid=netid), FACTS) == []


def test_a_netid_of_another_is_a_warning() -> None:
    (warning,) = validation.net_namespace(net_namespace("web", "10.0.0.1", netid=5), None, FACTS)
    assert warning == "NetID 5 is NetNamespace shop's too: the traffic of both is dropped"
    assert validation.net_namespace(net_namespace("web", netid=5), None, FACTS) == []


def test_what_hawse_puts_back_is_said() -> None:
    before = net_namespace("shop", "192.168.1.100", "10.0.0.1")
    (warning,) = validation.net_namespace(net_namespace("shop", "10.0.0.1"), before, FACTS)
    assert warning == "address 192.168.1.100 is given to namespace shop by Hawse, which will put it back"


# HostSubnets


def host_subnet(name: str, *addresses: str, ip: str = "192.168.1.18") -> HostSubnet:
    return HostSubnet(name, ip, addresses)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("192.168.1.17", "address 192.168.1.17 is a node's own IP"),
        ("192.168.1.18", "address 192.168.1.18 is a node's own IP"),
        ("nonsense", "egressIPs: 'nonsense' is not an IP address"),
    ],
)
def test_a_host_subnet_takes_no_nodes_ip(address: str, message: str) -> None:
    assert refusal(host_subnet("node1", address), host_subnet("node1"), FACTS) == message
    assert validation.host_subnet(host_subnet("node1", address), host_subnet("node1", address), FACTS) == []


def test_an_address_on_two_nodes_is_a_warning_that_names_both() -> None:
    (warning,) = validation.host_subnet(host_subnet("node1", "192.168.1.100"), host_subnet("node1"), FACTS)
    assert warning == (
        "address 192.168.1.100 is on node node2, and on node1 now: its traffic is dropped until only one has it; "
        "take it out of HostSubnet node2"
    )
    assert validation.host_subnet(host_subnet("node2", "192.168.1.100"), host_subnet("node2"), FACTS) == []


def test_an_address_of_no_namespace_on_two_nodes_is_a_warning_too() -> None:
    (warning,) = validation.host_subnet(host_subnet("node3", "192.168.1.105"), None, FACTS)
    assert "is on node node2, and on node3 now" in warning


def test_an_address_on_several_nodes_already_is_a_warning_that_names_all() -> None:
    (warning,) = validation.host_subnet(host_subnet("node3", "10.0.0.4"), None, FACTS)
    assert "is on node node1, node2, and on node3 now" in warning


def test_two_addresses_of_one_namespace_on_a_node_are_a_warning() -> None:
    """By a NetNamespace's list, or by what Hawse has given and not bound yet."""
    both = "are on one node, node2: none of them carries its traffic until each is on a node of its own"
    node2 = host_subnet("node2", "10.0.0.5")
    for added in ("10.0.0.6", "10.0.0.7"):
        warnings = validation.host_subnet(replace(node2, egress_ips=("10.0.0.5", added)), node2, FACTS)
        shared = added == "10.0.0.6"
        assert [both in warning for warning in warnings] == [True] * shared
    after = host_subnet("node2", "192.168.1.101", "192.168.1.100")
    (warning,) = validation.host_subnet(after, host_subnet("node2", "192.168.1.100"), FACTS)
    assert warning == f"addresses 192.168.1.101, 192.168.1.100 of namespace shop {both}"
    assert validation.host_subnet(after, host_subnet("node2", *after.egress_ips[::-1]), FACTS) == []


def test_an_address_outside_the_nodes_subnet_is_a_warning() -> None:
    (warning,) = validation.host_subnet(host_subnet("node1", "10.0.0.1"), host_subnet("node1"), FACTS)
    assert (
        warning == "address 10.0.0.1 is outside 192.168.1.0/24 and 2001:db8::/64, the subnet of node1, which refuses it"
    )
    assert validation.host_subnet(host_subnet("node3", "10.0.0.1"), host_subnet("node3"), FACTS) == []
    assert validation.host_subnet(host_subnet("node1", "2001:db8::9"), host_subnet("node1"), FACTS) == []


def test_a_pools_address_on_a_node_is_a_warning_unless_somebody_has_it() -> None:
    (warning,) = validation.host_subnet(host_subnet("node1", "192.168.1.110"), None, FACTS)
    assert "is in pool prod" in warning
    assert validation.host_subnet(host_subnet("node1", "192.168.1.101"), None, FACTS) == []


# Pools


def test_pools_that_overlap_are_refused_with_both_names_and_the_range() -> None:
    new = EgressPool("test", ("192.168.1.120-192.168.1.130", "10.0.0.0/24"))
    message = "pools test and prod overlap in 192.168.1.120-192.168.1.126: take it out of one of them"
    assert refusal(new, None, FACTS) == message
    assert refusal(new, EgressPool("test", ("10.0.0.0/24",)), FACTS) == message
    assert validation.pool(replace(new, excluded=("192.168.1.120-192.168.1.126",)), None, FACTS) == []


def test_an_overlap_that_was_there_can_be_made_smaller() -> None:
    before = EgressPool("test", ("192.168.1.110-192.168.1.130",))
    assert validation.pool(replace(before, cidrs=("192.168.1.112-192.168.1.130",)), before, FACTS) == []
    assert "192.168.1.109" in refusal(replace(before, cidrs=("192.168.1.109-192.168.1.130",)), before, FACTS)


def test_a_pool_is_no_overlap_of_its_former_self() -> None:
    (warning,) = validation.pool(PROD, None, FACTS)  # as seen in the offer already
    assert warning == "pool prod leaves out the nodes' own IPs: 192.168.1.97"
    assert validation.pool(PROD, PROD, FACTS) == []


def test_a_pool_in_the_clusters_own_network_is_a_warning() -> None:
    new = EgressPool("test", ("10.129.0.0/30",))
    (warning,) = validation.pool(new, None, FACTS, (IPv4Network("10.128.0.0/14"),))
    assert "10.129.0.1-10.129.0.2 is in the cluster's own network 10.128.0.0/14" in warning


def test_a_pool_that_loses_addresses_in_use_is_a_warning_with_their_number() -> None:
    (warning,) = validation.pool(replace(PROD, cidrs=("192.168.1.101-192.168.1.126",)), PROD, FACTS)
    assert warning.startswith("1 of the addresses that pool prod loses are in use (192.168.1.100)")
    (warning,) = validation.pool(replace(PROD, cidrs=("10.1.0.0/24",)), PROD, FACTS)
    assert warning.startswith("4 of the addresses")
    assert "192.168.1.102 and 1 more" in warning


def test_a_pool_may_have_the_addresses_of_one_that_is_being_deleted() -> None:
    successor = replace(PROD, name="prod-2")
    with pytest.raises(validation.RefusedError, match="overlap"):
        validation.pool(successor, None, FACTS)
    going = replace(FACTS, pools=tuple(replace(pool, deleting=True) for pool in FACTS.pools))
    validation.pool(successor, None, going)


def test_a_deleted_pool_in_use_is_a_warning() -> None:
    (warning,) = validation.pool_deleted(PROD, FACTS)
    assert warning.startswith("4 addresses of pool prod are in use")
    assert validation.pool_deleted(EgressPool("test", ("10.0.0.0/24",)), FACTS) == []
    assert validation.pool_deleted(EgressPool("test", ("nonsense",)), FACTS) == []


# EgressAddresses


def claim(address: str, namespace: str, pool: str = "prod") -> EgressAddress:
    return EgressAddress(address, pool, namespace, "", Origin.MANUAL)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (claim("192.168.1.100", "web"), "address 192.168.1.100 is held by namespace shop: choose another"),
        (claim("192.168.1.97", "web"), "address 192.168.1.97 is a node's own IP"),
        (claim("192.168.1.110", "kube-system"), "namespace kube-system is the system's"),
    ],
)
def test_a_claim_by_hand_takes_nothing_of_anothers(value: EgressAddress, message: str) -> None:
    assert refusal(value, None, FACTS).startswith(message)


def test_a_claim_by_hand_of_a_free_address_passes() -> None:
    assert validation.egress_address(claim("192.168.1.110", "web"), None, FACTS) == []


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (claim("10.0.0.1", "web"), "outside pool prod"),
        (claim("192.168.1.110", "web", "prud"), "of pool 'prud', which does not exist"),
    ],
)
def test_a_claim_that_cannot_be_placed_is_a_warning(value: EgressAddress, what: str) -> None:
    (warning,) = validation.egress_address(value, None, FACTS)
    assert what in warning


@pytest.mark.parametrize("change", [{"namespace": "web"}, {"pool": "x"}, {"namespace_uid": "u"}])
def test_a_claim_is_changed_by_nobody(change: dict[str, str]) -> None:
    before = claim("192.168.1.100", "shop")
    assert "is Hawse's alone to change" in refusal(replace(before, **change), before, FACTS)
    assert validation.egress_address(before, before, FACTS) == []


# Whatever is written


texts = st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1", "FD00:0::1", "nonsense", "192.168.1.100"]))


@given(texts, texts)
def test_taking_away_is_never_refused_and_the_same_is_no_change(before: list[str], after: list[str]) -> None:
    old = net_namespace("web", *before)
    remaining = [text for text in before if text in after]
    validation.net_namespace(net_namespace("web", *remaining), old, FACTS)
    assert validation.net_namespace(old, old, FACTS) == []
    assert validation.host_subnet(host_subnet("a", *before), host_subnet("a", *before), FACTS) == []


@given(texts)
def test_what_passes_holds_each_address_once_and_nobody_elses(after: list[str]) -> None:
    try:
        validation.net_namespace(net_namespace("web", *after), None, FACTS)
    except RefusedError as error:
        assert str(error)  # noqa: PT017 - either outcome is right
    else:
        addresses = [parse_address(text) for text in after]
        assert len(set(addresses)) == len(addresses)
        assert parse_address("192.168.1.100") not in addresses


@pytest.mark.parametrize("count", [0, 1, 3, 4, 100])
def test_lists_in_messages_stay_short(count: int) -> None:
    assert len(validation._listed([f"10.0.0.{n}" for n in range(count)])) < 60
