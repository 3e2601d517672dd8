"""The dashboard's pages: the same values and the same actions as `/api/v1`, for people with a browser."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from urllib.parse import urlencode

from flask import Blueprint, Response, g, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from egress.adapters.cluster import NotFoundError
from egress.objects import Phase, Verdict
from egress.views import Trouble, Verb
from webhook.api.acting import Acting
from webhook.api.diagnosing import Diagnosing
from webhook.api.identity import LOOK, Gate
from webhook.api.queries import SORTS, BadRequestError, Filter, flag, wanted
from webhook.api.reading import Reading
from webhook.api.rights import STATUSES, DeniedError, act, demand, is_cross_site, look_closely, visible, who

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
PAGE = 100
MAX_AT_ONCE = 1000
MENU = (
    ("/", "Overview"), ("/assignments", "Assignments"), ("/nodes", "Nodes"), ("/failures", "Failures"),
    ("/pools", "Pools"), ("/audit", "Audit"),
)  # fmt: skip
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
        return {
            "menu": MENU, "path": request.path, "user": who().user if "identity" in g else "", "ago": _ago,
            "when": _when, "stale": reading.stale(), "paused": reading.paused(), "link": _link,
            "done": DONE.get(request.args.get("done", ""), ""),
        }  # fmt: skip

    _add_reads(pages, reading, gate)
    _add_diagnoses(pages, diagnosing, gate)
    _add_actions(pages, reading, acting, gate)
    _handle_errors(pages)
    return pages


def _add_reads(pages: Blueprint, reading: Reading, gate: Gate) -> None:
    @pages.get("/")
    def overview() -> str:
        return render_template("overview.html", title="Overview", overview=reading.overview(visible(gate)))

    @pages.get("/assignments")
    def assignments() -> str:
        page = reading.assignments(
            wanted(visible(gate)), sort=request.args.get("sort", "namespace"), descending=flag("descending"),
            after=request.args.get("after", ""), limit=PAGE,
        )  # fmt: skip
        return render_template(
            "assignments.html", title="Assignments", page=page, query=request.args, phases=list(Phase),
            troubles=list(Trouble), sorts=SORTS,
        )  # fmt: skip

    @pages.get("/namespaces/<name>")
    def namespace(name: str) -> str:
        demand(gate, LOOK, name)
        found = reading.namespace(name)
        if found is None:
            raise NotFoundError(f"there is no namespace {name} that Hawse knows of")
        return render_template("namespace.html", title=name, detail=found, verdicts=list(Verdict))

    @pages.get("/nodes")
    def nodes() -> str:
        demand(gate, LOOK)
        return render_template("nodes.html", title="Nodes", nodes=reading.nodes())

    @pages.get("/failures")
    def failures() -> str:
        namespaces = visible(gate)
        progress = reading.retried(request.args.get("run", "")) if namespaces is None else None
        return render_template(
            "failures.html", title="Failures", groups=reading.failures(namespaces), progress=progress
        )

    @pages.get("/pools")
    def pools() -> str:
        demand(gate, LOOK)
        return render_template("pools.html", title="Pools", pools=reading.pools())

    @pages.get("/audit")
    def audit() -> str:
        demand(gate, LOOK)
        return render_template("audit.html", title="Audit", audit=reading.audit(request.args.get("after", ""), PAGE))


def _add_diagnoses(pages: Blueprint, diagnosing: Diagnosing, gate: Gate) -> None:
    @pages.get("/namespaces/<name>/path")
    def explain(name: str) -> str:
        look_closely(gate, name)
        return render_template("path.html", title=f"The path of {name}", way=diagnosing.explain(name))

    @pages.get("/verification")
    def verify() -> str:
        look_closely(gate)
        return render_template("verification.html", title="Verification", found=diagnosing.verify())


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
            return render_template("error.html", title=status.phrase, detail=str(error)), status.value

        return answer

    for kind, status in STATUSES.items():
        pages.register_error_handler(kind, handler(status))


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
