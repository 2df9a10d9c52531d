"""How the process logs: structlog for our own lines, the standard library's loggers through the same renderer.

`cli` calls `configure` once, before anything else is made. Every line is one event: a person's line on a terminal, a JSON
object elsewhere. What a line shows is untrusted (URLs, names, remote errors): secrets are hidden, control characters
escaped, long fields cut. A traceback is its frames and messages, never the values of variables.
"""

import json
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from worker.redaction import HIDDEN, is_secret_name, one_line, redact
from worker.secret_values import Hide

FIELD_LIMIT: Final = 8192
"""Longest field, in UTF-8 bytes before escaping; what is over it is cut."""
DEPTH_LIMIT: Final = 6

_CUT: Final = "…[cut]"
_LEVELS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "debug": logging.DEBUG,
        "info": logging.INFO,
        "warning": logging.WARNING,
        "error": logging.ERROR,
    }
)


def configure(
    level: Literal["debug", "info", "warning", "error"],
    format: Literal["auto", "console", "json"],  # noqa: A002 - the name of the setting
    stream: TextIO,
    hide: Hide = redact,
) -> None:
    """Send all logs to `stream`: ours from `level` on, those of libraries from WARNING on, all without what `hide` takes out.

    `auto` is `console` on a terminal and `json` elsewhere. May be called again; the last call holds.
    """
    console = format == "console" or (format == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _Sanitizer(hide),
    ]
    renderer: Processor
    if console:
        shared.append(_indent_exception)
        renderer = structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    else:
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=_Loggers(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(_LEVELS[level], logging.WARNING))
    # It reports every lost connection as an error of its own; what it means for us is logged by who meets it.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


class _Loggers:
    """Makes loggers that write whole lines and know the name they were asked for by."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, *names: Any) -> structlog.WriteLogger:
        return _NamedLogger(self._stream, str(names[0]) if names else None)


class _NamedLogger(structlog.WriteLogger):
    def __init__(self, stream: TextIO, name: str | None) -> None:
        super().__init__(stream)
        self.name = name


def _add_name(logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    name = record.name if isinstance(record, logging.LogRecord) else getattr(logger, "name", None)
    if name:
        event.setdefault("logger", name)
    return event


class _Sanitizer:
    """Makes every field fit for one line; what structlog keeps for itself (`_record`) is left alone."""

    def __init__(self, hide: Hide) -> None:
        self._hide = hide

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {
            key if key.startswith("_") else self._text(key): value
            if key.startswith("_")
            else self._field(key, value)
            for key, value in event.items()
        }

    def _field(self, name: str, value: Any) -> Any:
        if name == "exception" and isinstance(value, str):
            # The last lines of a traceback say what happened, so it is cut at its head; its line ends are escaped by JSON.
            lines = _cut(self._hide(value), keep_end=True).split("\n")
            return "\n".join(one_line(line) for line in lines)
        clean = self._clean(name, value, 0)
        if isinstance(clean, dict | list) and len(json.dumps(clean)) > FIELD_LIMIT:
            return self._text(json.dumps(clean))
        return clean

    def _clean(self, name: str, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value
        if is_secret_name(name):
            return HIDDEN
        if isinstance(value, str):
            return self._text(value)
        if depth < DEPTH_LIMIT and isinstance(value, Mapping):
            return {
                self._text(str(key)): self._clean(str(key), item, depth + 1) for key, item in value.items()
            }
        if depth < DEPTH_LIMIT and isinstance(value, list | tuple | set | frozenset):
            return [self._clean(name, item, depth + 1) for item in value]
        return self._text(str(value) if isinstance(value, BaseException) else repr(value))

    def _text(self, text: str) -> str:
        # Hidden before it is cut: half a secret would no longer be recognised.
        return one_line(_cut(self._hide(text)))


def _cut(text: str, *, keep_end: bool = False) -> str:
    encoded = text.encode(errors="backslashreplace")
    if len(encoded) <= FIELD_LIMIT:
        return text
    if keep_end:
        return f"{_CUT}{encoded[-FIELD_LIMIT:].decode(errors='ignore')}"
    return f"{encoded[:FIELD_LIMIT].decode(errors='ignore')}{_CUT}"


def _indent_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """On a terminal a traceback keeps its lines, each marked, so that none can pass for a log line."""
    if isinstance(event.get("exception"), str):
        event["exception"] = "  | " + event["exception"].replace("\n", "\n  | ")
    return event
