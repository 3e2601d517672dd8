"""The webhook's certificates: what is decided when, and that no rotation ever shows an API server a certificate that it
does not trust, whoever is killed, late, or deletes a Secret."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field, replace

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given, settings
from hypothesis import strategies as st

from workers import pki
from workers.certificates import DAY, Authority, Issue, Keep, Policy, Serving, Step, Trust, View, decide

NAMES = ("hawse-webhook.hawse-system.svc", "hawse-webhook.hawse-system.svc.cluster.local")
POLICY = Policy(NAMES, serving_lifetime=9 * DAY, authority_lifetime=60 * DAY, wait=300.0)
START = 1_800_000_000.0


def verifies(served: pki.Certificate, trusted: frozenset[pki.Certificate], now: float) -> bool:
    """As a TLS client sees it."""
    if not trusted:
        return False
    store = Store([x509.load_der_x509_certificate(item.der) for item in trusted])
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    for name in NAMES:
        verifier = PolicyBuilder().store(store).time(moment).build_server_verifier(x509.DNSName(name))
        try:
            verifier.verify(x509.load_der_x509_certificate(served.der), [])
        except VerificationError:
            return False
    return True


@dataclass
class World:
    """The objects, each with a version, and what API servers and webhooks may still be going by."""

    now: float = START
    authorities: tuple[Authority, ...] | None = None
    serving: Serving | None = None
    bundles: dict[str, tuple[frozenset[pki.Certificate], ...]] = field(
        default_factory=lambda: {"mutating": (frozenset(), frozenset()), "validating": (frozenset(),)}
    )
    versions: dict[str, int] = field(default_factory=lambda: {"ca": 0, "tls": 0, "mutating": 0, "validating": 0})
    trusted_until: dict[tuple[str, frozenset[pki.Certificate]], float] = field(default_factory=dict)
    served_until: dict[pki.Certificate, float] = field(default_factory=dict)
    served: pki.Certificate | None = None

    def view(self) -> View:
        return View(self.authorities, self.serving, dict(self.bundles))

    def take(self, step: Step | None, versions: dict[str, int]) -> bool:
        """Carries a step out if its object is as it was read, as a conditional write is."""
        match step:
            case None:
                return False
            case Keep(authorities, new):
                if self.versions["ca"] != versions["ca"]:
                    return False
                self.versions["ca"] += 1
                if new:
                    made = pki.make_authority("test", self.now, POLICY.authority_lifetime)
                    authorities = (*authorities, Authority(*made))
                self.authorities = authorities
            case Trust(name, authorities):
                if self.versions[name] != versions[name]:
                    return False
                self.versions[name] += 1
                for old in self.bundles[name]:
                    self.trusted_until[name, old] = self.now
                present = frozenset(item.certificate for item in authorities)
                self.bundles[name] = tuple(present for _ in self.bundles[name])
            case Issue(authority, _):
                if self.versions["tls"] != versions["tls"]:
                    return False
                self.versions["tls"] += 1
                by = (authority.certificate, authority.key)
                certificate, _key = pki.issue(NAMES, self.now, POLICY.serving_lifetime, *by)
                if self.served is not None:
                    self.served_until[self.served] = self.now
                self.serving, self.served = Serving(certificate), certificate
        return True

    def step(self) -> bool:
        return self.take(decide(self.now, self.view(), POLICY), dict(self.versions))

    def settle(self) -> list[Step]:
        steps = []
        for _ in range(20):
            step = decide(self.now, self.view(), POLICY)
            if step is None:
                return steps
            self.take(step, dict(self.versions))
            steps.append(step)
        raise AssertionError(f"never settles: {steps[-3:]}")

    def check(self, webhooks_late: float) -> None:
        """Whatever an API server may still trust accepts whatever a webhook may still serve. API servers see a change
        within the wait, webhooks within `webhooks_late`."""
        if self.served is None:
            return
        served = {self.served} | {one for one, at in self.served_until.items() if self.now - at < webhooks_late}
        trusted = {present for bundles in self.bundles.values() for present in bundles}
        trusted |= {
            present for (_, present), at in self.trusted_until.items() if present and self.now - at < POLICY.wait
        }
        for one in served:
            for bundle in trusted:
                assert verifies(one, bundle, self.now)


def test_from_nothing_trusted_before_served() -> None:
    world = World()
    kinds = [type(step) for step in world.settle()]
    assert kinds == [Keep, Trust, Trust, Keep, Issue]
    world.check(0)
    assert world.settle() == []
    world.now += 5.9 * DAY
    assert world.settle() == []


def test_a_serving_certificate_is_made_anew_after_two_thirds_of_its_time() -> None:
    world = World()
    world.settle()
    first = world.served
    world.now += 6.01 * DAY
    (step,) = world.settle()
    assert isinstance(step, Issue)
    assert world.served != first


def test_a_new_authority_is_trusted_waits_signs_and_the_old_one_goes_when_nothing_of_it_is_left() -> None:
    world = World()
    world.settle()
    while not world.authorities or len(world.authorities) == 1:
        world.now += DAY
        steps = world.settle()
        world.check(DAY)
    assert world.now >= START + 40 * DAY
    assert [type(step) for step in steps[:4]] == [Keep, Trust, Trust, Keep]
    old, new = (item.certificate for item in world.authorities)
    assert world.served is not None
    assert world.served.signed_by(old)
    world.now += POLICY.wait - 1
    assert world.settle() == []
    world.now += 2
    (step,) = world.settle()
    assert isinstance(step, Issue)
    assert world.served.signed_by(new)
    changed = world.now
    while len(world.authorities) == 2:
        world.now += DAY
        world.settle()
        world.check(2 * DAY)
    assert world.now > changed + POLICY.serving_lifetime
    assert world.bundles["validating"] == (frozenset({new}),)


def test_what_is_deleted_or_overwritten_is_put_back() -> None:
    world = World()
    world.settle()
    first = world.authorities
    world.serving = None
    assert [type(step) for step in world.settle()] == [Issue]
    world.bundles["mutating"] = (frozenset(), world.bundles["mutating"][1])
    assert [step.configuration for step in world.settle() if isinstance(step, Trust)] == ["mutating"]
    assert world.authorities == first
    world.bundles["validating"] = (frozenset({pki.make_authority("foreign", START, DAY)[0]}),)
    world.settle()
    assert len(world.bundles["validating"][0]) == 1
    world.trusted_until.clear()  # what stood there meanwhile was none of ours
    world.check(0)


def test_a_lost_authority_stays_trusted_while_its_certificate_is_served() -> None:
    world = World()
    world.settle()
    before = world.served
    world.authorities = None
    world.settle()
    assert world.served == before
    world.check(0)
    world.now += POLICY.wait
    world.settle()
    assert world.served != before
    world.check(DAY)


@pytest.mark.parametrize("wrong", ["names", "key", "foreign", "expired"])
def test_what_no_api_server_accepts_is_replaced_at_once(wrong: str) -> None:
    world = World()
    world.settle()
    assert world.authorities
    mine = world.authorities[0]
    foreign, key = pki.make_authority("foreign", START, DAY)
    world.serving = {
        "names": Serving(pki.issue(["other.svc"], START, DAY, mine.certificate, mine.key)[0]),
        "key": Serving(world.served or foreign, key_fits=False),
        "foreign": Serving(pki.issue(NAMES, START, DAY, foreign, key)[0]),
        "expired": Serving(pki.issue(NAMES, START - 2 * DAY, DAY, mine.certificate, mine.key)[0]),
    }[wrong]
    assert [type(step) for step in world.settle()] == [Issue]
    world.check(0)


def test_while_a_new_authority_waits_the_old_one_signs() -> None:
    world = World()
    world.settle()
    world.now += 41 * DAY
    world.settle()
    assert world.authorities
    old, _new = world.authorities
    world.serving = None
    world.settle()
    assert world.served is not None
    assert world.served.signed_by(old.certificate)
    world.check(0)


def test_a_configuration_that_appears_later_is_told() -> None:
    world = World(bundles={})
    world.settle()
    world.bundles["mutating"] = (frozenset(),)
    assert [type(step) for step in world.settle()] == [Trust]


def test_a_clock_that_was_ahead_does_not_keep_an_authority_waiting() -> None:
    world = World()
    world.settle()
    assert world.authorities
    world.authorities = (replace(world.authorities[0], announced=START + 1000 * DAY),)
    assert [type(step) for step in world.settle()] == [Keep]
    assert world.authorities[0].announced == START


def test_an_authority_without_its_key_gets_a_successor() -> None:
    world = World()
    world.settle()
    assert world.authorities
    world.authorities = (replace(world.authorities[0], key=""),)
    assert isinstance(world.settle()[0], Keep)
    assert len(world.authorities) == 2
    world.check(0)


ACTIONS = st.one_of(
    st.sampled_from(["step", "step", "step", "look", "late", "settle", "settle", "lose-ca", "lose-tls"]),
    st.sampled_from([1.0, 60.0, 299.0, 301.0, 3600.0, DAY / 2, DAY, DAY]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ACTIONS, min_size=20, max_size=140))
def test_at_no_moment_is_served_what_is_not_trusted(actions: list[str | float]) -> None:
    """Keepers are killed between any two writes (`step`), act on what they read long ago (`look`, then `late`), and
    people delete Secrets, though not both before what the first deletion began is over. The cluster goes without a
    keeper for a day at most at a time."""
    world, memory, idle = World(), None, 0.0
    world.settle()
    for action in actions:
        match action:
            case "step":
                world.step()
            case "settle":
                world.settle()
                idle = 0.0
            case "look":
                memory = (decide(world.now, world.view(), POLICY), dict(world.versions))
            case "late" if memory is not None:
                world.take(*memory)
            case "lose-ca" if world.serving is not None:
                world.authorities = None
                world.versions["ca"] += 1
            case "lose-tls" if any(item.waited(world.now, POLICY.wait) for item in world.authorities or ()):
                world.serving = None
                world.versions["tls"] += 1
            case float():
                if idle + action > DAY:
                    world.settle()
                    idle = 0.0
                idle += action
                world.now += action
        world.check(webhooks_late=DAY)
