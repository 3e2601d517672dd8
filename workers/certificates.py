"""What the webhook's certificates need next, decided from what is there and the time. Pure.

One step at a time, each one write, each safe to be the last: `decide` says what to do now, and is asked again. The
order of a rotation (docs/decisions/0013-certificates.md): a new authority is kept, then trusted everywhere, then its
announcement is noted; after a wait it signs; the old one is forgotten when whatever it signed has run out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from workers.pki import CLOCK_SKEW, Certificate

DAY = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Policy:
    """For which DNS `names`, for how long, and when anew; in seconds. `wait`: after how long every API server has
    surely seen an authority that stands in the webhook configurations."""

    names: tuple[str, ...]
    serving_lifetime: float = 90 * DAY
    authority_lifetime: float = 5 * 365 * DAY
    wait: float = 300.0

    def is_due(self, certificate: Certificate, now: float) -> bool:
        """Whether two thirds of its time are over."""
        made = certificate.begins + CLOCK_SKEW
        return now >= made + (certificate.ends - made) * 2 / 3


@dataclass(frozen=True, slots=True)
class Authority:
    """One that is trusted. Without a `key` it can sign no more. `announced`: since when all webhook configurations are
    known to trust it, in seconds since the epoch; None: not yet."""

    certificate: Certificate
    key: str = field(default="", repr=False)
    announced: float | None = None

    def waited(self, now: float, wait: float) -> bool:
        """Whether it may sign: it has been trusted everywhere for long enough."""
        return bool(self.key) and self.announced is not None and now - self.announced >= wait


@dataclass(frozen=True, slots=True)
class Serving:
    """What the webhook serves, and whether the key beside it is its own."""

    certificate: Certificate
    key_fits: bool = True


Bundle = frozenset[Certificate]


@dataclass(frozen=True, slots=True)
class View:
    """What is there. `authorities`, the oldest first: None if there is no Secret of them, or it cannot be read.
    `bundles`: for each webhook configuration that exists, what its webhooks trust."""

    authorities: tuple[Authority, ...] | None
    serving: Serving | None
    bundles: Mapping[str, tuple[Bundle, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Keep:
    """Write these authorities into their Secret; with `new`, one more that is still to be made, as the last."""

    authorities: tuple[Authority, ...]
    new: bool = False


@dataclass(frozen=True, slots=True)
class Trust:
    """Let the webhooks of `configuration` trust just these."""

    configuration: str
    authorities: tuple[Authority, ...]


@dataclass(frozen=True, slots=True)
class Issue:
    """Let `authority` sign a new certificate, and serve that."""

    authority: Authority
    trusted: tuple[Authority, ...]


Step = Keep | Trust | Issue


def decide(now: float, view: View, policy: Policy) -> Step | None:
    """The next write, or None when all is well until later. `now` in seconds since the epoch."""
    authorities = view.authorities
    if authorities is None:
        # Whoever is trusted stays so: what is served now may be signed by it, as when its Secret was deleted.
        return Keep(_adopted(view, now), new=True)
    if not authorities or not authorities[-1].key or policy.is_due(authorities[-1].certificate, now):
        return Keep(authorities, new=True)
    wanted = frozenset(authority.certificate for authority in authorities)
    for name, bundles in sorted(view.bundles.items()):
        if any(present != wanted for present in bundles):
            return Trust(name, authorities)
    newest = authorities[-1]
    if newest.announced is None or newest.announced > now:  # a clock that was wrong then
        return Keep((*authorities[:-1], replace(newest, announced=now)))
    return _issue(now, view.serving, authorities, policy) or _retire(now, authorities, policy)


def _issue(now: float, serving: Serving | None, authorities: tuple[Authority, ...], policy: Policy) -> Issue | None:
    signer = next((item for item in reversed(authorities) if _may_sign(item, now, policy)), None)
    if not _usable(now, serving, authorities, policy):
        # Nothing is lost by not waiting: the requests fail already, or there are none yet.
        return Issue(signer or authorities[-1], authorities)
    if serving is None or signer is None:
        return None
    if policy.is_due(serving.certificate, now) or not serving.certificate.signed_by(signer.certificate):
        return Issue(signer, authorities)
    return None


def _may_sign(authority: Authority, now: float, policy: Policy) -> bool:
    return authority.waited(now, policy.wait) and now < authority.certificate.ends


def _usable(now: float, serving: Serving | None, authorities: tuple[Authority, ...], policy: Policy) -> bool:
    """Whether an API server that trusts `authorities` accepts what is served."""
    if serving is None or not serving.key_fits:
        return False
    certificate = serving.certificate
    in_time = certificate.begins <= now < certificate.ends
    return in_time and set(policy.names) <= certificate.dns_names and _issuer(certificate, authorities, now) is not None


def _issuer(certificate: Certificate, authorities: tuple[Authority, ...], now: float) -> Authority | None:
    return next(
        (item for item in authorities if now < item.certificate.ends and certificate.signed_by(item.certificate)), None
    )


def _retire(now: float, authorities: tuple[Authority, ...], policy: Policy) -> Keep | None:
    """Without those whose certificates have all run out: the last one was signed before a successor took over."""
    kept = list(authorities)
    for number, authority in enumerate(authorities[:-1]):
        replaced = [item.announced for item in authorities[number + 1 :] if item.waited(now, policy.wait)]
        over = any(at is not None and now > at + policy.wait + policy.serving_lifetime + CLOCK_SKEW for at in replaced)
        if over or now >= authority.certificate.ends:
            kept.remove(authority)
    return Keep(tuple(kept)) if len(kept) < len(authorities) else None


def _adopted(view: View, now: float) -> tuple[Authority, ...]:
    trusted = {certificate for bundles in view.bundles.values() for present in bundles for certificate in present}
    return tuple(
        Authority(certificate)
        for certificate in sorted(trusted, key=lambda item: (item.begins, item.der))
        if now < certificate.ends
    )
