"""The address lists, as a firewall polls them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

import pytest

from egress.adapters.ledger import Ledger
from lab.apiserver.process import EmbeddedCluster
from lab.net.broker import Broker

PROD = "/lists/pools/prod.txt"


@pytest.fixture
def filled(objects: Any) -> Any:
    objects.pool("prod", "192.168.1.0/24", "2001:db8::/64")
    objects.pool("spare", "10.9.0.0/24")
    objects.namespace("shop", team="a", tier="gold")
    objects.namespace("mail", team="b")
    for address in ("192.168.1.100", "192.168.1.20", "192.168.1.3", "2001-0db8-0000-0000-0000-0000-0000-0009"):
        objects.claim(address)
    objects.claim("10.9.0.5", "spare", "mail")
    return objects


def test_a_pools_list_is_its_assigned_addresses_in_their_order(filled: Any, api: Any) -> None:
    answer = api.get(PROD)
    assert answer.status == 200
    assert answer.body == b"192.168.1.3\n192.168.1.20\n192.168.1.100\n2001:db8::9\n"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.etag.startswith('"')
    assert parsedate_to_datetime(answer.headers["last-modified"]) <= parsedate_to_datetime(answer.headers["date"])
    assert api.get("/lists/pools/spare.txt").body == b"10.9.0.5\n"


def test_json_says_whose_each_address_is(filled: Any, api: Any) -> None:
    answer = api.get("/lists/pools/spare.json")
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body) == {
        "name": "spare",
        "addresses": [{"address": "10.9.0.5", "namespace": "mail", "pool": "spare"}],
    }
    assert answer.etag != api.get("/lists/pools/spare.txt").etag


def test_a_defined_list_takes_pools_and_labels(filled: Any, api: Any) -> None:
    api.write(
        {
            "lists": [
                {"name": "all"},
                {"name": "gold", "labels": {"team": "a", "tier": "gold"}, "comments": True},
                {"name": "none", "pools": ["spare"], "labels": {"team": "a"}},
            ]
        }
    )
    assert len(api.get("/lists/all.txt").lines) == 5
    assert api.get("/lists/gold.txt").lines[0] == "192.168.1.3 # shop"
    assert api.get("/lists/none.txt").body == b""
    filled.kube.patch("Namespace", "mail", {"metadata": {"labels": {"team": "a"}}})
    api.until(lambda: api.get("/lists/none.txt").body == b"10.9.0.5\n")
    filled.kube.patch("Namespace", "mail", {"metadata": {"labels": {"team": None}}})
    api.until(lambda: api.get("/lists/none.txt").body == b"")


def test_what_is_in_quarantine_or_withheld_is_not_on_a_list(filled: Any, api: Any) -> None:
    filled.claim("192.168.1.50", approval="required")
    filled.status("192.168.1.20", phase="Quarantined")
    api.until(lambda: "192.168.1.20" not in api.get(PROD).lines)
    assert "192.168.1.50" not in api.get(PROD).lines
    decision = {"verdict": "approved", "by": "ana", "at": "2026-01-01T00:00:00Z", "source": "operator"}
    filled.status("192.168.1.50", decision=decision)
    api.until(lambda: "192.168.1.50" in api.get(PROD).lines)
    filled.status("192.168.1.50", decision=decision | {"verdict": "withdrawn"})
    api.until(lambda: "192.168.1.50" not in api.get(PROD).lines)


def test_a_change_that_the_list_does_not_show_keeps_the_etag(filled: Any, api: Any) -> None:
    before = api.get(PROD)
    filled.status("192.168.1.3", phase="Ready", node="node1")
    filled.claim("10.9.0.6", "spare", "mail")
    api.until(lambda: "10.9.0.6" in api.get("/lists/pools/spare.txt").lines)
    after = api.get(PROD)
    assert (after.etag, after.headers["last-modified"]) == (before.etag, before.headers["last-modified"])


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_known_edition_is_not_sent_again(filled: Any, api: Any, method: str) -> None:
    found = api.ask(method, PROD)
    assert found.status == 200
    assert int(found.headers["content-length"]) == len(api.get(PROD).body)
    assert bool(found.body) == (method == "GET")
    for known in (found.etag, "*", f'"other", W/{found.etag}', f'{found.etag}, "x"'):
        answer = api.ask(method, PROD, headers={"If-None-Match": known})
        assert (answer.status, answer.body, answer.etag) == (304, b"", found.etag), known
        assert answer.headers["cache-control"] == "no-cache"
    for other in ('"other"', "", "garbage"):
        assert api.ask(method, PROD, headers={"If-None-Match": other}).status == 200, other


def test_a_date_counts_if_it_is_ours(filled: Any, api: Any) -> None:
    found = api.get(PROD)
    ours = found.headers["last-modified"]
    later = format_datetime(parsedate_to_datetime(ours) + timedelta(hours=1), usegmt=True)
    assert api.get(PROD, If_Modified_Since=ours).status == 304
    assert api.get(PROD, If_Modified_Since=later).status == 200
    assert api.get(PROD, If_Modified_Since="nonsense").status == 200
    assert api.get(PROD, If_Modified_Since=ours, If_None_Match='"other"').status == 200  # the tag is what counts


def test_two_contents_of_one_second_are_told_apart(filled: Any, api: Any) -> None:
    """By their dates they are one."""
    dates: dict[str, set[str]] = {}
    for number in range(30, 60):
        filled.claim(f"192.168.1.{number}")
        api.until(lambda number=number: f"192.168.1.{number}" in api.get(PROD).lines)
        found = api.get(PROD)
        dates.setdefault(found.headers["last-modified"], set()).add(found.etag)
        for date, etags in dates.items():
            answer = api.get(PROD, If_Modified_Since=date)
            assert answer.status == 200 or etags == {answer.etag}
    assert any(len(etags) > 1 for etags in dates.values())


def test_there_is_no_list_of_what_is_not_there(filled: Any, api: Any) -> None:
    for path in ("/lists/nope.txt", "/lists/pools/nope.txt", "/lists/pools/prod", "/lists/pools/prod.xml", "/lists/"):
        answer = api.get(path)
        assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json"), path
    assert api.ask("POST", PROD).status == 405
    assert api.ask("POST", PROD).headers["allow"] == "GET, HEAD, OPTIONS"


def test_a_list_is_for_whom_it_says(filled: Any, api: Any) -> None:
    auth = {"usernameFile": api.secret("user", "fw"), "passwordFile": api.secret("password", "s3:cret")}
    api.write({"lists": [{"name": "all", "auth": auth}, {"name": "open"}]})

    def basic(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    assert api.get("/lists/open.txt").status == 200
    assert api.get("/lists/all.txt", Authorization=basic("fw:s3:cret")).status == 200
    wrong = [
        basic("fw:x"),
        basic("x:s3:cret"),
        basic("fw"),
        basic(":"),
        "Basic !",
        "Bearer fw",
        basic("fw:s3:cret\u00e9"),
    ]
    for given in [{}, *({"Authorization": text} for text in wrong)]:
        answer = api.get("/lists/all.txt", **given)
        assert answer.status == 401, given
        assert answer.headers["www-authenticate"].startswith("Basic realm=")
        assert b"192.168" not in answer.body
    api.secret("password", "next")  # read when it is used
    assert api.get("/lists/all.txt", Authorization=basic("fw:s3:cret")).status == 401
    assert api.get("/lists/all.txt", Authorization=basic("fw:next")).status == 200
    (api.directory / "password").unlink()
    assert api.get("/lists/all.txt", Authorization=basic("fw:next")).status == 503
    assert "s3:cret" not in api.log()
    api.secret("password", "next")
    api.write({"listAuth": auth, "lists": [{"name": "open"}]})
    assert [api.get(path).status for path in ("/lists/open.txt", PROD)] == [401, 401]
    assert api.get(PROD, Authorization=basic("fw:next")).status == 200


def test_a_profiles_file_that_means_nothing_changes_nothing(filled: Any, api: Any) -> None:
    api.write({"lists": [{"name": "all"}]})
    assert api.get("/lists/all.txt").status == 200
    api.profiles.write_text("lists: [{name: Wrong Name}]")
    assert api.get("/lists/all.txt").status == 200
    assert "the profiles stay as they were" in api.log()
    api.write({})
    assert api.get("/lists/all.txt").status == 404


def test_before_all_is_read_there_is_no_list_and_afterwards_the_last_one_stays(
    filled: Any, cluster: EmbeddedCluster, make_api: Callable[..., Any]
) -> None:
    cluster.stop()
    api = make_api().start(ready=False)
    answer = api.get(PROD)
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert api.health("/readyz").status == 503
    cluster.start()
    api.until(lambda: api.get(PROD).status == 200)
    known = api.get(PROD)
    assert len(known.lines) == 4
    cluster.kill()
    api.until(lambda: b'hawse_api_mirror_current{kind="egressaddress"} 0.0' in api.health("/metrics").body)
    again = api.get(PROD)
    assert (again.status, again.body, again.etag) == (200, known.body, known.etag)
    assert api.health("/readyz").status == 200
    cluster.start()
    filled.claim("192.168.1.77")
    api.until(lambda: "192.168.1.77" in api.get(PROD).lines)


def test_all_processes_give_the_same_date_though_one_began_later(
    filled: Any, make_api: Callable[..., Any], ledger: Ledger
) -> None:
    first = make_api().start()
    found = first.get(PROD)
    ledger.first_seen("another.txt", "x", 0.0)
    second = make_api().start()
    assert second.get(PROD).headers["last-modified"] == found.headers["last-modified"]
    assert second.get(PROD).etag == found.etag


def test_without_redis_lists_are_served(filled: Any, make_api: Callable[..., Any]) -> None:
    api = make_api(HAWSE_REDIS_URL="redis://127.0.0.1:1/0").start()
    found = api.get(PROD)
    assert found.status == 200
    filled.claim("192.168.1.77")
    api.until(lambda: "192.168.1.77" in api.get(PROD).lines)
    later = api.get(PROD)
    assert parsedate_to_datetime(later.headers["last-modified"]) >= parsedate_to_datetime(
        found.headers["last-modified"]
    )
    assert api.get(PROD, If_None_Match=later.etag).status == 304


def test_a_list_that_returns_to_what_it_was_is_new(broker: Broker, ledger: Ledger) -> None:
    first = ledger.first_seen("l", "a", 0.0)
    assert ledger.first_seen("l", "a", 0.0) == first  # another process
    second = ledger.first_seen("l", "b", first.at)
    third = ledger.first_seen("l", "a", second.at)
    assert first.at < second.at < third.at
    assert ledger.first_seen("l", "a", second.at) == third  # another process that came the same way
    assert not third.alone or int(third.at) != int(second.at)


@pytest.mark.parametrize("tls", [False, True])
def test_the_process_ends_cleanly(filled: Any, make_api: Callable[..., Any], tls: bool) -> None:
    api = make_api()
    if tls:
        import ssl
        import urllib.request

        import trustme

        authority = trustme.CA()
        leaf = authority.issue_cert("127.0.0.1")
        leaf.cert_chain_pems[0].write_to_path(api.directory / "tls.crt")
        leaf.private_key_pem.write_to_path(api.directory / "tls.key")
        api.environment |= {
            "HAWSE_TLS_CERT": str(api.directory / "tls.crt"),
            "HAWSE_TLS_KEY": str(api.directory / "tls.key"),
        }
        api.start()
        context = ssl.create_default_context()
        authority.configure_trust(context)
        with urllib.request.urlopen(f"https://127.0.0.1:{api.port}{PROD}", context=context, timeout=30) as answer:
            assert answer.read().startswith(b"192.168.1.3\n")
    else:
        api.start()
        assert api.get(PROD).status == 200
    api.process.terminate()
    assert api.process.wait(30) == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"HAWSE_TICKET_PROFILES": "/nowhere/profiles.yaml"}, "/nowhere/profiles.yaml: "),
        ({"HAWSE_KUBECONFIG": "/nowhere/config"}, "the kubeconfig /nowhere/config cannot be used"),
        ({"HAWSE_TLS_CERT": "/nowhere/tls.crt"}, "go together"),
        ({"HAWSE_API_THREADS": "0"}, "HAWSE_API_THREADS must be 1 to 1000"),
    ],
)
def test_what_cannot_be_meant_ends_it_with_one_line(
    make_api: Callable[..., Any], settings: dict[str, str], said: str
) -> None:
    api = make_api(**settings).launch()
    assert api.process.wait(30) == 2
    assert said in api.log()
