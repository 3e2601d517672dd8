"""The profiles that tell no system: `console` and `address-list`."""

from __future__ import annotations

from typing import Any

import structlog

from egress.objects import Event
from egress.ticket_profiles import AddressListProfile, ConsoleProfile
from egress.tickets import Receipt
from workers.ticketing.profiles import make


def test_each_notice_is_a_line(notice: Any) -> None:
    system = make(ConsoleProfile(name="demo"))
    with structlog.testing.capture_logs() as logs:
        first = system.tell(notice(), resumed=False)
        again = system.tell(notice(), resumed=True)
        release = system.tell(notice(Event.RELEASED, namespace="a\nb"), resumed=False)

    assert first == again == release
    assert first.reference.startswith("console-")
    assert [line["event"] for line in logs] == ["ticket"] * 3
    assert logs[0]["text"] == "[prod 1] open the firewall for 192.0.2.7 (namespace shop)"
    assert (logs[0]["profile"], logs[0]["told"], logs[0]["address"]) == ("demo", "assigned", "192.0.2.7")
    assert all(line["text"].isprintable() for line in logs)


def test_another_assignment_has_another_reference(notice: Any) -> None:
    system = make(ConsoleProfile(name="demo"))
    other = notice(key="hawse-7c2e-2")
    assert system.tell(notice(), resumed=False) != system.tell(other, resumed=False)


def test_a_list_tells_nobody(notice: Any) -> None:
    assert make(AddressListProfile(name="pull")).tell(notice(), resumed=False) == Receipt()
