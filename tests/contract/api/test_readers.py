"""A thousand readers poll one list while its addresses come and go."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from ipaddress import IPv4Address
from typing import Any

import aiohttp
import pytest

READERS = 1000
READS = 15
PATH = "/lists/pools/prod.txt"


class Seen:
    """All that the readers were given."""

    def __init__(self) -> None:
        self.bodies: dict[str, set[bytes]] = defaultdict(set)
        self.etags: dict[bytes, set[str]] = defaultdict(set)
        self.dates: dict[str, set[str]] = defaultdict(set)
        self.order: list[list[str]] = []
        self.not_modified = 0

    def take(self, etag: str, body: bytes, date: str) -> None:
        self.bodies[etag].add(body)
        self.etags[body].add(etag)
        self.dates[etag].add(date)


def change(objects: Any, states: list[frozenset[str]], enough: threading.Event) -> None:
    """Makes, quarantines, takes up again and deletes addresses, one at a time, and notes each state that there was."""
    there: dict[str, bool] = {}
    for number in range(2000):
        if enough.is_set() and number > 60:
            return
        address = f"192.168.{number % 7}.{number % 23 + 1}"
        if address not in there:
            objects.claim(address)
            there[address] = True
        elif there[address]:
            objects.status(address, phase="Quarantined")
            there[address] = False
        elif number % 2:
            objects.status(address, phase="Ready")
            there[address] = True
        else:
            objects.kube.delete("EgressAddress", address)
            del there[address]
        states.append(frozenset(name for name, listed in there.items() if listed))


async def read(session: aiohttp.ClientSession, url: str, seen: Seen, reads: int) -> None:
    """One reader: it polls as a firewall does, with what it has got."""
    etag, etags = "", []
    for turn in range(reads):
        headers = {"If-None-Match": etag} if etag and turn % 2 else {}
        async with session.get(url, headers=headers) as answer:
            body = await answer.read()
            if answer.status == 304:
                assert answer.headers["ETag"] == etag
                seen.not_modified += 1
                continue
            assert answer.status == 200
            etag = answer.headers["ETag"]
            etags.append(etag)
            seen.take(etag, body, answer.headers["Last-Modified"])
    seen.order.append(etags)


async def read_all(url: str, seen: Seen, reads: int) -> None:
    connector = aiohttp.TCPConnector(limit=READERS)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=100)) as session:
        await asyncio.gather(*(read(session, url, seen, reads) for _ in range(READERS)))


@pytest.mark.timeout(180)
def test_no_reader_sees_a_list_that_never_was(objects: Any, make_api: Callable[..., Any]) -> None:
    objects.pool("prod", "192.168.0.0/16")
    objects.namespace("shop")
    api = make_api().start()
    states: list[frozenset[str]] = [frozenset()]
    enough, seen = threading.Event(), Seen()
    changing = threading.Thread(target=change, args=(objects, states, enough))
    url = f"http://127.0.0.1:{api.port}{PATH}"
    changing.start()
    try:
        asyncio.run(read_all(url, seen, READS))
    finally:
        enough.set()
        changing.join()
    possible = set(states)
    for body in seen.etags:
        lines = body.decode("ascii").splitlines()
        assert body == b"" or body.endswith(b"\n")
        assert b"\n\n" not in body
        assert frozenset(lines) in possible
        assert [IPv4Address(line) for line in lines] == sorted({IPv4Address(line) for line in lines})
    assert all(len(bodies) == 1 for bodies in seen.bodies.values())
    assert all(len(etags) == 1 for etags in seen.etags.values())
    assert len(seen.order) == READERS
    assert len(seen.etags) > 5
    # Which content came when is what the changes say, so far as a content came but once.
    times = [state for index, state in enumerate(states) if index == 0 or state != states[index - 1]]
    once = [state for state in times if times.count(state) == 1]
    dates = {frozenset(body.decode().splitlines()): seen.dates[etag] for etag, (body,) in seen.bodies.items()}
    in_order = [parsedate_to_datetime(date) for state in once for date in sorted(dates.get(state, ()))]
    assert all(len(dates.get(state, {""})) == 1 for state in once)
    assert in_order == sorted(in_order)
    # In the end the list is what the objects say.
    api.until(lambda: frozenset(api.get(PATH).lines) == states[-1])
    calm = Seen()
    asyncio.run(read_all(url, calm, 2))
    assert (len(calm.etags), calm.not_modified) == (1, READERS)
