"""Which pool serves a namespace, and what it can give."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from egress.addresses import Address, AddressError, parse_address
from egress.objects import (
    ADDRESSES_ANNOTATION,
    OPT_OUT,
    POOL_ANNOTATION,
    REQUEST_ANNOTATION,
    EgressPool,
    Operator,
    Requirement,
    Selector,
)
from egress.pools import (
    MAX_ADDRESSES,
    Choice,
    PoolError,
    annotated_addresses,
    check_covered,
    choose,
    is_system,
    ranges,
    requested_addresses,
)

ALL = EgressPool("all", ("10.0.0.0/29",), namespace_selector=Selector())
PROD = EgressPool(
    "a-prod", ("192.168.1.96/27",), excluded=("192.168.1.100",), namespace_selector=Selector({"env": "prod"})
)
NAMED = EgressPool("named", ("10.1.0.1-10.1.0.3",), addresses_per_namespace=2)
POOLS = (ALL, PROD, NAMED)
NODE = parse_address("192.168.1.98")


def chosen(labels: dict[str, str] | None = None, **annotations: str) -> Choice | None:
    keys = {"pool": POOL_ANNOTATION, "request": REQUEST_ANNOTATION}
    return choose("app", labels or {}, {keys[key]: text for key, text in annotations.items()}, POOLS, {NODE})


def addresses(pool: EgressPool, *nodes: Address) -> list[str]:
    return [str(address) for piece in ranges(pool, nodes) for address in piece]


def test_the_first_pool_by_name_whose_selector_matches_serves() -> None:
    assert chosen({"env": "prod"}) == Choice(PROD)
    assert chosen({"env": "test"}) == Choice(ALL)
    assert choose("app", {"env": "test"}, {}, [PROD, NAMED]) is None


def test_a_pool_without_a_selector_serves_only_those_that_name_it() -> None:
    assert choose("app", {}, {}, [NAMED]) is None
    choice = chosen(pool="named")
    assert choice == Choice(NAMED)
    assert choice is not None
    assert choice.count == 2


def test_a_dual_stack_pool_gives_pairs_and_what_is_asked_of_it_are_pairs() -> None:
    pool = EgressPool(
        "x", ("10.2.0.0/29", "fd00::/64"), addresses_per_namespace=2, namespace_selector=Selector(), dual_stack=True
    )
    choice = choose("app", {}, {}, [pool])
    assert choice is not None
    assert choice.count == 4
    asked = choose("app", {}, {REQUEST_ANNOTATION: "10.2.0.1,fd00::1"}, [pool])
    assert asked is not None
    assert asked.count == 2
    with pytest.raises(PoolError, match="as many IPv6 addresses as IPv4 ones"):
        choose("app", {}, {REQUEST_ANNOTATION: "10.2.0.1"}, [pool])


def test_the_named_pool_serves_whatever_its_selector_says() -> None:
    assert chosen({"env": "test"}, pool=" a-prod ") == Choice(PROD)


def test_expressions_select() -> None:
    selector = Selector({}, (Requirement("env", Operator.NOT_IN, ("prod",)), Requirement("team", Operator.EXISTS)))
    pool = EgressPool("x", ("10.2.0.1",), namespace_selector=selector)
    assert choose("app", {"team": "a"}, {}, [pool]) == Choice(pool)
    assert choose("app", {"team": "a", "env": "prod"}, {}, [pool]) is None
    assert choose("app", {}, {}, [pool]) is None


def test_opting_out_wins_over_everything() -> None:
    assert chosen({"env": "prod"}, pool=OPT_OUT, request="nonsense") is None


def test_an_unknown_pool_is_named() -> None:
    with pytest.raises(PoolError, match="no EgressPool 'prud'"):
        chosen(pool="prud")


@pytest.mark.parametrize(
    ("name", "system"),
    [
        ("default", True),
        ("kube-system", True),
        ("openshift-sdn", True),
        ("openshift", True),
        ("hawse-system", True),
        ("kubernetes", False),
        ("openshifted", False),
        ("my-kube-system", False),
        ("defaults", False),
        ("", False),
    ],
)
def test_system_namespaces_are_served_by_nobody(name: str, system: bool) -> None:
    assert is_system(name) is system
    assert (choose(name, {}, {REQUEST_ANNOTATION: "nonsense" if system else ""}, POOLS) is None) is system


def test_a_request_chooses_a_matching_pool_that_covers_it() -> None:
    assert chosen({"env": "prod"}, request="10.0.0.1") == Choice(ALL, (ip_address("10.0.0.1"),))
    choice = chosen({"env": "prod"}, request="192.168.1.102, 192.168.1.103,192.168.1.102")
    assert choice == Choice(PROD, (ip_address("192.168.1.102"), ip_address("192.168.1.103")))
    assert choice is not None
    assert choice.count == 2


@pytest.mark.parametrize(
    ("request_text", "message"),
    [
        ("192.168.2.1", "address 192.168.2.1 is outside pool a-prod (192.168.1.96/27)"),
        ("192.168.1.96", "address 192.168.1.96 is outside pool a-prod (192.168.1.96/27)"),
        ("192.168.1.100", "address 192.168.1.100 is excluded from pool a-prod"),
        ("192.168.1.98", "address 192.168.1.98 is a node's own IP"),
        ("192.168.1.102,192.168.1.100", "address 192.168.1.100 is excluded from pool a-prod"),
        ("nonsense", f"annotation {REQUEST_ANNOTATION}: 'nonsense' is not an IP address"),
        ("192.168.1.102,,", f"annotation {REQUEST_ANNOTATION}: '' is not an IP address"),
        ("0.0.0.0", f"annotation {REQUEST_ANNOTATION}: '0.0.0.0' is not a unicast address that a node could hold"),
    ],
)
def test_a_request_that_cannot_be_met_says_why(request_text: str, message: str) -> None:
    with pytest.raises(PoolError) as error:
        chosen(pool="a-prod", request=request_text)
    assert str(error.value) == message


def test_a_request_that_no_pool_serves_says_what_to_do() -> None:
    with pytest.raises(PoolError, match=POOL_ANNOTATION):
        choose("app", {}, {REQUEST_ANNOTATION: "10.1.0.1"}, [NAMED])


def test_ranges_leave_out_exclusions_nodes_network_and_broadcast() -> None:
    pool = EgressPool("x", ("10.0.0.0/29", "10.0.1.5"), excluded=("10.0.0.2-10.0.0.3",))
    assert addresses(pool, parse_address("10.0.0.6")) == ["10.0.0.1", "10.0.0.4", "10.0.0.5", "10.0.1.5"]


def test_an_excluded_cidr_means_all_of_it() -> None:
    assert addresses(EgressPool("x", ("10.0.0.0-10.0.0.5",), excluded=("10.0.0.0/30",))) == ["10.0.0.4", "10.0.0.5"]


@pytest.mark.parametrize("excluded", ["10.0.0.1/32", "10.0.0.1", "10.0.0.0/31"])
def test_the_smallest_exclusions(excluded: str) -> None:
    assert "10.0.0.1" not in addresses(EgressPool("x", ("10.0.0.0/29",), excluded=(excluded,)))


def test_overlapping_cidrs_give_each_address_once() -> None:
    assert addresses(EgressPool("x", ("10.0.0.1-10.0.0.3", "10.0.0.2-10.0.0.4"))) == [
        f"10.0.0.{last}" for last in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize("text", ["10.0.0.1/24", "10.0.0.0/33", "x", "10.0.0.9-10.0.0.1", "224.0.0.1"])
def test_malformed_cidrs_and_exclusions_are_quoted(text: str) -> None:
    for pool in (EgressPool("x", (text,)), EgressPool("x", ("10.0.0.0/24",), excluded=(text,))):
        with pytest.raises(AddressError, match=text.split("-", maxsplit=1)[0]):
            ranges(pool)


def test_checking_knows_ipv6() -> None:
    pool = EgressPool("six", ("2001:db8::/64",), excluded=("2001:db8::/120",))
    check_covered(pool, parse_address("2001:db8::1:0"))
    with pytest.raises(PoolError, match="excluded"):
        check_covered(pool, parse_address("2001:db8::5"))


def test_gateways_are_given_to_nobody() -> None:
    gateway = parse_address("192.168.1.97")
    with pytest.raises(PoolError, match=r"192.168.1.97 is a node's gateway"):
        choose("app", {}, {POOL_ANNOTATION: "a-prod", REQUEST_ANNOTATION: str(gateway)}, POOLS, {NODE}, {gateway})
    assert str(gateway) not in addresses(PROD, NODE, gateway)


def test_a_pool_that_is_being_deleted_serves_nobody() -> None:
    going = replace(PROD, deleting=True)
    assert choose("app", {"env": "prod"}, {}, [going, ALL]) == Choice(ALL)
    assert choose("app", {"env": "prod"}, {}, [going]) is None
    with pytest.raises(PoolError, match="'a-prod' is being deleted: name another"):
        choose("app", {}, {POOL_ANNOTATION: "a-prod"}, [going, ALL])


def test_nobody_asks_for_a_look_at_more_addresses_than_one_may_have() -> None:
    texts = [f"10.0.0.{number}" for number in range(MAX_ADDRESSES + 1)]
    most, many = ",".join(texts[:-1]), ",".join(texts)
    assert [str(address) for address in annotated_addresses({ADDRESSES_ANNOTATION: f"{most},"})] == texts[:-1]
    assert [str(address) for address in requested_addresses({REQUEST_ANNOTATION: most})] == texts[:-1]
    with pytest.raises(AddressError, match="9 addresses: a namespace has at most 8"):
        annotated_addresses({ADDRESSES_ANNOTATION: many})
    with pytest.raises(PoolError, match="at most 8 addresses"):
        requested_addresses({REQUEST_ANNOTATION: many})
