"""URL parameters as serde reads them: unknown ones are ignored, known ones checked, in serde's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nodes.gateway.doors.influx.names import check_database_name, database_of
from nodes.gateway.faults import BadRequest, LegacyParameters
from nodes.gateway.http import parse_form
from wire.lineprotocol.errors import InvalidPrecision
from wire.lineprotocol.model import Precision

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PRECISIONS: Final = ("auto", "second", "s", "millisecond", "ms", "microsecond", "us", "u", "nanosecond", "ns", "n")
LEGACY_V1: Final = "failed to deserialize db/rp/precision in request: "
LEGACY_V2: Final = "failed to deserialize org/bucket/precision in request: "


class SerdeError(Exception):
    """What serde would say of a parameter; the endpoint adds its own prefix."""


@dataclass(frozen=True, slots=True)
class WriteParameters:
    """Where one write goes and how its body is read."""

    database: str
    precision: Precision
    accept_partial: bool


def take(pairs: Iterable[tuple[str, str]], known: frozenset[str]) -> dict[str, str]:
    """The known parameters. SerdeError if one stands twice."""
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            continue
        if name in found:
            raise SerdeError(f"duplicate field `{name}`")
        found[name] = value
    return found


def required(found: Mapping[str, str], name: str) -> str:
    """A parameter's value. SerdeError if it is missing."""
    value = found.get(name)
    if value is None:
        raise SerdeError(f"missing field `{name}`")
    return value


def boolean(found: Mapping[str, str], name: str, default: bool) -> bool:
    """``true`` or ``false``, nothing else."""
    value = found.get(name)
    if value is None:
        return default
    if value not in ("true", "false"):
        raise SerdeError("provided string was not `true` or `false`")
    return value == "true"


def variant(value: str, known: Iterable[str]) -> str:
    """One of the known words. SerdeError otherwise."""
    words = list(known)
    if value not in words:
        raise SerdeError(f"unknown variant `{value}`, expected one of {', '.join(f'`{word}`' for word in words)}")
    return value


def _precision(found: Mapping[str, str], default: Precision) -> Precision:
    text = found.get("precision")
    if text is None:
        return default
    try:
        return Precision.parse(variant(text, PRECISIONS))
    except InvalidPrecision as error:
        raise SerdeError(str(error)) from error


V3_WRITE: Final = frozenset({"db", "precision", "accept_partial", "no_sync"})
V1_WRITE: Final = frozenset({"db", "rp", "precision", "p"})
V2_WRITE: Final = frozenset({"org", "bucket", "precision"})


def write_v3(query_string: bytes) -> WriteParameters:
    """POST /api/v3/write_lp. ``no_sync`` is checked, and a write is durable before its answer all the same."""
    if not query_string:
        raise BadRequest("missing query parameter 'db'")
    try:
        found = take(parse_form(query_string), V3_WRITE)
        database = required(found, "db")
        precision = _precision(found, Precision.AUTO)
        accept_partial = boolean(found, "accept_partial", default=True)
        boolean(found, "no_sync", default=False)
    except SerdeError as error:
        raise BadRequest(f"serde error: {error}") from error
    return WriteParameters(check_database_name(database), precision, accept_partial)


def write_v1(query_string: bytes) -> WriteParameters:
    """POST /write: all or nothing, nanoseconds by default, and a retention policy that is part of the name."""
    if not query_string:
        raise LegacyParameters("no db destination provided")
    try:
        found = take(parse_form(query_string), V1_WRITE)
        database = required(found, "db")
        precision = _precision(found, Precision.NANOSECOND)
    except SerdeError as error:
        raise LegacyParameters(f"{LEGACY_V1}{error}") from error
    return WriteParameters(database_of(database, found.get("rp", "")), precision, accept_partial=False)


def write_v2(query_string: bytes) -> WriteParameters:
    """POST /api/v2/write: the bucket is the database, the organisation is ignored."""
    if not query_string:
        raise LegacyParameters("no org/bucket destination provided")
    try:
        found = take(parse_form(query_string), V2_WRITE)
        precision = _precision(found, Precision.NANOSECOND)
    except SerdeError as error:
        raise LegacyParameters(f"{LEGACY_V2}{error}") from error
    if not found.get("bucket"):
        raise LegacyParameters("missing bucket value")
    return WriteParameters(check_database_name(found["bucket"]), precision, accept_partial=False)
