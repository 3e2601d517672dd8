"""The client that keeps a connection for each thread, on a real Valkey that may go away, hang, or hang up."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import pytest
from redis.exceptions import ResponseError

from egress.adapters.ledger import LedgerAwayError
from egress.adapters.ledger.client import Client
from egress.adapters.ledger.connection import Connection, away
from lab.net.broker import Broker

TIMEOUT = 1.0


@pytest.fixture
def connection(own_broker: Broker) -> Iterator[Connection]:
    connection = Connection(own_broker.unix_url, TIMEOUT)
    yield connection
    connection.close()


@pytest.fixture
def client(connection: Connection) -> Client:
    client: Client = connection._redis
    return client


def how_many(client: Client) -> int:
    return len(client.client_list())


def test_a_thread_keeps_its_connection_and_its_end_closes_it(client: Client) -> None:
    assert client.client_id() == client.client_id()
    before, ids = how_many(client), []
    thread = threading.Thread(target=lambda: ids.append(client.client_id()))
    thread.start()
    thread.join()
    assert ids != [client.client_id()]
    assert how_many(client) == before


def test_many_threads_get_each_their_own(client: Client) -> None:
    wrong = []

    def ask(name: str) -> None:
        for number in range(200):
            if client.echo(f"{name}-{number}") != f"{name}-{number}":
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_the_server_closed_meanwhile_is_opened_again(client: Client, own_broker: Broker) -> None:
    first = client.client_id()
    other = Connection(own_broker.unix_url)
    other._redis.client_kill_filter(_id=str(first))
    other.close()
    assert client.echo("a") == "a"
    assert client.client_id() != first


def test_a_refusal_is_an_answer_like_others(client: Client) -> None:
    first = client.client_id()
    client.set("text", "a")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        client.lpush("text", "b")
    assert client.client_id() == first


def test_a_server_that_is_away_or_hangs_is_said_in_time(client: Client, own_broker: Broker) -> None:
    pid = int(client.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        with pytest.raises(LedgerAwayError), away():
            client.echo("late")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert time.monotonic() - began < 2 * TIMEOUT + 10
    assert client.echo("a") == "a"  # and not what was asked before
    own_broker.kill()
    with pytest.raises(LedgerAwayError), away():
        client.echo("b")
    own_broker.start()
    assert client.echo("c") == "c"


class _Interrupted(BaseException):
    """As a worker's end is one."""


def test_whoever_is_interrupted_leaves_no_answer_behind(client: Client, own_broker: Broker) -> None:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise _Interrupted

    first, before = client.client_id(), signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(_Interrupted):
            client.blpop("nothing", 0.8)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert client.echo("mine") == "mine"
    assert client.client_id() != first


def test_a_child_has_connections_of_its_own(client: Client) -> None:
    mine = client.client_id()
    reader, writer = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: writer.send(client.client_id()))
    child.start()
    assert reader.poll(10)
    assert reader.recv() != mine
    child.join()
    assert client.client_id() == mine


def test_closed_ones_are_opened_again_by_whoever_uses_them(connection: Connection, own_broker: Broker) -> None:
    client: Client = connection._redis
    other = Connection(own_broker.unix_url)
    asked, go_on, seen = threading.Event(), threading.Event(), []

    def ask() -> None:
        client.ping()
        asked.set()
        go_on.wait(10)
        seen.append(client.echo("again"))

    thread = threading.Thread(target=ask)
    thread.start()
    assert asked.wait(10)
    client.ping()
    assert how_many(other._redis) == 3
    connection.close()
    deadline = time.monotonic() + 10
    while how_many(other._redis) > 1:
        assert time.monotonic() < deadline
    go_on.set()
    thread.join()
    assert seen == ["again"]
    other.close()
