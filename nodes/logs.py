"""The node's log lines: text on a terminal, JSON lines otherwise, on standard error.

`configure` routes structlog, the standard library's logging (uvicorn, aiohttp, asyncio, botocore) and Python's
warnings into one handler. Each line has time, level, node, logger, and the request id where one is bound
(`structlog.contextvars.bind_contextvars(request_id=...)`). Tokens are taken out of every line here; row
values must not be put in: say how many and which line, never what. Driven by `nodes.cli.start`.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any, Final

import structlog

from nodes.settings_kinds import HIDDEN, Secret

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence
    from typing import TextIO

    from structlog.typing import EventDict, Processor

    from nodes.settings_model import LogsSettings

VALUE_CHARACTERS_MAX: Final = 2000
"""Longer texts are cut: a log line never carries a request's body."""
SECRET_KEY: Final = re.compile(r"(?i)token|password|secret|authorization|cookie|access_key|credential")
SECRET_TEXT: Final = re.compile(
    r"""(?ix) \b(?P<scheme>Bearer|Token|Basic)\s+(?=[\w+/=.-]{8})[^\s'",]+  # an Authorization header's value
    | (?P<parameter>[?&](?:p|u|token)=)[^&\s'"]+                           # InfluxDB 1.x's query parameters
    | (?P<pair>\w*(?:token|password|secret|access_key)\w*["']?\s?[:=]\s?["']?)[^\s'",;&}]+
    | (?P<influx>apiv3_)[\w=-]+"""
)
QUIET: Final[dict[str, int]] = {
    "uvicorn.access": logging.WARNING,
    "asyncio": logging.WARNING,
    "aiobotocore": logging.WARNING,
    "botocore": logging.WARNING,
    "s3fs": logging.WARNING,
    "fsspec": logging.WARNING,
    "numba": logging.WARNING,
}
"""Libraries that say more than an operator needs at our level."""


def configure(settings: LogsSettings, node_name: str, stream: TextIO | None = None, *, kind: str | None = None) -> None:
    """Set up all logging of this process; may be called again (tests). ``stream`` None: standard error.

    ``kind`` is what this node does in a cluster; it stands in each line beside the node's name.
    """
    stream = sys.stderr if stream is None else stream
    shared = _shared_processors(node_name, kind)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_formatter(shared, is_text=is_text(settings.format, stream), colors=stream.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(max(level, root.level))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.captureWarnings(capture=True)


def is_text(format: str, stream: TextIO) -> bool:
    """Whether lines are for people: as set, or for "auto" if the stream is a terminal."""
    return format == "text" or (format == "auto" and stream.isatty())


def redact(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Hide what could be a credential, by the field's name or by the look of the text; cut long texts."""
    for key, value in event.items():
        if isinstance(value, Secret) or (SECRET_KEY.search(key) and value not in (None, "", True, False)):
            event[key] = HIDDEN
        elif isinstance(value, str):
            event[key] = _clean(value)
        elif not isinstance(value, (bool, int, float, type(None))) and key not in ("exc_info", "_record"):
            event[key] = _clean(str(value))
    return event


def _clean(text: str) -> str:
    cut = text if len(text) <= VALUE_CHARACTERS_MAX else f"{text[:VALUE_CHARACTERS_MAX]}... ({len(text)} characters)"
    return SECRET_TEXT.sub(_hide, cut)


def _hide(match: re.Match[str]) -> str:
    if match["scheme"]:
        return f"{match['scheme']} {HIDDEN}"
    return f"{match['parameter'] or match['pair'] or match['influx']}{HIDDEN}"


def _shared_processors(node_name: str, kind: str | None) -> list[Processor]:
    def add_node(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("node", node_name)
        if kind is not None:
            event.setdefault("kind", kind)
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        add_node,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _formatter(shared: Sequence[Processor], *, is_text: bool, colors: bool) -> logging.Formatter:
    """``format_exc_info`` prints plain tracebacks: the prettier ones show local variables, and so rows and tokens."""
    ending: list[Processor]
    if is_text:
        renderer = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
        )
        ending = [redact, renderer]
    else:
        ending = [structlog.processors.format_exc_info, redact, structlog.processors.JSONRenderer()]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
    )
