"""The append-only file from which a killed server comes back with the same objects and rising revisions.

One JSON record a line. Records go to the kernel one write each, before the client hears of the change: SIGKILL loses
nothing, a power cut may lose the last moments. At start the file is rewritten when most of it is history.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec

from lab.apiserver.objects import Json

# Rewriting costs one pass over all objects; below this many records it is not worth it.
_WORTH_REWRITING = 20_000


class JournalInUse(Exception):
    """Another server holds this directory."""


class Record(msgspec.Struct, frozen=True):
    """One change; a snapshot's objects carry the revision they were written at."""

    revision: int
    type: str
    storage: str
    object: Json


class _Start(msgspec.Struct, frozen=True):
    start: int


class Journal:
    """The records of one directory. ``start_revision`` is the revision of the state the file starts with."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise JournalInUse(f"{path.parent} is in use by another embedded cluster: stop it first") from None
        self._records = self._read()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open and, where most of the file is history, rewrite it first. Raises `JournalInUse`."""
        journal = cls(path)
        if len(journal._records) > max(_WORTH_REWRITING, 4 * len(journal._latest())):
            journal._rewrite()
        return journal

    def replay(self) -> Iterator[Record]:
        """Every record since the start, once; they are forgotten afterwards."""
        records, self._records = self._records, []
        yield from records

    def append(self, record: Record) -> None:
        line = msgspec.json.encode(record) + b"\n"
        while line:
            line = line[os.write(self._file, line) :]

    def close(self) -> None:
        os.close(self._file)

    def _read(self) -> list[Record]:
        lines = self._path.read_bytes().split(b"\n")
        torn = lines.pop()  # empty unless the last write was cut short; a torn change was never acknowledged
        if torn:
            os.ftruncate(self._file, os.path.getsize(self._path) - len(torn))
        if not lines:
            self.start_revision = 0
            os.write(self._file, msgspec.json.encode(_Start(0)) + b"\n")
            return []
        os.lseek(self._file, 0, os.SEEK_END)
        self.start_revision = msgspec.json.decode(lines[0], type=_Start).start
        decoder = msgspec.json.Decoder(Record)
        return [decoder.decode(line) for line in lines[1:]]

    def _latest(self) -> dict[tuple[str, str, str], Record]:
        latest: dict[tuple[str, str, str], Record] = {}
        for record in self._records:
            meta = record.object["metadata"]
            key = (record.storage, meta.get("namespace", ""), meta["name"])
            if record.type == "DELETED":
                latest.pop(key, None)
            else:
                latest[key] = record
        return latest

    def _rewrite(self) -> None:
        """Keep the present state alone: watches from before it will get 410 and list again."""
        self.start_revision = max(record.revision for record in self._records)
        self._records = list(self._latest().values())
        fresh = self._path.with_suffix(".new")
        lines = [msgspec.json.encode(_Start(self.start_revision)), *map(msgspec.json.encode, self._records)]
        fresh.write_bytes(b"\n".join(lines) + b"\n")
        file = os.open(fresh, os.O_RDWR | os.O_APPEND)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fresh.rename(self._path)
        os.close(self._file)
        self._file = file
