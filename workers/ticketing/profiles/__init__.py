"""One module for each way to tell the firewall team; `base` says what a way must do."""

from __future__ import annotations

import time
from collections.abc import Callable

from egress.ticket_profiles import (
    AddressListProfile,
    ConsoleProfile,
    JiraProfile,
    Profile,
    ServiceNowProfile,
    WebhookProfile,
)
from workers.ticketing.profiles.address_list import AddressListSystem
from workers.ticketing.profiles.base import TicketSystem
from workers.ticketing.profiles.console import ConsoleSystem
from workers.ticketing.profiles.jira import JiraSystem
from workers.ticketing.profiles.servicenow import ServiceNowSystem
from workers.ticketing.profiles.webhook import WebhookSystem


def make(profile: Profile, clock: Callable[[], float] = time.time) -> TicketSystem:
    """The system that a profile describes; `clock` gives seconds since the epoch. It keeps nothing between calls.

    ProfilesError where the profile names a template that cannot be used.
    """
    match profile:
        case WebhookProfile():
            return WebhookSystem(profile, clock)
        case ServiceNowProfile():
            return ServiceNowSystem(profile, clock)
        case JiraProfile():
            return JiraSystem(profile, clock)
        case AddressListProfile():
            return AddressListSystem()
        case ConsoleProfile():
            return ConsoleSystem(profile.name)
