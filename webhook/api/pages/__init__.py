"""The dashboard's pages: the same values and the same actions as `/api/v1`, for people with a browser."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from http import HTTPStatus
from urllib.parse import urlencode

from flask import Blueprint, Response, g, redirect, render_template, request
from markupsafe import escape
from werkzeug.wrappers import Response as AnyResponse

from egress.actions import Trouble, Verb
from egress.adapters.cluster import NotFoundError
from egress.objects import Phase, Verdict
from egress.operations import TransientError
from webhook.api.acting import Acting
from webhook.api.diagnosing import Diagnosing
from webhook.api.identity import LOOK, Gate
from webhook.api.pages.printed import Printed
from webhook.api.queries import SORTS, BadRequestError, Filter, flag, number, wanted
from webhook.api.reading import Reading
from webhook.api.rights import (
    STATUSES,
    DeniedError,
    act,
    demand,
    is_cross_site,
    is_tenant,
    look_closely,
    visible,
    who,
)

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
PAGE = 100
STEPS = 25
"""How many steps of a history a page shows: each may have a traceback."""
FAULTS = 250
"""How many faults a page shows."""
USER = "\0user\0"
"""Stands in a page that several are shown for who looks at it."""
MAX_AT_ONCE = 1000
MENU = (
    ("/", "Overview"), ("/assignments", "Assignments"), ("/nodes", "Nodes"), ("/failures", "Failures"),
    ("/pools", "Pools"), ("/audit", "Audit"),
)  # fmt: skip
OF_ONE = ("/", "/assignments", "/failures")
"""What there is of one namespace too: `?namespace=NAME`."""
DONE = {
    "retried": "Asked to try again. This page follows what comes of it.",
    "released": "Asked to let its addresses go.",
    "moved": "Asked to move the address. This page follows what comes of it.",
    "decided": "The decision is kept.",
    "paused": "The automation is paused.",
    "resumed": "The automation runs again.",
}


def blueprint(reading: Reading, acting: Acting, diagnosing: Diagnosing, gate: Gate) -> Blueprint:
    """The pages. Whoever is not known sees none."""
    pages = Blueprint("pages", __name__, template_folder="templates", static_folder="static", static_url_path="/static")

    @pages.before_request
    def known() -> None:
        if request.endpoint == "pages.static":
            return
        g.identity = gate.who(request)
        if request.method == "POST" and not _is_from_here():
            raise DeniedError("this did not come from Hawse's own pages: press the button there")

    @pages.after_request
    def guarded(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "same-origin"
        if request.endpoint != "pages.static":
            response.headers["Cache-Control"] = "no-store"
        return response

    @pages.context_processor
    def common() -> dict[str, object]:
        user = "" if "identity" not in g else USER if "shared" in g else who().user
        return {
            "menu": _menu(gate), "path": request.path, "user": user, "ago": _ago,
            "when": _when, "stale": reading.stale(), "paused": reading.paused(), "link": _link,
            "done": DONE.get(request.args.get("done", ""), ""),
        }  # fmt: skip

    _add_reads(pages, reading, gate)
    _add_diagnoses(pages, diagnosing, gate)
    _add_actions(pages, reading, acting, gate)
    _handle_errors(pages)
    return pages


def _add_reads(pages: Blueprint, reading: Reading, gate: Gate) -> None:
    printed = Printed()

    def shared(namespaces: Collection[str] | None, make: Callable[[], str]) -> str:
        """A page that is the same for all who may see `namespaces`, but for who they are."""
        g.shared = True
        key = (request.full_path, None if namespaces is None else tuple(namespaces), is_tenant(gate))
        return printed.get(key, reading.edition, make).replace(USER, str(escape(who().user)), 1)

    @pages.get("/")
    def overview() -> str:
        seen = visible(gate)
        return shared(seen, lambda: render_template("overview.html", title="Overview", overview=reading.overview(seen)))

    @pages.get("/assignments")
    def assignments() -> str:
        meant, sort, descending = wanted(visible(gate)), request.args.get("sort", "namespace"), flag("descending")

        def make() -> str:
            page = reading.assignments(
                meant, sort=sort, descending=descending, after=request.args.get("after", ""), limit=PAGE
            )
            return render_template(
                "assignments.html", title="Assignments", page=page, query=request.args, phases=list(Phase),
                troubles=list(Trouble), sorts=SORTS, sort=sort, descending=descending,
            )  # fmt: skip

        return shared(meant.namespaces, make)

    @pages.get("/namespaces/<name>")
    def namespace(name: str) -> str:
        demand(gate, LOOK, name)
        found = reading.namespace(name)
        if found is None:
            raise NotFoundError(f"there is no namespace {name} that Hawse knows of")
        begin = number("steps", 0)
        return render_template(
            "namespace.html", title=name, detail=found, verdicts=list(Verdict), begin=begin, end=begin + STEPS
        )

    @pages.get("/nodes")
    def nodes() -> str:
        demand(gate, LOOK)
        unseen = reading.network().unseen
        return shared(None, lambda: render_template("nodes.html", title="Nodes", nodes=reading.nodes(), unseen=unseen))

    @pages.get("/failures")
    def failures() -> str:
        seen = visible(gate)

        def make() -> str:
            progress = reading.retried(request.args.get("run", "")) if seen is None else None
            groups = reading.failures(seen)
            return render_template("failures.html", title="Failures", groups=groups, progress=progress)

        return shared(seen, make)

    @pages.get("/pools")
    def pools() -> str:
        demand(gate, LOOK)
        return shared(None, lambda: render_template("pools.html", title="Pools", pools=reading.pools()))

    @pages.get("/audit")
    def audit() -> str:
        demand(gate, LOOK)
        return render_template("audit.html", title="Audit", audit=reading.audit(request.args.get("after", ""), PAGE))


def _add_diagnoses(pages: Blueprint, diagnosing: Diagnosing, gate: Gate) -> None:
    @pages.get("/namespaces/<name>/path")
    def explain(name: str) -> str:
        look_closely(gate, name)
        return render_template("path.html", title=f"The path of {name}", way=diagnosing.explain(name), most=FAULTS)

    @pages.get("/verification")
    def verify() -> str:
        look_closely(gate)
        return render_template("verification.html", title="Verification", found=diagnosing.verify(), most=FAULTS)


def _add_actions(pages: Blueprint, reading: Reading, acting: Acting, gate: Gate) -> None:
    @pages.post("/namespaces/<name>/retry")
    def retry(name: str) -> AnyResponse:
        act(gate, Verb.RETRY, name)
        acting.retry(who().user, name, _why())
        return _back(f"/namespaces/{name}", "retried")

    @pages.post("/failures/retry")
    def retry_many() -> AnyResponse:
        """Those that were chosen, or all that have one trouble for one reason."""
        act(gate, Verb.RETRY)
        trouble, reason = request.form.get("trouble", ""), request.form.get("reason", "")
        if trouble not in list(Trouble):
            raise BadRequestError("choose what to try again")
        alike = {item.namespace for item in reading.matching(Filter(trouble=Trouble(trouble))) if item.reason == reason}
        chosen = alike if request.form.get("which") == "all" else set(request.form.getlist("namespace"))
        if not chosen:
            raise BadRequestError("choose what to try again")
        if not chosen & alike:
            raise BadRequestError(f"none of them is {trouble} ({reason[:100]}) any more: look again")
        now = sorted(chosen & alike)[:MAX_AT_ONCE]
        run = acting.start_retry(who().user, Trouble(trouble), reason, now, _why())
        return redirect(f"/failures?{urlencode({'run': run, 'done': 'retried'})}", HTTPStatus.SEE_OTHER)

    @pages.post("/namespaces/<name>/release")
    def release(name: str) -> AnyResponse:
        act(gate, Verb.RELEASE, name)
        if request.form.get("sure") != name:
            raise BadRequestError(f"write {name} to confirm: its connections end")
        acting.release(who().user, name, _why())
        return _back(f"/namespaces/{name}", "released")

    @pages.post("/addresses/<address>/move")
    def move(address: str) -> AnyResponse:
        act(gate, Verb.MOVE)
        node = request.form.get("node", "").strip()
        if not node:
            raise BadRequestError("name the node that is to have the address")
        _demand_sure(f"a move ends the connections of {address}")
        acting.move(who().user, address, node, _why())
        return _back(f"/namespaces/{acting.namespace_of(address)}", "moved")

    @pages.post("/addresses/<address>/decision")
    def decide(address: str) -> AnyResponse:
        act(gate, Verb.APPROVE)  # of one namespace alone nobody approves for himself
        verdict = request.form.get("verdict", "")
        if verdict not in list(Verdict):
            raise BadRequestError(f"decide: {', '.join(Verdict)}")
        if verdict != Verdict.APPROVED:
            _demand_sure(f"without an approval the traffic of {address} is dropped")
        acting.approve(who().user, address, _why(), Verdict(verdict))
        return _back(f"/namespaces/{acting.namespace_of(address)}", "decided")

    @pages.post("/pause")
    def pause() -> AnyResponse:
        act(gate, Verb.PAUSE)
        acting.pause(who().user, _why())
        return _back("/", "paused")

    @pages.post("/resume")
    def resume() -> AnyResponse:
        act(gate, Verb.PAUSE)
        acting.resume(who().user, _why())
        return _back("/", "resumed")


def _handle_errors(pages: Blueprint) -> None:
    def handler(status: HTTPStatus) -> Callable[[Exception], tuple[str, int]]:
        def answer(error: Exception) -> tuple[str, int]:
            g.pop("shared", None)
            ask = isinstance(error, DeniedError) and request.path in OF_ONE and not request.args.get("namespace")
            return render_template("error.html", title=status.phrase, detail=str(error), ask=ask), status.value

        return answer

    for kind, status in STATUSES.items():
        pages.register_error_handler(kind, handler(status))


def _menu(gate: Gate) -> list[tuple[str, str]]:
    """Where one can go: for whoever may not see all, the pages of the one namespace that this one is about."""
    try:
        tenant = "identity" in g and is_tenant(gate)
    except TransientError:
        tenant = False
    if not tenant:
        return list(MENU)
    name = request.args.get("namespace") or str((request.view_args or {}).get("name", ""))
    query = f"?{urlencode({'namespace': name})}" if name else ""
    return [(href + query, text) for href, text in MENU if href in OF_ONE]


def _is_from_here() -> bool:
    """Whether a form of these pages was sent: browsers say where a POST comes from, and what says nothing is none."""
    said = request.headers.get("Sec-Fetch-Site") == "same-origin" or "Origin" in request.headers
    return not who().ambient or (said and not is_cross_site())


def _demand_sure(cut: str) -> None:
    if request.form.get("sure") != "yes":
        raise BadRequestError(f"say that you are sure: {cut}")


def _why() -> str:
    return request.form.get("why", "").strip()


def _back(path: str, done: str) -> AnyResponse:
    return redirect(f"{path}?done={done}", HTTPStatus.SEE_OTHER)


def _link(**changes: str) -> str:
    """This page's address with another query."""
    kept = {name: text for name, text in request.args.items() if name not in ("after", "done")} | changes
    return f"{request.path}?{urlencode({name: text for name, text in kept.items() if text})}"


def _ago(at: float) -> str:
    """How long ago, in the largest unit; "" for never."""
    if not at:
        return ""
    seconds = max(0, int(time.time() - at))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ") if at else ""
