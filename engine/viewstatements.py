"""The statements about materialized views, which DataFusion does not see as they are written.

``CREATE MATERIALIZED VIEW name AS SELECT ...`` and ``REFRESH`` are planned by `engine.planner`, DROP is carried out by
`nodes.views`, and SHOW is another SELECT. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.errors import InvalidStatement
from engine.names import without_end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.names import Token

SHOWN: Final = "SELECT name, table_name, bucket, definition FROM system.materialized_views ORDER BY name"
BUCKETS_FIRST: Final = 8
"""Buckets of time that the first step of a REFRESH folds: few, since they may have very many rows. Later ones are told
(`nodes.views`)."""
_VERBS: Final = frozenset({"create", "refresh", "drop", "show"})
_USAGE: Final = {
    "create": "write CREATE MATERIALIZED VIEW [IF NOT EXISTS] name AS SELECT ...",
    "refresh": "write REFRESH MATERIALIZED VIEW name",
    "drop": "write DROP MATERIALIZED VIEW [IF EXISTS] name",
    "show": "write SHOW MATERIALIZED VIEWS",
}


@dataclass(frozen=True, slots=True)
class CreateStatement:
    """``query`` is what stands after AS."""

    name: str
    query: str
    exist_ok: bool


@dataclass(frozen=True, slots=True)
class RefreshStatement:
    """At most ``buckets_max`` buckets of time are folded; None: all, `BUCKETS_FIRST` at first."""

    name: str
    buckets_max: int | None


@dataclass(frozen=True, slots=True)
class DropStatement:
    """With ``missing_ok`` a view that is not there is no error."""

    name: str
    missing_ok: bool


@dataclass(frozen=True, slots=True)
class ShowStatement:
    """All views of the database."""


ViewStatement = CreateStatement | RefreshStatement | DropStatement | ShowStatement


def view_statement(statement: str) -> ViewStatement | None:
    """What a statement asks of materialized views; None if it is another one. Raises InvalidStatement."""
    found = without_end(statement)
    words = _words(found[:2])
    if len(words) < 2 or words[0] not in _VERBS or words[1] != "materialized":
        return None
    rest = found[2:]
    verb = words[0]
    if verb == "show":
        if _words(rest) == ["views"]:
            return ShowStatement()
    elif rest and _words(rest[:1]) == ["view"]:
        parsed = _about_one(statement, verb, rest[1:])
        if parsed is not None:
            return parsed
    raise InvalidStatement(_USAGE[verb])


def _words(found: Sequence[Token]) -> list[str]:
    return [token.word for token in found]


def _about_one(statement: str, verb: str, rest: list[Token]) -> ViewStatement | None:
    condition = {"create": ["if", "not", "exists"], "drop": ["if", "exists"]}.get(verb, [])
    is_conditional = bool(condition) and _words(rest[: len(condition)]) == condition
    if is_conditional:
        rest = rest[len(condition) :]
    if not rest or rest[0].kind not in ("word", "quoted"):
        return None
    name, after = rest[0].name, rest[1:]
    if verb == "drop":
        return DropStatement(name, is_conditional) if not after else None
    if verb == "refresh":
        return _refresh(name, after)
    if len(after) < 2 or _words(after[:1]) != ["as"]:
        return None
    return CreateStatement(name, statement[after[1].start : after[-1].end], is_conditional)


def _refresh(name: str, after: Sequence[Token]) -> RefreshStatement | None:
    if not after:
        return RefreshStatement(name, None)
    if len(after) == 2 and _words(after[:1]) == ["limit"] and after[1].text.isdecimal() and int(after[1].text):
        return RefreshStatement(name, int(after[1].text))
    return None
