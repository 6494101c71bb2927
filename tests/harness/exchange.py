"""One HTTP exchange with a node, with a deadline of its own: what tests, clients and the benchmark ask with."""

from __future__ import annotations

import http.client
import json
import socket
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

SECONDS_MAX: Final = 30.0
WRITE_PATH: Final = "/api/v3/write_lp"
QUERY_PATH: Final = "/api/v3/query_sql"
NO_ANSWER: Final = 0
"""The status of an exchange that ended without an answer."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Status and body; status `NO_ANSWER` when none came, with the reason as the body.

    ``is_unsent``: nobody can have seen the request (connection refused). ``is_dropped``: the server had closed a
    kept connection while it was idle, or closed it without a byte of an answer.
    """

    status: int
    body: bytes
    is_unsent: bool = False
    is_dropped: bool = False

    @property
    def is_ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def ok(self) -> Self:
        """Self, or an AssertionError with the beginning of what was answered."""
        assert self.is_ok, (self.status, self.text[:800])
        return self


class Connection:
    """A keep-alive connection to one address; opened again after any failure. Not for several threads."""

    def __init__(self, host: str, port: int, seconds: float = SECONDS_MAX) -> None:
        self.host, self.port, self.seconds = host, port, seconds
        self._link: http.client.HTTPConnection | None = None

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One exchange; never raises for what a network or a dying server can do, and never tries twice."""
        try:
            return self._ask(method, path, body, headers or {})
        except (OSError, http.client.HTTPException) as error:
            self.close()
            reason = f"{type(error).__name__}: {error}".encode()
            is_dropped = isinstance(error, http.client.RemoteDisconnected | BrokenPipeError | ConnectionResetError)
            return Reply(NO_ANSWER, reason, isinstance(error, ConnectionRefusedError), is_dropped)

    def _ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        if self._link is None:
            self._link = http.client.HTTPConnection(self.host, self.port, timeout=self.seconds)
            self._link.connect()
            self._link.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._link.request(method, path, body, dict(headers))
        response = self._link.getresponse()
        reply = Reply(response.status, response.read())
        if response.will_close:
            self.close()
        return reply

    def close(self) -> None:
        """Hang up; the next `ask` connects again."""
        if self._link is not None:
            self._link.close()
            self._link = None


def ask(
    host: str,
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    seconds: float = SECONDS_MAX,
) -> Reply:
    """One exchange on a connection of its own."""
    connection = Connection(host, port, seconds)
    try:
        return connection.ask(method, path, body, headers)
    finally:
        connection.close()


def write_path(database: str, **parameters: str) -> str:
    """Where line protocol goes; nanosecond times unless told otherwise."""
    return f"{WRITE_PATH}?{urllib.parse.urlencode({'db': database, 'precision': 'ns', **parameters})}"


def query_path(statement: str, database: str) -> str:
    """Where SQL is asked, for JSON."""
    return f"{QUERY_PATH}?{urllib.parse.urlencode({'db': database, 'q': statement, 'format': 'json'})}"
