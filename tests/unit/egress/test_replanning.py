"""Planning anew what changed, and all that it touches, gives what planning everything gives."""

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from egress.listing import who_lists
from egress.objects import Decision, EgressAddress, HostSubnet, NetNamespace, Origin, Phase, Verdict
from egress.replanning import Objects, Replanner, Table, changes_of, conflicts_of, desire
from egress.table import SILENT_SECONDS, Claim, NodeReport, Steering, unbound

NODES = ("node1", "node2", "node3")
NAMES = ("alpha", "beta", "gamma", "delta")
TEXTS = ("10.0.0.1", "10.0.0.101", "10.0.0.102", "10.0.0.103", "10.0.0.104", "fd00::101", "fd00::102", "no address")
ADDRESSES = tuple(ip_address(text) for text in TEXTS[:-1])
IPS = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "no IP")
NETIDS = (0, 5, 6, 7, 1 << 24)

addresses = st.sampled_from(ADDRESSES)
netids = st.sampled_from(NETIDS[:-1])
egress_ips = st.lists(st.sampled_from(TEXTS), max_size=3).map(tuple)
approvals = st.sampled_from([None, Verdict.APPROVED, Verdict.WITHDRAWN])


def whole(planner: Replanner, objects: Objects, table: Table) -> tuple[dict[int, Steering | None], object, object]:
    """What planning everything gives: the rows to write, the outcomes and the contradictions."""
    desired = desire(objects, planner.rows, planner.reports, planner.lost, table)
    rows = planner.rows if table.epoch else {}
    changes = {
        netid: desired.rows.get(netid)
        for netid in desired.rows.keys() | rows.keys()
        if desired.rows.get(netid) != rows.get(netid)
    }
    return changes, desired.outcomes, conflicts_of(desired)


