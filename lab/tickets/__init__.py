"""Ticket systems for tests and the demo: each speaks its real one's HTTP on loopback, keeps what it is told, and
misbehaves on command."""

from lab.tickets.jira import Jira
from lab.tickets.receiver import Receiver
from lab.tickets.server import Fault, Request
from lab.tickets.servicenow import ServiceNow

__all__ = ["Fault", "Jira", "Receiver", "Request", "ServiceNow"]
