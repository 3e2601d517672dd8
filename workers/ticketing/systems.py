"""The profiles' file as it is now, and the ticket systems that it describes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from egress.operations import PermanentError
from egress.ticket_profiles import Profile, Profiles, ProfilesError, load
from workers.ticketing.profiles.base import TicketSystem

_log = structlog.get_logger()


class Systems:
    """What the file at `path` says, read again when it has changed; "" for no file. A file that turns bad is logged
    once, and what it said before goes on. `make` makes a profile's system. Safe to share between threads."""

    def __init__(self, path: str, make: Callable[[Profile], TicketSystem]) -> None:
        self.path = path
        self._make = make
        self._lock = threading.Lock()
        self._profiles: Profiles | None = None
        self._content: bytes | None = None
        self._error = ""
        self._made: dict[str, tuple[Profile, TicketSystem]] = {}

    def profiles(self) -> Profiles:
        """The file's profiles; PermanentError if it could not be used so far."""
        with self._lock:
            self._read_again()
            if self._profiles is None:
                raise PermanentError(self._error)
            return self._profiles

    def get(self, profile: Profile) -> TicketSystem:
        """The system of one of the `profiles`. Asked for by who has the word for its run, so that the one it takes the
        place of, if the file has changed, is in nobody's use. PermanentError if it cannot be made."""
        with self._lock:
            known = self._made.get(profile.name)
            if known is not None and known[0] == profile:
                return known[1]
            try:
                made = self._make(profile)
            except ProfilesError as error:
                raise PermanentError(f"ticket profile {profile.name}: {error}") from None
            self._made[profile.name] = (profile, made)
        if known is not None:
            known[1].close()
        return made

    def _read_again(self) -> None:
        try:
            content = Path(self.path).read_bytes() if self.path else b""
        except OSError:
            content = None  # `load` says why
        if content is not None and content == self._content:
            return
        try:
            self._profiles, self._error = load(self.path), ""
        except ProfilesError as error:
            if str(error) != self._error:
                _log.error("the ticket profiles cannot be used", error=str(error), kept=self._profiles is not None)
            self._error = str(error)
        self._content = content