class Changes(RuleBasedStateMachine):
    """Objects, reports, the table and time change in any order, several between two publishings, some of which fail."""

    @initialize()
    def nothing_is_there(self) -> None:
        self.planner = Replanner()
        self.objects = self.shown = Objects({}, {}, {})
        self.promised: dict[str, int] = {}
        self.reports: dict[str, NodeReport] = {}
        self.rows: dict[int, Steering] = {}
        self.lost: dict[str, float] = {}
        self.listed: dict[object, object] = {}
        self.change, self.now, self.epoch = 0, 1000.0, "epoch"

    @rule(name=st.sampled_from(NODES), ip=st.sampled_from(IPS), texts=egress_ips, there=st.integers(0, 4))
    def a_host_subnet_changes(self, name: str, ip: str, texts: tuple[str, ...], there: int) -> None:
        subnets = {key: value for key, value in self.objects.subnets.items() if key != name}
        self.objects = replace(self.objects, subnets=subnets | ({name: HostSubnet(name, ip, texts)} if there else {}))

    @rule(name=st.sampled_from(NAMES), netid=st.sampled_from(NETIDS), texts=egress_ips, there=st.integers(0, 3))
    def a_net_namespace_changes(self, name: str, netid: int, texts: tuple[str, ...], there: int) -> None:
        kept = {key: value for key, value in self.objects.net_namespaces.items() if key != name}
        new = {name: NetNamespace(name, netid, texts)} if there else {}
        self.objects = replace(self.objects, net_namespaces=kept | new)

    @rule(
        address=addresses,
        name=st.sampled_from(NAMES),
        phase=st.sampled_from([Phase.READY, Phase.QUARANTINED]),
        by_hand=st.booleans(),
        approval=approvals,
        there=st.integers(0, 3),
        operation=st.sampled_from(["", "one", "two"]),
    )
    def a_claim_changes(  # noqa: PLR0917 - what rules are given has names
        self,
        address: object,
        name: str,
        phase: Phase,
        by_hand: bool,
        approval: Verdict | None,
        there: int,
        operation: str,
    ) -> None:
        key = str(address)
        claims = {other: claim for other, claim in self.objects.claims.items() if other != key}
        claim = EgressAddress(
            key,
            "" if by_hand else "pool",
            name,
            "uid",
            Origin.MANUAL if by_hand else Origin.AUTOMATIC,
            phase=phase,
            operation=operation,
            approval_required=approval is not None,
            decision=Decision(approval, "somebody", 0.0, "api") if approval is not None else None,
        )
        self.objects = replace(self.objects, claims=claims | ({key: claim} if there else {}))

    @rule(name=st.sampled_from(NAMES), netid=st.sampled_from([5, 6, 7, 8]), there=st.booleans())
    def a_netid_is_promised(self, name: str, netid: int, there: bool) -> None:
        self.promised.pop(name, None)
        if there and netid not in self.promised.values():
            self.promised[name] = netid

    @rule(
        node=st.sampled_from(NODES),
        held=st.lists(st.tuples(addresses, netids, st.booleans()), max_size=3),
        behind=st.integers(0, 2),
        carrier=st.integers(0, 5),
        there=st.integers(0, 5),
        ago=st.sampled_from([0.0, SILENT_SECONDS + 1]),
        epoch=st.sampled_from(["epoch", "epoch", ""]),
    )
    def a_node_reports(  # noqa: PLR0917 - what rules are given has names
        self,
        node: str,
        held: list[tuple[object, int, bool]],
        behind: int,
        carrier: int,
        there: int,
        ago: float,
        epoch: str,
    ) -> None:
        self.reports.pop(node, None)
        if there:
            claims = tuple(Claim(address, netid, held=yes) for address, netid, yes in held)  # type: ignore[arg-type]
            applied = max(0, self.change - behind)
            report = NodeReport(node, 0.0, epoch, applied, claims=claims, carrier=bool(carrier))
            self.reports[node] = replace(report, heard=self.now - ago)

    @rule(node=st.sampled_from(NODES), behind=st.integers(0, 2))
    def a_node_does_as_the_table_says(self, node: str, behind: int) -> None:
        claims = tuple(
            Claim(hop.address, netid, held=True)
            for netid, row in sorted(self.rows.items())
            for hop in row.hops
            if hop.node == node
        )
        report = NodeReport(node, 0.0, "epoch", max(0, self.change - behind), claims=claims)
        self.reports[node] = replace(report, heard=self.now)

    @rule(nodes=st.sets(st.sampled_from(NODES), max_size=2))
    def nodes_are_lost(self, nodes: set[str]) -> None:
        self.lost = dict.fromkeys(nodes, 1.0)

    @rule(seconds=st.sampled_from([1.0, SILENT_SECONDS]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(netid=st.sampled_from(NETIDS[:-1]), name=st.sampled_from(NAMES), former=st.integers(0, 2))
    def somebody_else_publishes(self, netid: int, name: str, former: int) -> None:
        self.change += 1
        self.rows = {**self.rows, netid: Steering(netid, name, former=former)}

    @rule()
    def the_table_is_lost(self) -> None:
        self.epoch, self.rows = "", {}

    def show(self, *, partly: bool) -> None:
        for see, before, after in (
            (self.planner.see_subnets, self.shown.subnets, self.objects.subnets),
            (self.planner.see_claims, self.shown.claims, self.objects.claims),
            (self.planner.see_net_namespaces, self.shown.net_namespaces, self.objects.net_namespaces),
        ):
            news = {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
            see(news if partly else after, whole=not partly)  # type: ignore[operator]
        self.shown = self.objects

    @rule(settles=st.integers(0, 3), forgets=st.integers(0, 9), partly=st.booleans())
    def it_is_published(self, settles: int, forgets: int, partly: bool) -> None:
        planner = self.planner
        if not forgets:
            planner.forget()
        if not self.epoch:
            planner.plan_again_from_nothing()
        planner.see_rows(self.rows, whole=True)
        self.show(partly=bool(partly and forgets))
        planner.see_reports({node: self.reports.get(node) for node in NODES})
        planner.see_lost(self.lost)
        names = unbound(self.objects.net_namespaces.values(), self.objects.claims.values())
        assert planner.unbound == names
        table = Table(self.epoch, {name: netid for name, netid in self.promised.items() if name in names}, self.now)
        wanted, outcomes, conflicts = whole(planner, self.objects, table)

        scope = planner.scope(table.promised)
        nodes = planner.asks(scope) if self.epoch else set(NODES)
        reports = {node: report for node, report in self.reports.items() if node in nodes}
        desired = planner.plan(scope, planner.objects(scope), reports, table)
        assert changes_of(desired, scope, planner.rows if self.epoch else {}) == wanted
        assert planner.outcomes == outcomes
        assert conflicts_of(desired) == conflicts
        reasons = {name: outcome.reasons for name, outcome in planner.outcomes.items()}
        assert planner.in_conflict() == {name for name, texts in reasons.items() if set(texts) & set(conflicts)}
        self.listed = {} if planner.whole else self.listed
        self.listed |= planner.relisted()
        listed = {address: lists for address, lists in self.listed.items() if lists.hosts or lists.namespaces}  # type: ignore[attr-defined]
        assert listed == who_lists(self.objects.subnets.values(), self.objects.net_namespaces.values())
        if settles:
            self.write(wanted)
            planner.settle()

    def write(self, wanted: dict[int, Steering | None]) -> None:
        rows = dict(self.rows) if self.epoch else {}
        for netid, row in sorted(wanted.items()):
            self.change += 1
            rows.pop(netid, None)
            if row is not None:
                hops = tuple(hop if hop.since else replace(hop, since=self.change) for hop in row.hops)
                rows[netid] = replace(row, hops=hops)
        self.rows, self.epoch = rows, "epoch"

    @invariant()
    def nothing(self) -> None:
        """Everything is checked where it is published."""


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
