"""Who waits for a Redis that does not answer: on both ways to a real Valkey, behind a gate that a test shuts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from egress.adapters.ledger import LedgerAwayError
from egress.adapters.ledger.connection import Connection, Script, away
from egress.adapters.ledger.silence import Silence
from egress.operations import TransientError
from lab.net.broker import Broker

TIMEOUT, LONG = 0.2, 30.0
AT_ONCE = "somebody waits for it"
NO = "no"
Call = Callable[[str], str]
T = TypeVar("T")


class Gate:
    """A way to the server at `server`, by the socket at `path`. It is shut at first, and holds what comes."""

    def __init__(self, path: Path, server: Path) -> None:
        self._server = server
        self._open = threading.Event()
        self.held = threading.Semaphore(0)
        """One for each time that it held something."""
        self._listener = bound(path)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def open(self) -> Gate:
        """For all that is held, and all that comes."""
        self._open.set()
        return self

    def forsake(self) -> None:
        """Shuts it for the connections that there are; it is open for others."""
        self._open.clear()
        self._open = threading.Event()
        self._open.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                threading.Thread(target=self._pass, args=(caller, self._open), daemon=True).start()

    def _pass(self, caller: socket.socket, is_open: threading.Event) -> None:
        with caller, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.connect(str(self._server))
            threading.Thread(target=_carry, args=(server, caller), daemon=True).start()
            while data := caller.recv(65536):
                if not is_open.is_set():
                    self.held.release()
                is_open.wait()
                server.sendall(data)


def _carry(server: socket.socket, caller: socket.socket) -> None:
    with suppress(OSError):
        while data := server.recv(65536):
            caller.sendall(data)


def bound(path: Path) -> socket.socket:
    """A new socket at `path`, which refuses connections until it listens."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    return listener


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gate.sock"


@pytest.fixture
def connection(path: Path) -> Iterator[Connection]:
    connection = Connection(f"unix://{path}", TIMEOUT)
    yield connection
    connection.close()


@pytest.fixture(params=["command", "script"])
def call(request: pytest.FixtureRequest, connection: Connection) -> Call:
    """Gives the text back; Redis refuses NO."""
    client = connection._redis
    script = Script(client, f"if ARGV[2] == '{NO}' then return redis.error_reply('ERR {NO}') end return ARGV[2]")

    def called(text: str) -> str:
        with away():
            if request.param == "script":
                return script(text)
            answer: str = client.execute_command("NONSENSE") if text == NO else client.echo(text)
            return answer

    return called


@pytest.fixture
def gate(path: Path, own_broker: Broker) -> Callable[[], Gate]:
    """Makes a new gate in the old one's place."""
    return lambda: Gate(path, own_broker.socket)


def begun(call: Call, text: str) -> Future[str]:
    """The call, in a thread of its own and so over a connection of its own."""
    threads = ThreadPoolExecutor(1)
    future = threads.submit(call, text)
    threads.shutdown(wait=False)
    return future


def fall_silent(connection: Connection, call: Call, path: Path) -> None:
    """A call finds that nobody answers. Those that come later wait for long."""
    with bound(path) as listener:
        listener.listen(64)
        with pytest.raises(LedgerAwayError, match="Timeout"):
            begun(call, "late").result(LONG)
    connection._redis.connection_pool.connection_kwargs["socket_timeout"] = LONG


def refuse(call: Call, path: Path) -> None:
    """A call finds that nobody listens."""
    bound(path).close()
    with pytest.raises(LedgerAwayError, match="refused"):
        begun(call, "refused").result(LONG)


def all_wait(call: Call, gate: Gate) -> None:
    """Several calls are at the gate at once, and have their answers when it opens."""
    texts = ["a", "b", "c"]
    calls = [begun(call, text) for text in texts]
    assert all(gate.held.acquire(timeout=LONG) for _ in calls)
    gate.open()
    assert [each.result(LONG) for each in calls] == texts


def test_one_waits_for_a_silent_redis_and_the_others_fail_at_once(
    connection: Connection, call: Call, path: Path, gate: Callable[[], Gate]
) -> None:
    connection.one_waits()
    fall_silent(connection, call, path)
    with gate() as shut:
        looks = begun(call, "looks")
        assert shut.held.acquire(timeout=LONG)
        for _ in range(3):
            with pytest.raises(LedgerAwayError, match=AT_ONCE):
                begun(call, "other").result(LONG)
        assert not shut.held.acquire(blocking=False)
        assert not looks.done()
        shut.open()
        assert looks.result(LONG) == "looks"
    with gate() as shut:
        all_wait(call, shut)


