"""Whether anything can have changed since all was last looked at: if not, there is no need to look again.

Each run notes whether it found nothing to do. Where `place`, `publish` and the reconcile all have, the watch has
counted no change since, and all nodes live and say what they said, the next reconcile would find nothing either. Any
doubt is a reason to look, and so is that the last full look was `full_interval` ago (docs/decisions/0026).
"""

from __future__ import annotations

from egress.adapters.ledger import Ledger
from workers.context import Context

RECONCILE, PLACE, PUBLISH, PROFILES = "still:reconcile", "still:place", "still:publish", "still:profiles"
_KEPT_SECONDS = 24 * 3600.0


def view(ledger: Ledger) -> str:
    """What stays the same while nothing changes, to be taken before anything is read; "" while nobody would know."""
    seen = ledger.changes_seen()
    if seen is None:
        return ""
    return f"{sorted(seen.items())} {ledger.node_facts()}"


def is_still(context: Context, now: str) -> bool:
    """Whether a full look would find nothing; `now` is the `view` of now."""
    ledger = context.ledger
    return (
        bool(now)
        and ledger.recall(RECONCILE) == now
        and bool(ledger.recall(PLACE))
        and bool(ledger.recall(PUBLISH))
        and ledger.is_ready()
        and not ledger.lost()
        and not ledger.returned()
        and not ledger.silent(context.settings.heartbeat_patience)
    )


def note(context: Context, what: str, *, nothing: bool) -> None:
    """Notes whether a run of PLACE or PUBLISH found nothing to do and left nothing for later."""
    if nothing:
        context.ledger.remember(what, "nothing", _KEPT_SECONDS)
    else:
        context.ledger.forget(what)


def begin_reconcile(context: Context) -> None:
    """Call it before a reconcile asks for `place` and `publish`: until they have run, nobody knows what they find."""
    context.ledger.forget(PLACE, PUBLISH)


def note_reconcile(context: Context, before: str, *, nothing: bool, profiles: frozenset[str]) -> None:
    """The same of a reconcile, with the `view` from before it began, and the ticket profiles that it found in use."""
    if nothing and before:
        context.ledger.remember(PROFILES, ",".join(sorted(profiles)), _KEPT_SECONDS)
        context.ledger.remember(RECONCILE, before, context.settings.full_interval)
    else:
        context.ledger.forget(RECONCILE)


def profiles(context: Context) -> list[str]:
    """The ticket profiles that the last full look found in use."""
    return [name for name in context.ledger.recall(PROFILES).split(",") if name]
