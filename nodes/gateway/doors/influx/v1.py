"""1.x's /query: the two statements that clients send at start, in 1.x's JSON. The rest of InfluxQL comes later."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nodes.backend import CreateDatabase, Principal
from nodes.gateway.doors.influx.durations import parse_influxql
from nodes.gateway.doors.influx.names import check_database_name
from nodes.gateway.doors.influx.status import version_headers
from nodes.gateway.faults import BadName, BadRequest, NotBuilt
from nodes.gateway.http import JSON_TYPE, Response, parse_form
from storage.errors import StorageError

if TYPE_CHECKING:
    from nodes.backend import Backend
    from nodes.gateway.doors.influx.answers import Answers
    from nodes.gateway.http import Request

ANONYMOUS: Final = Principal()
NOT_THERE: Final = "InfluxQL is not there yet"
MISSING_QUERY: Final = 'missing required parameter "q"'
STATEMENTS_MAX: Final = 100
FORM: Final = b"application/x-www-form-urlencoded"

_TOKEN: Final = re.compile(
    r"""(?xs) \s* (?: (?P<quoted>"(?:[^"\\]|\\.)*") | (?P<word>[\w.µ]+) | (?P<end>;) | (?P<other>\S) )"""
)
_SAFE_ESCAPES: Final = re.compile(r'\\(["\\])')


@dataclass(frozen=True, slots=True)
class ShowDatabases:
    """SHOW DATABASES."""


@dataclass(frozen=True, slots=True)
class Create:
    """CREATE DATABASE name [WITH [DURATION d] [REPLICATION n] [SHARD DURATION d] [NAME rp]]."""

    name: str
    retention_ns: int | None = None


Statement = ShowDatabases | Create


class V1Door:
    """Handlers for GET and POST /query."""

    def __init__(self, backend: Backend, answers: Answers) -> None:
        self._backend = backend
        self._answers = answers

    async def query(self, request: Request) -> Response:
        """Run the statements one after the other; an error of one is its own result."""
        found = dict(request.query())
        if request.method == "POST":
            found |= await _form(request)
        text = found.get("q", "")
        if not text.strip():
            raise BadRequest(MISSING_QUERY)
        statements = parse(text)
        results = [await self._run(number, statement) for number, statement in enumerate(statements)]
        body = msgspec.json.encode({"results": results})
        if found.get("pretty") == "true":
            body = msgspec.json.format(body, indent=4)
        request_id = (b"request-id", request.request_id.encode("latin-1"))
        return Response(200, self._answers.success(JSON_TYPE, *version_headers(), request_id), body + b"\n")

    async def _run(self, number: int, statement: Statement) -> dict[str, Any]:
        if isinstance(statement, ShowDatabases):
            names = sorted(database.name for database in (await self._backend.refresh()).databases())
            series: dict[str, Any] = {"name": "databases", "columns": ["name"]}
            if names:
                series["values"] = [[name] for name in names]
            return {"statement_id": number, "series": [series]}
        try:
            check_database_name(statement.name)
            change = CreateDatabase(statement.name, statement.retention_ns, exist_ok=True)
            await self._backend.alter([change], ANONYMOUS)
        except (BadName, StorageError) as error:
            if error.retriable:
                raise
            return {"statement_id": number, "error": str(error)}
        return {"statement_id": number}


def parse(text: str) -> list[Statement]:
    """The statements of a query. NotBuilt for everything that is not built."""
    groups: list[list[str]] = [[]]
    for token in _TOKEN.finditer(text.rstrip()):
        if token["end"]:
            groups.append([])
        else:
            groups[-1].append(token["quoted"] or token["word"] or token["other"])
    statements = [_statement(tokens) for tokens in groups if tokens]
    if not statements or len(statements) > STATEMENTS_MAX:
        raise NotBuilt(NOT_THERE)
    return statements


def _statement(tokens: list[str]) -> Statement:
    words = [token.upper() for token in tokens[:2]]
    if words == ["SHOW", "DATABASES"] and len(tokens) == 2:
        return ShowDatabases()
    if words == ["CREATE", "DATABASE"] and len(tokens) > 2:
        return Create(_name(tokens[2]), _options(tokens[3:]))
    raise NotBuilt(NOT_THERE)


def _name(token: str) -> str:
    if token.startswith('"'):
        return _SAFE_ESCAPES.sub(r"\1", token[1:-1])
    if not token[0].isalnum() and token[0] != "_":
        raise NotBuilt(NOT_THERE)
    return token


def _options(tokens: list[str]) -> int | None:
    """The retention period that WITH asks for; the other options have no meaning here."""
    if not tokens:
        return None
    if tokens[0].upper() != "WITH" or len(tokens) < 3:
        raise NotBuilt(NOT_THERE)
    retention_ns, at = None, 1
    while at < len(tokens):
        word = tokens[at].upper()
        if word == "SHARD":
            at += 1
            word = f"SHARD {tokens[at].upper()}" if at < len(tokens) else word
        if word not in ("DURATION", "REPLICATION", "SHARD DURATION", "NAME") or at + 1 >= len(tokens):
            raise NotBuilt(NOT_THERE)
        if word == "DURATION":
            retention_ns = _duration(tokens[at + 1])
        at += 2
    return retention_ns


def _duration(token: str) -> int | None:
    try:
        return parse_influxql(token)
    except ValueError as error:
        raise BadRequest(f"error parsing query: {error}") from error


async def _form(request: Request) -> dict[str, str]:
    """What a POST brings: a form's fields, or the bare query of other content types."""
    body = await request.body()
    kind = (request.header(b"content-type") or FORM).partition(b";")[0].strip().lower()
    if kind == FORM:
        return dict(parse_form(body))
    return {"q": body.decode("utf-8", "replace")} if kind == b"application/vnd.influxql" else {}
