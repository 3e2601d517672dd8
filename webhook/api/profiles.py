"""The file of ticket profiles as it is now: it may be replaced while we run."""

from __future__ import annotations

import threading
from pathlib import Path

import structlog

from egress import ticket_profiles
from egress.ticket_profiles import Profiles, ProfilesError

_log = structlog.get_logger()
_Mark = tuple[int, int, int] | None


class ProfilesFile:
    """The profiles in the file at `path`, "" for none. ProfilesError if there is no usable one to begin with."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._mark = _mark(path)
        self._profiles = ticket_profiles.load(path)

    def get(self) -> Profiles:
        """What the file says. While it cannot be used, what it said before: that is logged once for each version."""
        mark = _mark(self._path)
        with self._lock:
            if mark != self._mark:
                self._mark = mark
                try:
                    self._profiles = ticket_profiles.load(self._path)
                    _log.info("profiles read again")
                except ProfilesError as error:
                    _log.error("the profiles stay as they were", error=str(error))
            return self._profiles


def _mark(path: str) -> _Mark:
    """What tells the file's version from another, through the symbolic links of a mounted ConfigMap."""
    if not path:
        return None
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
