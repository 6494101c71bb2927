"""An HTTP client of one server, for the commands: opens one aiohttp session, turns answers into values and errors.

Driven by the other modules of `nodes.cli` and by the demo. Raises ServerUnreachable, ServerBusy, ServerDenied,
ServerRefused; never aiohttp's own errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from nodes.exitcodes import ExitCode, NodeError, ServerDenied, ServerRefused, ServerUnreachable
from nodes.settings import client_host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import TracebackType

T = TypeVar("T")

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 330.0
"""Between two pieces of an answer: longer than the server's own limit for a query."""
ERROR_CHARACTERS_MAX: Final = 2000
RETRY_AFTER_SECONDS_DEFAULT: Final = 1.0
RETRY_AFTER_SECONDS_MAX: Final = 30.0


class ServerBusy(NodeError):
    """503: try again after ``retry_after_seconds``."""

    code: ClassVar[str] = "server_busy"
    retriable: ClassVar[bool] = True
    exit_code: ClassVar[ExitCode] = ExitCode.TRY_LATER

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class BodyRefused(ServerRefused):
    """413: one request is too large; send less at once."""

    code = "body_refused"


@dataclass(frozen=True, slots=True)
class LineError:
    """One rejected line, as the server numbers it within the body (from 1)."""

    number: int
    message: str
    original: str


@dataclass(frozen=True, slots=True)
class HealthAnswer:
    """What ``GET /health`` or one of its kinds said; ``ready`` is its yes or no."""

    ready: bool
    status: int
    text: str


class Client:
    """Enter it before use. ``host`` None takes RUNNEL_HOST, else this machine's default port."""

    def __init__(self, host: str | None = None, answer_seconds: float = ANSWER_SECONDS) -> None:
        self.url = base_url(host or client_host())
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=answer_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: object = None,
        body: bytes | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request; the answer may have any status. Raises ServerUnreachable."""
        assert self._session is not None
        try:
            async with self._session.request(method, self.url + path, params=params, json=json, data=body) as answer:
                yield answer
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise ServerUnreachable(self._unreachable(error)) from error

    async def get_bytes(self, path: str, params: Mapping[str, str] | None = None) -> bytes:
        """The body of a 2xx answer."""
        async with self.request("GET", path, params=params) as answer:
            await raise_for_status(answer)
            return await answer.read()

    async def query(self, database: str, text: str, format: str) -> AsyncIterator[bytes]:
        """Run one statement; yields the answer in ``format`` piece by piece."""
        wanted = {"db": database, "q": text, "format": format}
        async with self.request("POST", "/api/v3/query_sql", json=wanted) as answer:
            await raise_for_status(answer)
            async for piece in answer.content.iter_any():
                yield piece

    async def rows(self, database: str, text: str) -> list[dict[str, Any]]:
        """A small result as dictionaries; null columns are missing in them."""
        body = b"".join([piece async for piece in self.query(database, text, "json")])
        rows: list[dict[str, Any]] = json.loads(body or b"[]")
        return rows

    async def databases(self) -> list[str]:
        """Names of the live databases, without the system's own."""
        rows = json.loads(await self.get_bytes("/api/v3/configure/database", {"format": "json"}))
        names = [str(row["iox::database"]) for row in rows]
        return [name for name in names if not name.startswith("_")]

    async def write(self, database: str, precision: str, body: bytes) -> list[LineError]:
        """Write lines; those that are good are durable when this returns, the others are in the answer."""
        params = {"db": database, "precision": precision, "accept_partial": "true"}
        async with self.request("POST", "/api/v3/write_lp", params=params, body=body) as answer:
            if answer.status in (400, 422) and (errors := _line_errors(await answer.text())) is not None:
                return errors
            await raise_for_status(answer)
            return []

    async def health(self, path: str = "/health") -> HealthAnswer:
        """Ask ``/health`` or one of its kinds; not ready is an answer, not an error."""
        async with self.request("GET", path) as answer:
            return HealthAnswer(answer.status == 200, answer.status, (await answer.text()).strip())

    def _unreachable(self, error: BaseException) -> str:
        if isinstance(error, aiohttp.ClientConnectorError):
            return f"no server answers at {self.url}; start one with `runnel start`, or name it with --host"
        if isinstance(error, aiohttp.InvalidURL):
            return f"{self.url} is not a URL; write http://HOST:PORT"
        reason = "it did not answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        return f"the connection to {self.url} broke: {reason}"


async def raise_for_status(answer: aiohttp.ClientResponse) -> None:
    """Raise the error that a status other than 2xx stands for, with the server's own words."""
    if answer.status < 300:
        return
    message = error_text(await answer.text())
    if answer.status == 503:
        raise ServerBusy(f"the server is busy: {message}", retry_after_seconds(answer.headers.get("Retry-After")))
    if answer.status in (401, 403):
        raise ServerDenied(message)
    if answer.status == 413:
        raise BodyRefused(message)
    raise ServerRefused(message or f"the server answered {answer.status}")


def error_text(body: str) -> str:
    """The message in an answer's body: its ``error`` or ``message`` if it is JSON, else the text itself."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if isinstance(document, dict):
        body = str(document.get("error") or document.get("message") or body)
    return body.strip()[:ERROR_CHARACTERS_MAX]


def retry_after_seconds(header: str | None) -> float:
    """What a Retry-After header asks for, within reason."""
    try:
        seconds = float(header or "")
    except ValueError:
        seconds = RETRY_AFTER_SECONDS_DEFAULT
    return min(max(seconds, 0.05), RETRY_AFTER_SECONDS_MAX)


def base_url(host: str) -> str:
    """``HOST:PORT`` or a URL, as a URL without a slash at its end."""
    url = host if "://" in host else f"http://{host}"
    if not urlsplit(url).hostname:
        raise ServerUnreachable(f"{host!r} is not a server; write http://HOST:PORT")
    return url.rstrip("/")


def run(coroutine: Any) -> Any:
    """Run a command's coroutine to its end."""
    return asyncio.run(coroutine)


def _line_errors(body: str) -> list[LineError] | None:
    """The rejected lines of a partial write; None if the body says something else."""
    try:
        document = json.loads(body)
        data = document["data"]
        items = data if isinstance(data, list) else [data]
        return [LineError(int(i["line_number"]), str(i["error_message"]), str(i["original_line"])) for i in items]
    except (ValueError, KeyError, TypeError):
        return None


async def ask(
    host: str | None, method: str, path: str, kind: type[T], parameters: Mapping[str, str] | None = None
) -> tuple[bytes, T]:
    """One request of an operator's: the answer as it came, and what it means. ServerRefused if it means nothing."""
    async with Client(host) as client, client.request(method, path, params=parameters) as answer:
        raw = await answer.read()
        await raise_for_status(answer)
        try:
            return raw, msgspec.json.decode(raw, type=kind)
        except msgspec.DecodeError as error:
            raise ServerRefused(f"{client.url} is not a Runnel server that this command understands") from error
