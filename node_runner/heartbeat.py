"""Says that this node lives, and looks on the link for the nodes that do not say so."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection
from ipaddress import ip_interface

import structlog

from egress.adapters.ledger import Ledger
from egress.addresses import Address, AddressError, parse_address
from egress.liveness import WITNESSES, Identity, Sighting, Silence, look_interval
from egress.operations import TransientError
from node_runner.drivers.errors import NodeError
from node_runner.drivers.ports import LinkFacts, Node, ProbeTiming, askable

_log = structlog.get_logger()
TIMING = ProbeTiming(3, 0.08, 0.15)
"""Three lost frames in a row and two witnesses who lose them: what answers at all is not taken for lost."""
TELL_SECONDS = 2.0
"""How often a node that counts as lost, and lives, says so."""
CONTROLS, SAMPLE = 3, 64
"""How many living neighbours, and how many of a silent node's addresses, are asked for at most."""


class Heartbeat:
    """One node's heartbeat and its eyes. `addresses_of` gives what the table says a node holds; `tell` asks the workers
    to judge, and may raise TransientError. Each of `beat_until` and `look_until` runs in a thread of its own: a look
    takes longer than a heartbeat may."""

    def __init__(
        self,
        me: Identity,
        ledger: Ledger,
        drivers: Node,
        addresses_of: Callable[[str], Collection[Address]],
        tell: Callable[[], None],
        *,
        patience: float,
    ) -> None:
        self._me = me
        self._ledger = ledger
        self._links = drivers.links
        self._arp = drivers.arp
        self._addresses_of = addresses_of
        self._tell = tell
        self._patience = patience
        self._silent: queue.Queue[tuple[Silence, ...]] = queue.Queue(maxsize=1)
        self._away = False
        self._tell_again = float("-inf")

    def beat_until(self, stop: threading.Event, interval: float) -> None:
        """Beats every `interval` seconds."""
        while not stop.is_set():
            self.beat()
            stop.wait(interval)

    def look_until(self, stop: threading.Event) -> None:
        """Looks for the nodes that are silent, as they are heard of."""
        while not stop.is_set():
            try:
                silent = self._silent.get(timeout=0.5)
            except queue.Empty:
                continue
            self.look(silent)

    def beat(self) -> None:
        """Says once that the node lives."""
        try:
            heard = self._ledger.beat(self._me.node, self._me.ip, self._patience)
            if heard.lost and time.monotonic() >= self._tell_again:
                self._tell()
                self._tell_again = time.monotonic() + TELL_SECONDS
        except TransientError as error:
            if not self._away:  # once, and not three times a second while it lasts
                _log.warning("no heartbeat", error=str(error))
            self._away = True
            return
        self._away = False
        if heard.silent and self._silent.empty():
            self._silent.put_nowait(heard.silent)

    def look(self, silent: Collection[Silence]) -> None:
        """Looks for `silent` nodes of this link, where not enough others do, and tells what it sees."""
        try:
            link = self._links.facts()
            network = ip_interface(f"{self._me.ip}/{link.prefix_length}").network
            ips = {silence.node: ip for silence in silent if (ip := _parsed(silence.node_ip)) and ip in network}
            missed = [
                silence
                for silence in silent
                if silence.node in ips
                and link.carrier
                and self._ledger.volunteer(silence.node, self._me.node, WITNESSES, look_interval(silence.seconds))
            ]
            if missed:
                self._look(link, missed, ips)
        except TransientError as error:
            _log.info("what was seen cannot be told", error=str(error))
        except NodeError as error:
            _log.warning("cannot look for silent nodes", reason=error.reason, error=str(error))

    def _look(self, link: LinkFacts, missed: Collection[Silence], ips: dict[str, Address]) -> None:
        network = ip_interface(f"{self._me.ip}/{link.prefix_length}").network
        own = parse_address(self._me.ip)
        living = map(_parsed, self._ledger.living(self._patience).values())
        neighbours = [*(ip for ip in living if ip and ip in network and ip != own), *link.gateways]
        controls = frozenset(neighbours[:CONTROLS])
        held, unseen = {}, set()
        for silence in missed:
            addresses = self._addresses_of(silence.node)
            can_ask = [address for address in addresses if askable(link, own, address) is not None]
            held[silence.node] = frozenset(sorted(can_ask, key=int)[:SAMPLE])
            if len(can_ask) < len(addresses):
                unseen.add(silence.node)
        wanted = controls.union(*held.values(), (ips[silence.node] for silence in missed))
        answered = self._arp.who_has(link, own, wanted, TIMING)
        if controls and not controls & answered.keys():
            _log.warning("nobody answers on this link: says nothing of others", asked=sorted(map(str, controls)))
            return
        at = self._ledger.now()
        for silence in missed:
            found = held[silence.node] & answered.keys()
            answers = ips[silence.node] in answered
            if answers and not found and silence.node in unseen:
                continue  # it may hold what this node has no IP to ask for
            self._ledger.saw(silence.node, Sighting(self._me.node, at, answers, found))
            _log.info("looked for a silent node", node=silence.node, answers=answers, held=sorted(map(str, found)))
        self._tell()


def _parsed(text: str) -> Address | None:
    try:
        return parse_address(text)
    except AddressError:
        return None
