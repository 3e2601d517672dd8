"""The nodes' table with its change log, and what the nodes report of themselves."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any

import msgspec
import structlog

from egress.adapters import scripts
from egress.adapters.ledger.connection import Connection, away
from egress.addresses import AddressError, parse_address
from egress.messages import BROKER_PREFIX, NUDGE_TASK, node_queue, nudge_message
from egress.table import Claim, NodeReport, Steering, SteeringHop

_log = structlog.get_logger()
NUDGE_GUARD_SECONDS = 15.0
"""How long a nudge that was lost keeps its node from getting another."""
MOST_NUDGES = 4
"""How many messages wait in the queue of a node that is away: whoever reads one of them looks at the whole table."""


@dataclass(frozen=True, slots=True)
class TableRead:
    """What a reader of the table missed: all of it (`whole`) or the rows that changed. A None row is gone.

    An empty `epoch` means that no table is published now: keep what you have. So does one with a row that cannot be
    read, as another version may have written; `rows` are then the others.
    """

    epoch: str
    change: int
    whole: bool
    rows: Mapping[int, Steering | None]


@dataclass(frozen=True, slots=True)
class LastChanges:
    """A table's epoch ("" for none) and when it began (seconds since the epoch, by Redis' clock), and the change that
    wrote each namespace's row."""

    epoch: str
    began: float
    changes: Mapping[str, int]


class _Hop(msgspec.Struct, frozen=True):
    address: str
    node: str
    node_ip: str
    ack: bool
    since: int


class _Row(msgspec.Struct, frozen=True, omit_defaults=True):
    namespace: str
    hops: list[_Hop]
    operation: str = ""
    former: int = 0


class _Claim(msgspec.Struct, frozen=True):
    address: str
    netid: int
    held: bool
    reason: str = ""
    message: str = ""


