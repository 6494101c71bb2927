"""SQL over HTTP: GET and POST /api/v3/query_sql, formats by parameter or Accept header, results streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from nodes.backend import Principal, QueryRequest
from nodes.gateway.doors.influx.params import SerdeError, required, take, variant
from nodes.gateway.faults import BadRequest, MissingDatabase, NotBuilt
from nodes.gateway.http import Response, parse_form
from storage.errors import NoSuchDatabase

if TYPE_CHECKING:
    from nodes.backend import Backend
    from nodes.gateway.doors.influx.answers import Answers
    from nodes.gateway.http import Header, Request

_T = TypeVar("_T")
ANONYMOUS: Final = Principal()
DOOR: Final = "http"
PARAMETERS: Final = frozenset({"db", "q", "format", "params"})
FORMATS: Final = ("parquet", "csv", "pretty", "json", "json_lines", "jsonl")
ACCEPTED: Final[dict[bytes, str]] = {
    b"application/vnd.apache.parquet": "parquet",
    b"text/csv": "csv",
    b"text/plain": "pretty",
    b"application/json": "json",
    b"*/*": "json",
}
CONTENT_TYPES: Final[dict[str, Header]] = {
    "parquet": (b"content-type", b"application/vnd.apache.parquet"),
    "csv": (b"content-type", b"text/csv"),
    "pretty": (b"content-type", b"text/plain; charset=utf-8"),
    "json": (b"content-type", b"application/json"),
    "jsonl": (b"content-type", b"application/jsonl"),
}


class _Posted(msgspec.Struct, frozen=True):
    db: str
    q: str
    format: str | None = None
    params: dict[str, Any] | None = None


class QueryDoor:
    """Handlers for SQL, and the clear refusal of InfluxQL."""

    def __init__(self, backend: Backend, answers: Answers) -> None:
        self._backend = backend
        self._answers = answers

    async def sql(self, request: Request) -> Response:
        """Plan, start, and stream. The client's hang-up cancels the query."""
        posted = await self._read(request)
        format = read_format(posted.format, request.header(b"accept"))
        await self._require_database(posted.db)
        request.watch()
        query = QueryRequest(
            posted.db, posted.q, posted.params or {}, None, request.request_id, DOOR, request.client_address,
            may_write=request.method == "POST",
        )  # fmt: skip
        try:
            text = await self._backend.query_text(query, format, ANONYMOUS)
        except NoSuchDatabase as error:
            raise MissingDatabase(posted.db) from error
        return Response(200, self._answers.success(CONTENT_TYPES[format]), text)

    async def influxql(self, _request: Request) -> Response:
        """GET and POST /api/v3/query_influxql."""
        raise NotBuilt("InfluxQL is not there yet; use /api/v3/query_sql")

    async def _read(self, request: Request) -> _Posted:
        if request.method == "POST":
            return decode_json(await request.body(), _Posted)
        if not request.query_string:
            raise BadRequest("missing query parameters 'db' and 'q'")
        try:
            found = take(parse_form(request.query_string), PARAMETERS)
            database, text = required(found, "db"), required(found, "q")
        except SerdeError as error:
            raise BadRequest(f"serde error: {error}") from error
        params = found.get("params")
        return _Posted(database, text, found.get("format"), _read_params(params) if params else None)

    async def _require_database(self, name: str) -> None:
        """MissingDatabase only after the Catalog was proved current."""
        if self._backend.catalog.database(name) is None and (await self._backend.refresh()).database(name) is None:
            raise MissingDatabase(name)


def decode_json(body: bytes, kind: type[_T]) -> _T:
    """A JSON body. BadRequest as InfluxDB words it: ``serde json error: ...``."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"serde json error: {_in_serde_words(str(error))}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"serde json error: {error}") from error


def read_format(given: str | None, accept: bytes | None) -> str:
    """The format's word: the parameter, else what the Accept header means. BadRequest if it means nothing."""
    if given is not None:
        try:
            word = variant(given, FORMATS)
        except SerdeError as error:
            raise BadRequest(f"serde error: {error}") from error
        return "jsonl" if word == "json_lines" else word
    if accept is None:
        return "json"
    found = ACCEPTED.get(accept)
    if found is not None:
        return found
    if b"text/html" in accept or b"*/*" in accept:
        return "json"
    raise BadRequest(f"invalid mime type ({accept.decode('utf-8', 'replace')})")


def _read_params(text: str) -> dict[str, Any]:
    return decode_json(text.encode("utf-8", "replace"), dict[str, Any])


def _in_serde_words(message: str) -> str:
    """msgspec's "Object missing required field `db`" is serde's "missing field `db`"."""
    return message.replace("Object missing required field", "missing field")
