"""A script called without redis-py's own way, on a real Valkey."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from egress.adapters.ledger import LedgerAwayError
from egress.adapters.ledger.connection import Connection, Script, away
from egress.operations import TransientError
from lab.net.broker import Broker

ECHO = "return ARGV[2] .. string.rep('x', tonumber(ARGV[3] or '0'))"
RUN = "return ARGV[1]"
TIMEOUT = 0.3


@pytest.fixture
def client(own_broker: Broker) -> redis.Redis:
    client: redis.Redis = Connection(own_broker.unix_url, TIMEOUT)._redis
    return client


@pytest.mark.parametrize("text", ["", "a b\r\nc", "$5\r\n", "-ERR no", "ü", "x" * 200_000, "x" * 8_000_000])
def test_texts_come_back_as_they_are(client: redis.Redis, text: str) -> None:
    script = Script(client, ECHO)
    assert [script(text), script("next")] == [text, "next"]
    assert script("a", "300000") == "a" + "x" * 300_000


def test_a_script_that_was_forgotten_is_loaded_again(client: redis.Redis) -> None:
    script = Script(client, ECHO)
    assert script("a") == "a"
    client.script_flush()
    assert script("b") == "b"


def test_its_errors_are_said_and_the_connection_stays_good(client: redis.Redis) -> None:
    script = Script(client, "if ARGV[2] == 'no' then return redis.error_reply('ERR not so') end return ARGV[2]")
    with pytest.raises(TransientError, match="not so"), away():
        script("no")
    assert script("yes") == "yes"


def test_the_run_is_that_of_the_server_which_answers(client: redis.Redis, own_broker: Broker) -> None:
    script = Script(client, RUN)
    assert script() == client.info("server")["run_id"]
    own_broker.restart()
    assert script() == client.info("server")["run_id"]


def test_a_server_that_is_away_or_hangs_is_said_in_time(client: redis.Redis, own_broker: Broker) -> None:
    script = Script(client, ECHO)
    assert script("a") == "a"
    pid = int(client.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        with pytest.raises(LedgerAwayError), away():
            script("b")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert time.monotonic() - began < 2 * TIMEOUT + 10
    assert script("c") == "c"  # and not what was asked before
    own_broker.kill()
    with pytest.raises(LedgerAwayError), away():
        script("d")
    own_broker.start()
    assert script("e") == "e"


def test_what_is_late_is_told_from_what_breaks(client: redis.Redis, own_broker: Broker) -> None:
    script, other = Script(client, ECHO), Connection(own_broker.unix_url)
    assert script("a") == "a"
    other._redis.client_pause(60_000, all=False)  # it says hello, and runs no script
    with pytest.raises(RedisTimeoutError, match="in time"):
        script("b")
    other._redis.client_unpause()
    assert script("c") == "c"
    other._redis.config_set("client-output-buffer-limit", "normal 50000 0 0")  # it hangs up where more is to be said
    with pytest.raises(RedisConnectionError):
        script("d", "1000000")
    assert script("e") == "e"
    other.close()


def test_many_threads_get_each_their_own(client: redis.Redis) -> None:
    script, wrong = Script(client, ECHO), []

    def ask(name: str) -> None:
        for number in range(200):
            if script(f"{name}-{number}") != f"{name}-{number}":
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
