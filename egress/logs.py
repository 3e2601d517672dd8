"""Logging, the same in every process: one line per event, JSON for machines or console for people."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec
import structlog

from egress.settings import Settings

_LEVELS = {"warn": "warning", "exception": "error"}
"""The levels of methods that are named otherwise."""


def configure(settings: Settings, component: str) -> None:
    """Sends structlog's and the standard library's records to standard error, each with the component's name.

    Values are escaped by the renderer, so that no text from outside can begin a line of its own.
    """
    level = logging.getLevelNamesMapping().get(settings.log_level.upper(), logging.INFO)
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        _stamp(component),
    ]
    renderers: list[structlog.types.Processor]
    if settings.log_format == "console":
        renderers = [_inert, structlog.dev.ConsoleRenderer(colors=False)]
    else:
        renderers = [structlog.processors.JSONRenderer(_json)]
    lines = _Lines(sys.stderr)
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, *renderers],
        logger_factory=lambda *_: lines,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                *renderers,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in ("celery", "kombu", "urllib3", "pyroute2", "amqp"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


class _Lines:
    """Where structlog's events go: to the stream, each line in one call, so that those of several threads do not mix.

    The standard library's loggers would make a record of each, and render it under a lock: twice the time, which is a
    sixth of an admission. Like there, what cannot be written is lost, and stops nobody's work.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        """Writes a line."""
        with suppress(OSError, ValueError):  # nobody reads any more; the stream is closed
            self._stream.write(line + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = exception = fatal = log = msg


def _stamp(component: str) -> structlog.types.Processor:
    def stamp(_: object, method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        event["component"] = component
        event["level"] = _LEVELS.get(method, method)
        event["timestamp"] = datetime.now(UTC).isoformat()[: -len("+00:00")] + "Z"
        return event

    return stamp


def _json(event: structlog.types.EventDict, **options: Any) -> str:  # noqa: ANN401 - as json.dumps
    """What json.dumps makes of it, which takes five times as long for what nearly all events are: texts in ASCII."""
    if set(map(type, event.values())) == {str}:
        with suppress(UnicodeEncodeError):  # half of a surrogate pair
            line = msgspec.json.encode(event)
            if line.isascii():
                return line.decode()
    return json.dumps(event, separators=(",", ":"), **options)


def _inert(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Escapes what the console's renderer prints as it is: other libraries' texts, and tracebacks, whose lines are
    indented, so that none of them looks like a record."""
    event["event"] = _escaped(str(event["event"]))
    if isinstance(event.get("exception"), str):
        event["exception"] = "\n".join(f"    {_escaped(line)}" for line in event["exception"].split("\n"))
    return event


def _escaped(text: str) -> str:
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
