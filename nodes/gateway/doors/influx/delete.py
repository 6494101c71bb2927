"""POST /api/v2/delete: points of a bucket by measurement, tags and time (InfluxDB's OSS API v2, "Delete data").

The delete is stored as it was asked for (LOG L26): it is durable, and seen by every read, when the answer comes.
"""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Final

import msgspec

from nodes.backend import Batch, Principal
from nodes.gateway.doors.influx.names import check_database_name
from nodes.gateway.doors.influx.params import SerdeError, required, take
from nodes.gateway.doors.influx.query import decode_json
from nodes.gateway.faults import BadRequest, MissingDatabase
from nodes.gateway.http import parse_form
from storage.deletes import TIME_MAX, TIME_MIN, RangeDelete, TagValues
from storage.errors import NoSuchTable
from storage.schema import NO_ROWS, Role

if TYPE_CHECKING:
    from nodes.backend import Backend
    from nodes.gateway.doors.influx.answers import Answers
    from nodes.gateway.http import Request, Response
    from storage.schema import Table

ANONYMOUS: Final = Principal()
PARAMETERS: Final = frozenset({"org", "orgID", "bucket"})
MEASUREMENT: Final = "_measurement"
NO_TAGS: Final = frozenset({"_field", "_value", "_time", "_start", "_stop"})
"""Flux's columns beside tags: InfluxDB deletes by none of them, and to answer 204 would say that it was done."""
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")
_WORD: Final = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s"'=!<>()]+)"""
_CONDITION: Final = re.compile(rf"\s*({_WORD})\s*=\s*({_WORD})\s*")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES: Final = {"n": "\n", "\\": "\\", '"': '"', "'": "'"}
_AND: Final = re.compile(r"\band\b", re.IGNORECASE)


class _Posted(msgspec.Struct, frozen=True):
    start: str
    stop: str
    predicate: str = ""


class DeleteDoor:
    """The handler."""

    def __init__(self, backend: Backend, answers: Answers) -> None:
        self._backend = backend
        self._answers = answers

    async def v2(self, request: Request) -> Response:
        """Both times are inclusive. What does not exist is deleted already: 204; a bucket that is none: 404."""
        database = _bucket(request.query_string)
        posted = decode_json(await request.body(), _Posted)
        low, high = nanoseconds(posted.start, "start"), nanoseconds(posted.stop, "stop")
        if low > high:
            raise BadRequest("start is after stop")
        conditions = predicate(posted.predicate)
        catalog = await self._backend.refresh()  # L29
        if catalog.database(database) is None:
            raise MissingDatabase(database)
        tables = [table for table in catalog.tables(database) if table.view is None]
        found = [(table, range_of(table, low, high, conditions)) for table in tables]
        batches = [Batch(table, NO_ROWS, delete=delete) for table, delete in found if delete is not None]
        if batches:
            await self._write(batches)
        return self._answers.done

    async def _write(self, batches: list[Batch]) -> None:
        try:
            await self._backend.write(batches, ANONYMOUS)
        except NoSuchTable as error:  # dropped meanwhile, with all of its rows
            if not error.tables:
                raise


def _bucket(query_string: bytes) -> str:
    try:
        return check_database_name(required(take(parse_form(query_string), PARAMETERS), "bucket"))
    except SerdeError as error:
        raise BadRequest(f"a delete needs the bucket's name: {error}") from error


def nanoseconds(text: str, what: str) -> int:
    """A time of RFC 3339 as ns since 1970, cut to what a row's time can be. BadRequest for anything else."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise BadRequest(f"{what} is not a time as 2026-01-31T12:00:00Z: {text[:40]!r}")
    seconds, fraction, zone = match.groups(default="")
    try:
        moment = datetime.datetime.fromisoformat(seconds + zone)
    except ValueError as error:
        raise BadRequest(f"{what} is no time: {error}") from error
    whole = (moment - _EPOCH) // datetime.timedelta(seconds=1)
    return max(TIME_MIN, min(TIME_MAX, whole * 10**9 + int(fraction.ljust(9, "0"))))


def predicate(text: str) -> list[tuple[str, str]]:
    """``tag="value" AND _measurement="m"`` as pairs. BadRequest for what is not equality joined by AND."""
    if not text.strip():
        return []
    found, at = [], 0
    while True:
        match = _CONDITION.match(text, at)
        if match is None:
            raise BadRequest(
                f'the predicate cannot be understood at {text[at : at + 40]!r}: write tag="value", joined by AND'
            )
        found.append((_unquoted(match.group(1)), _unquoted(match.group(2))))
        at = match.end()
        if at == len(text):
            return found
        word = _AND.match(text, at)
        if word is None:
            raise BadRequest(f"the predicate cannot be understood at {text[at : at + 40]!r}: join conditions by AND")
        at = word.end()


def _unquoted(word: str) -> str:
    """What it stands for. BadRequest for an escape that is none: C:\\temp with one backslash is no other name."""

    def character(match: re.Match[str]) -> str:
        if match.group(1) not in _ESCAPES:
            raise BadRequest(f"{match.group()!r} in the predicate is no escape: write two backslashes for one")
        return _ESCAPES[match.group(1)]

    return _ESCAPED.sub(character, word[1:-1]) if word[0] in "\"'" else word


def range_of(table: Table, low: int, high: int, conditions: list[tuple[str, str]]) -> RangeDelete | None:
    """The delete in one table; None if no row of it can fit. BadRequest for a condition on a field."""
    tags: dict[int, str | None] = {}
    for name, value in conditions:
        column = table.by_name.get(name)
        if name in NO_TAGS and column is None:
            raise BadRequest(f"{name!r} is no tag: deletes are by {MEASUREMENT}, tags and time, with start and stop")
        if name == MEASUREMENT:
            if value != table.name:
                return None
        elif column is None:
            if value:  # a tag that no row has is absent, which is as good as empty
                return None
        elif column.role is not Role.TAG:
            raise BadRequest(f"{name!r} of {table.name!r} is no tag: use DELETE in SQL for conditions on fields")
        elif tags.setdefault(column.id, value or None) != (value or None):
            return None
    return RangeDelete(low, high, tuple(TagValues(column, (value,)) for column, value in tags.items()))
