"""Responses in InfluxDB's shapes: the headers that all of them carry, and errors as each API version writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from nodes.errors import UNKNOWN, V2_WORDS, HttpAnswer, Shape, influx_answer
from nodes.gateway.faults import MethodNotAllowed
from nodes.gateway.http import JSON_TYPE, TEXT_TYPE, Header, Request, Response

if TYPE_CHECKING:
    from nodes.backend import Backend
    from nodes.metrics import Metrics

ANY_ORIGIN: Final[Header] = (b"access-control-allow-origin", b"*")
CORS: Final[list[Header]] = [
    ANY_ORIGIN,
    (b"access-control-allow-methods", b"*"),
    (b"access-control-allow-headers", b"*"),
    (b"access-control-max-age", b"86400"),
]
SERVER_FAULT: Final = 500
NOT_OUR_FAULT: Final = "statement_failed"
"""A division by zero is 500 in InfluxDB too, but no operator needs to look at it."""

log = structlog.get_logger(__name__)


class Answers:
    """Makes the door's responses; knows the store's id once the Backend does."""

    def __init__(self, backend: Backend, metrics: Metrics) -> None:
        self._backend = backend
        self._errors = metrics.counter("runnel_http_errors", "Error answers by the error's code.", "code")
        self._store: list[Header] = []
        self._success: list[Header] = [ANY_ORIGIN]
        self._done: Response | None = None

    @property
    def done(self) -> Response:
        """204 without a body, the same object each time: nobody may change it."""
        if self._done is None:
            done = Response(204, self.success())
            if not self._store:
                return done
            self._done = done
        return self._done

    def success(self, *headers: Header) -> list[Header]:
        """The headers of a success, with the given ones first."""
        self._learn_store()
        return [*headers, *self._success]

    def ok(self, body: bytes = b"", content_type: Header | None = None) -> Response:
        """200."""
        return Response(200, self.success(content_type) if content_type else self.success(), body)

    def json(self, value: Any) -> Response:
        """200 with a JSON body."""
        return self.ok(msgspec.json.encode(value), JSON_TYPE)

    def error_text(self, status: int, message: str, *headers: Header) -> Response:
        """An error as v3 writes most of them: the message is the body."""
        self._learn_store()
        return Response(status, [TEXT_TYPE, *headers, *self._store], message.encode("utf-8", "replace"))

    def error_json(self, status: int, value: Any, *headers: Header) -> Response:
        """An error with a JSON body."""
        self._learn_store()
        return Response(status, [JSON_TYPE, *headers, *self._store], msgspec.json.encode(value))

    def preflight(self) -> Response:
        """OPTIONS, on any path: browsers may call everything."""
        self._learn_store()
        return Response(204, [*CORS, *self._store])

    def on_error_v3(self, request: Request, error: Exception) -> Response:
        """As the v3 API answers: the table says whether the body is text or JSON."""
        answer, message, headers = self._look_up(request, error)
        if answer.shape is Shape.JSON:
            return self.error_json(answer.status, {"error": message}, *headers)
        return self.error_text(answer.status, message, *headers)

    def on_error_v1(self, request: Request, error: Exception) -> Response:
        """As /write and /query answer: always ``{"error": ..}``."""
        answer, message, headers = self._look_up(request, error)
        return self.error_json(answer.status, {"error": message}, *headers)

    def on_error_v2(self, request: Request, error: Exception) -> Response:
        """As /api/v2/write answers: ``{"code": .., "message": ..}``."""
        answer, message, headers = self._look_up(request, error)
        word = V2_WORDS.get(answer.status, "internal error")
        return self.error_json(answer.status, {"code": word, "message": message}, *headers)

    def _look_up(self, request: Request, error: Exception) -> tuple[HttpAnswer, str, list[Header]]:
        answer = influx_answer(error)
        code = str(getattr(error, "code", "unknown"))
        self._errors.of(code).value += 1
        if answer is None:
            log.error("a request failed", path=request.pattern, request_id=request.request_id, exc_info=error)
            return UNKNOWN, f"internal error; the server's log has it under request {request.request_id}", []
        if answer.status == SERVER_FAULT and code != NOT_OUR_FAULT:
            log.error(
                "a request failed", path=request.pattern, request_id=request.request_id, error=str(error), code=code
            )
        headers: list[Header] = []
        if answer.retry_after_seconds is not None:
            headers.append((b"retry-after", b"%d" % answer.retry_after_seconds))
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", error.allowed.encode("ascii")))
        return answer, str(error), headers

    def _learn_store(self) -> None:
        if not self._store and (store_id := self._backend.store_id):
            self._store = [(b"cluster-uuid", store_id.encode("ascii"))]
            self._success = [ANY_ORIGIN, *self._store]
