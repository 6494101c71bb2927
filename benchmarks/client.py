"""The one HTTP client that all servers are measured with: prebuilt requests, keep-alive, one thread.

Driven by the loads. `drive` keeps many connections busy from one selector loop; `Connection` asks one question
at a time. Responses go through httptools, so the client costs far less than any server it talks to.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import httptools

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

HOST = "127.0.0.1"
ANSWER_SECONDS_MAX = 120.0
RECEIVE_BYTES = 1 << 18
ERROR_TEXT_CHARS = 300


class RequestFailed(RuntimeError):
    """A server refused, cut the connection, or said nothing for ``ANSWER_SECONDS_MAX``."""


@dataclass(frozen=True, slots=True)
class Request:
    """Bytes as they go out: the head with its blank line, and the body."""

    head: bytes
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: its status and its whole (de-chunked) body."""

    status: int
    body: bytes

    def expect_success(self) -> Answer:
        """Self, or `RequestFailed` with the beginning of the body for a status of 300 and above."""
        if self.status >= 300:
            raise RequestFailed(f"status {self.status}: {self.body[:ERROR_TEXT_CHARS].decode(errors='replace')}")
        return self


@dataclass(frozen=True, slots=True)
class Driven:
    """What `drive` saw: seconds from the first byte out to the last answer, and each request's own seconds."""

    wall_seconds: float
    latency_seconds: Sequence[float]


def build(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Request:
    """A request with Host, Content-Length and the given headers."""
    fields = {"Host": HOST, "Content-Length": str(len(body)), **(headers or {})}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return Request(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"), body)


class _Receiver:
    """httptools' callbacks: gathers one response at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: list[bytes] = []
        self._complete = False

    def on_body(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        self._complete = True

    def feed(self, data: bytes) -> Answer | None:
        """The answer once its last byte is in, else None."""
        if not data:
            raise RequestFailed("the server closed the connection before its answer was complete")
        self._parser.feed_data(data)
        if not self._complete:
            return None
        answer = Answer(self._parser.get_status_code(), b"".join(self._chunks))
        self._chunks, self._complete = [], False
        return answer


def _connect(port: int) -> socket.socket:
    link = socket.create_connection((HOST, port), timeout=ANSWER_SECONDS_MAX)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


class Connection:
    """One keep-alive connection that waits for each answer."""

    def __init__(self, port: int) -> None:
        self._port = port

    def __enter__(self) -> Self:
        self._link = _connect(self._port)
        self._receiver = _Receiver()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.close()

    def ask(self, request: Request) -> Answer:
        """Send and read the whole answer, whatever its status."""
        self._link.sendall(request.head + request.body)
        while True:
            answer = self._receiver.feed(self._link.recv(RECEIVE_BYTES))
            if answer is not None:
                return answer


def ask(port: int, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
    """One question on a connection of its own; `RequestFailed` unless the status is below 300."""
    with Connection(port) as connection:
        return connection.ask(build(method, path, body, headers)).expect_success()


class _Lane:
    """One of `drive`'s connections: sends a request, waits for its answer, takes the next."""

    def __init__(self, port: int, waiting: deque[Request], latency_seconds: list[float]) -> None:
        self.link = _connect(port)
        self.link.setblocking(False)
        self._waiting = waiting
        self._latency_seconds = latency_seconds
        self._receiver = _Receiver()
        self._unsent = memoryview(b"")
        self._since = 0.0

    def start_next(self) -> int:
        """Send as much of the next request as the socket takes; the event to wait for, 0 when none is left."""
        if not self._waiting:
            return 0
        request = self._waiting.popleft()
        self._since = time.perf_counter()
        try:
            sent = self.link.sendmsg([request.head, request.body])
        except BlockingIOError:
            sent = 0
        over = sent - len(request.head)
        self._unsent = memoryview(request.body)[over:] if over >= 0 else memoryview(request.head + request.body)[sent:]
        return selectors.EVENT_WRITE if self._unsent else selectors.EVENT_READ

    def go_on(self, events: int) -> int:
        """Handle readiness; the event to wait for next, 0 when this lane has nothing left to do."""
        if events & selectors.EVENT_WRITE:
            self._unsent = self._unsent[self.link.send(self._unsent) :]
            return selectors.EVENT_WRITE if self._unsent else selectors.EVENT_READ
        answer = self._receiver.feed(self.link.recv(RECEIVE_BYTES))
        if answer is None:
            return selectors.EVENT_READ
        self._latency_seconds.append(time.perf_counter() - self._since)
        answer.expect_success()
        return self.start_next()


def drive(port: int, requests: Sequence[Request], connections: int) -> Driven:
    """Send all requests over ``connections`` connections, each with one request in flight.

    The connections are open before the clock starts. Raises `RequestFailed` at the first answer of 300 and above.
    """
    waiting, latency_seconds = deque(requests), list[float]()
    lanes = [_Lane(port, waiting, latency_seconds) for _ in range(connections)]
    try:
        begun = time.perf_counter()
        _run(lanes)
        return Driven(time.perf_counter() - begun, latency_seconds)
    finally:
        for lane in lanes:
            lane.link.close()


def _run(lanes: Sequence[_Lane]) -> None:
    with selectors.DefaultSelector() as selector:
        for lane in lanes:
            event = lane.start_next()
            if event:
                selector.register(lane.link, event, lane)
        while selector.get_map():
            ready = selector.select(ANSWER_SECONDS_MAX)
            if not ready:
                raise RequestFailed(f"no answer for {ANSWER_SECONDS_MAX:.0f} s")
            for key, events in ready:
                _step(selector, key, events)


def _step(selector: selectors.BaseSelector, key: selectors.SelectorKey, events: int) -> None:
    event = key.data.go_on(events)
    if not event:
        selector.unregister(key.fileobj)
    elif event != key.events:
        selector.modify(key.fileobj, event, key.data)
