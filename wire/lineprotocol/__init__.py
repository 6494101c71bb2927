"""InfluxDB line protocol: bytes in, Arrow columns and errors by line out. The write doors drive it.

``create_parser`` gives the kernel's parser, or the plain Python one where numba cannot be imported. numba
itself is imported with the first kernel parser, never with this package.

A line goes through the same four steps in both parsers: *scan* (extent and raw parts, `grammar`), *series*
(the raw series key is parsed once and remembered), *plan* (does it fit the table? the first accepted line
of a call defines what is new; a refused line defines nothing), *columns*.
"""

from __future__ import annotations

from wire.lineprotocol.errors import BodyTooLarge, InvalidPrecision
from wire.lineprotocol.model import (
    FieldColumn,
    FieldType,
    KnownTable,
    LineError,
    LineParser,
    Parsed,
    ParsedTable,
    ParserLimits,
    Precision,
    TagColumn,
)

__all__ = [
    "BodyTooLarge",
    "FieldColumn",
    "FieldType",
    "InvalidPrecision",
    "KnownTable",
    "LineError",
    "LineParser",
    "Parsed",
    "ParsedTable",
    "ParserLimits",
    "Precision",
    "TagColumn",
    "create_parser",
]

_DEFAULT_LIMITS = ParserLimits()


def create_parser(limits: ParserLimits = _DEFAULT_LIMITS) -> LineParser:
    """The fastest parser that this Python can run.

    The first one imports numba (0.1 s); its first parse compiles (8 s, or 0.3 s from the cache on disk).
    """
    try:
        import numba  # noqa: F401
    except ImportError:
        from wire.lineprotocol.reference import ReferenceParser

        return ReferenceParser(limits)
    from wire.lineprotocol.parser import KernelParser

    return KernelParser(limits)