class _Report(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    look: str = ""  # first: the scripts look for it there
    at: float
    epoch: str
    applied: int
    link: str
    interface: str
    claims: list[_Claim]
    repairs: int
    problem: str
    carrier: bool = True
    gateways: list[str] = []
    other_links: list[str] = []
    run: str = ""  # these two are filled in by the script
    heard: float = 0.0
    last_problem: str = ""
    last_problem_at: float = 0.0


_ROW = msgspec.json.Decoder(_Row)
_REPORT = msgspec.json.Decoder(_Report)


class Table(Connection):
    """The one table that all nodes share."""

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        super().__init__(url, timeout)
        self._publish = self._redis.register_script(scripts.PUBLISH)
        self._changes = self._redis.register_script(scripts.CHANGES)
        self._last_changes = self._redis.register_script(scripts.LAST_CHANGES)
        self._report = self._redis.register_script(scripts.REPORT)
        self._reports = self._redis.register_script(scripts.REPORTS)
        self._looks = self._redis.register_script(scripts.LOOKS)
        self._applied = self._redis.register_script(scripts.APPLIED)
        self._nudge = self._redis.register_script(scripts.NUDGE)

    def read_table(self, epoch: str = "", change: int = 0) -> TableRead:
        """What changed since `change` of table `epoch`; the whole table for a reader that has none or another."""
        with away():
            reply: list[Any] = self._changes(args=[epoch, change]) if epoch else ["", 0, "all"]
        head, *rest = reply
        whole = rest[1:2] == ["all"]
        texts = dict(zip(rest[2::2], rest[3::2], strict=True))
        number = rest[0] if rest else 0
        if whole:
            head, number, texts = self._whole()
        if not head:
            return TableRead("", 0, whole=False, rows={})
        rows: dict[int, Steering | None] = {}
        broken = False
        for netid, text in ((int(key), text) for key, text in texts.items()):
            try:
                rows[netid] = _row(netid, text)
            except (msgspec.DecodeError, AddressError) as error:
                _log.error("a row of the table cannot be read", netid=netid, error=str(error))
                broken = True
        if broken:
            return TableRead("", 0, whole=False, rows=rows)
        return TableRead(head, int(number), whole, rows)

    def _whole(self) -> tuple[str, int, dict[str, str]]:
        """Epoch ("" for no table), change and all rows, of one moment. A script would copy the rows twice more, and all
        runners may begin at once."""
        with away():
            pipeline = self._redis.pipeline(transaction=True).info("server").get("hawse:epoch").get("hawse:run")
            server, epoch, run, change, texts = pipeline.get("hawse:change").hgetall("hawse:table").execute()
        return (epoch or "" if run == server["run_id"] else ""), int(change or 0), texts

    def publish(self, changes: Mapping[int, Steering | None], *, expected: int, epoch: str = "") -> int | None:
        """Writes changed rows; the new change number, or None when somebody published since change `expected`.

        `epoch` begins a new table: the caller has put all of it into `changes`.
        """
        args: list[Any] = [expected, epoch]
        for netid, row in sorted(changes.items()):
            args += [netid, _encoded(row) if row is not None else ""]
        with away():
            reply = int(self._publish(args=args))
        return None if reply < 0 else reply

    def last_changes(self, netids: Mapping[str, int]) -> LastChanges:
        """The table, and the change that wrote the row of each namespace's NetID, if it has one."""
        args = [item for pair in netids.items() for item in pair]
        with away():
            epoch, began, *changes = self._last_changes(args=args)
        known = {name: int(change) for name, change in zip(netids, changes, strict=True) if change}
        return LastChanges(epoch, float(began), known)

    def change_number(self) -> int:
        """The number of the last change, whether or not a table is published."""
        with away():
            return int(self._redis.get("hawse:change") or 0)

    def report(self, report: NodeReport) -> None:
        """Stores what a runner says of its node."""
        claims = [_Claim(str(c.address), c.netid, c.held, c.reason, c.message) for c in report.claims]
        wire = _Report(
            look=_look(report),
            at=report.at,
            epoch=report.epoch,
            applied=report.applied,
            link=report.link,
            interface=report.interface,
            claims=claims,
            repairs=report.repairs,
            problem=report.problem,
            carrier=report.carrier,
            gateways=[str(address) for address in report.gateways],
            other_links=list(report.other_links),
            last_problem=report.last_problem,
            last_problem_at=report.last_problem_at,
        )
        with away():
            self._report(args=[report.node, msgspec.json.encode(wire)])

    def reports(self, nodes: Iterable[str]) -> dict[str, NodeReport]:
        """What the runners of `nodes` last said.

        A node is absent that has said nothing since Redis started, or what cannot be read: a runner of another version.
        """
        names = sorted(nodes)
        if not names:
            return {}
        with away():
            run, *texts = self._reports(args=names)
        result: dict[str, NodeReport] = {}
        for name, text in zip(names, texts, strict=True):
            try:
                wire = _REPORT.decode(text) if text else None
                if wire is not None and wire.run == run:
                    result[name] = _node_report(name, wire)
            except (msgspec.DecodeError, AddressError) as error:
                _log.error("report cannot be read", node=name, error=str(error))
        return result

    def looks(self, nodes: Collection[str]) -> dict[str, str]:
        """What tells each node's report from one that says something else; "" where it has said nothing.

        Not part of it is when it was sent, and which change was applied: that alone changes in all of them with every
        change, and `reports` or `applied` has it for those of which it is asked.
        """
        return {name: "" if look == "-" else look for name, look in self._of_each(self._looks, nodes).items()}

    def applied(self, nodes: Collection[str], epoch: str) -> dict[str, int]:
        """The last change of table `epoch` that each node has applied; without those that have none of it."""
        return {
            name: int(change) for name, change in self._of_each(self._applied, nodes, epoch).items() if change != "-"
        }

    def _of_each(self, script: Any, nodes: Collection[str], *arguments: str) -> dict[str, str]:  # noqa: ANN401
        if not nodes:
            return {}
        names = sorted(nodes)
        with away():
            reply = script(args=[" ".join(names), *arguments])
        return dict(zip(names, reply.split(" "), strict=True))

    def nudge(self, nodes: Iterable[str]) -> int:
        """Puts a nudge into the queue of each of `nodes` that has none waiting; how many that were. At once for all:
        see `egress.messages.nudge_message`."""
        identity = str(uuid.uuid4())
        head, tail = nudge_message(identity, time.time())
        queue, pending, guard = node_queue(""), f"hawse:pending:{NUDGE_TASK}:", int(NUDGE_GUARD_SECONDS * 1000)
        with away():
            return int(
                self._nudge(
                    args=[" ".join(nodes), queue, BROKER_PREFIX, pending, guard, head, tail, MOST_NUDGES],
                )
            )


def _look(report: NodeReport) -> str:
    """What tells a report from one that says something else, but for what changes with every report or every change."""
    said = (
        report.link,
        report.interface,
        [(str(claim.address), claim.netid, claim.held, claim.reason, claim.message) for claim in report.claims],
        report.problem,
        report.carrier,
        [str(address) for address in report.gateways],
        report.other_links,
    )
    return hashlib.blake2b(msgspec.json.encode(said), digest_size=8).hexdigest()


def _node_report(name: str, wire: _Report) -> NodeReport:
    claims = tuple(Claim(parse_address(c.address), c.netid, c.held, c.reason, c.message) for c in wire.claims)
    for text in (wire.link, *wire.other_links):
        try:
            if text:
                ip_interface(text)
        except ValueError as error:
            raise AddressError(f"link: {error}") from None
    return NodeReport(
        name,
        wire.at,
        wire.epoch,
        wire.applied,
        wire.link,
        wire.interface,
        claims,
        wire.repairs,
        wire.problem,
        wire.carrier,
        tuple(map(parse_address, wire.gateways)),
        tuple(wire.other_links),
        wire.heard,
        wire.last_problem,
        wire.last_problem_at,
    )


def _encoded(row: Steering) -> bytes:
    hops = [_Hop(str(hop.address), hop.node, str(hop.node_ip), hop.acknowledged, hop.since) for hop in row.hops]
    return msgspec.json.encode(_Row(row.namespace, hops, row.operation, row.former))


def _row(netid: int, text: str) -> Steering | None:
    if not text:
        return None
    row = _ROW.decode(text)
    hops = tuple(
        SteeringHop(parse_address(hop.address), hop.node, parse_address(hop.node_ip), hop.ack, hop.since)
        for hop in row.hops
    )
    return Steering(netid, row.namespace, hops, row.operation, row.former)