def test_both_ways_heed_one_silence(connection: Connection, call: Call, path: Path, gate: Callable[[], Gate]) -> None:
    script = Script(connection._redis, "return ARGV[2]")
    connection.one_waits()
    fall_silent(connection, call, path)
    with gate() as shut:
        looks = begun(call, "looks")
        assert shut.held.acquire(timeout=LONG)
        for way in (script, connection._redis.echo):
            with pytest.raises(LedgerAwayError, match=AT_ONCE), away():
                way("other")
        shut.open()
        assert looks.result(LONG) == "looks"


def test_who_has_not_asked_for_it_waits_as_ever(
    connection: Connection, call: Call, path: Path, gate: Callable[[], Gate]
) -> None:
    fall_silent(connection, call, path)
    with gate() as shut:
        all_wait(call, shut)


def test_a_connection_that_is_refused_makes_no_silence_and_ends_one(
    connection: Connection, call: Call, path: Path, gate: Callable[[], Gate]
) -> None:
    connection.one_waits()
    fall_silent(connection, call, path)
    for _ in range(2):
        refuse(call, path)
        with gate() as shut:
            all_wait(call, shut)


def test_what_redis_refuses_is_an_answer(
    connection: Connection, call: Call, path: Path, gate: Callable[[], Gate]
) -> None:
    connection.one_waits()
    fall_silent(connection, call, path)
    with gate() as passed:
        passed.open()
        with pytest.raises(TransientError, match="Redis refused"):
            begun(call, NO).result(LONG)
    with gate() as shut:
        all_wait(call, shut)


class _Counting(Silence):
    asked = 0

    def ask(self, call: Callable[..., T], *arguments: object) -> T:
        self.asked += 1
        return super().ask(call, *arguments)


def test_both_tries_are_one_call(connection: Connection, call: Call, gate: Callable[[], Gate]) -> None:
    connection._redis.silence = silence = _Counting()
    with gate() as passed, ThreadPoolExecutor(1) as thread:
        passed.open()
        assert thread.submit(call, "a").result(LONG) == "a"
        passed.forsake()
        assert thread.submit(call, "b").result(LONG) == "b"
        assert passed.held.acquire(blocking=False)  # the first try
    assert silence.asked == 2


# Who looks, and when that is over


class _Died(BaseException):
    """As a thread's end is one."""


def late() -> None:
    raise RedisTimeoutError


def die() -> None:
    raise _Died


def fails_at_once(silence: Silence) -> None:
    with pytest.raises(RedisConnectionError, match=AT_ONCE):
        silence.ask(str)


@pytest.fixture
def silent() -> Silence:
    silence = Silence()
    with pytest.raises(RedisTimeoutError):
        silence.ask(late)
    return silence


@pytest.mark.parametrize(("ends", "error"), [(late, RedisTimeoutError), (die, _Died)])
def test_whoever_looked_in_vain_leaves_the_place_to_the_next(
    silent: Silence, ends: Callable[[], None], error: type[BaseException]
) -> None:
    for _ in range(2):
        with pytest.raises(error):
            silent.ask(ends)
    silent.ask(fails_at_once, silent)
    assert silent.ask(lambda: "answer") == "answer"


def test_an_answer_ends_it(silent: Silence) -> None:
    assert silent.ask(lambda: "answer") == "answer"
    assert silent.ask(silent.ask, lambda: "both") == "both"


def test_a_call_that_began_before_does_not_free_anothers_place() -> None:
    silence, waits, go_on = Silence(), threading.Event(), threading.Event()

    def begin() -> None:
        waits.set()
        go_on.wait(LONG)
        late()

    def look() -> None:
        go_on.set()
        assert isinstance(former.exception(LONG), RedisTimeoutError)
        fails_at_once(silence)

    with ThreadPoolExecutor(1) as thread:
        former = thread.submit(silence.ask, begin)
        assert waits.wait(LONG)
        with pytest.raises(RedisTimeoutError):
            silence.ask(late)
        silence.ask(look)
