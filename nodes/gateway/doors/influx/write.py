"""The three ways to write line protocol: v3, v2 and v1 differ in their parameters and in how they say errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nodes.backend import Principal
from nodes.errors import V2_WORDS
from nodes.gateway.doors.influx import params
from nodes.gateway.faults import BadRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from nodes.gateway.coalesce import Coalescer, WriteReport
    from nodes.gateway.doors.influx.answers import Answers
    from nodes.gateway.doors.influx.params import WriteParameters
    from nodes.gateway.http import Request, Response
    from wire.lineprotocol.model import LineError

ANONYMOUS: Final = Principal()
REMEMBERED_MAX: Final = 1024
"""Query strings whose meaning is remembered: a writer sends the same one each time."""
PARTIAL: Final = "partial write of line protocol occurred"
REFUSED: Final = "line protocol parsing error"
EMPTY: Final = "incoming write was empty"
LIMITS: Final = ("Update to schema would exceed number of", "Adding a new database would exceed limit of")
"""Line errors that begin so make the status 422."""


class WriteDoor:
    """Handlers for POST /api/v3/write_lp, /api/v2/write and /write."""

    def __init__(self, coalescer: Coalescer, answers: Answers) -> None:
        self._coalescer = coalescer
        self._answers = answers
        self._v3: dict[bytes, WriteParameters] = {}
        self._v2: dict[bytes, WriteParameters] = {}
        self._v1: dict[bytes, WriteParameters] = {}

    async def v3(self, request: Request) -> Response:
        """Good lines are written and bad ones reported, unless ``accept_partial=false``."""
        where = self._v3.get(request.query_string) or _remember(self._v3, request.query_string, params.write_v3)
        report = await self._write(request, where)
        return self._refusal(where, report) if report.rejected else self._answers.done

    async def v2(self, request: Request) -> Response:
        """All or nothing, with v2's error bodies."""
        where = self._v2.get(request.query_string) or _remember(self._v2, request.query_string, params.write_v2)
        report = await self._write(request, where)
        if not report.rejected:
            return self._answers.done
        message = f"{REFUSED}: {report.errors[0].message} (line {report.errors[0].line})"
        status = _status(report)
        return self._answers.error_json(status, {"code": V2_WORDS[status], "message": message})

    async def v1(self, request: Request) -> Response:
        """All or nothing, with v1's error bodies."""
        where = self._v1.get(request.query_string) or _remember(self._v1, request.query_string, params.write_v1)
        report = await self._write(request, where)
        return self._refusal(where, report) if report.rejected else self._answers.done

    async def _write(self, request: Request, where: WriteParameters) -> WriteReport:
        body = await request.pieces()
        if all(piece.isspace() for piece in body if piece):
            raise BadRequest(EMPTY)
        return await self._coalescer.write(
            where.database,
            where.precision,
            body,
            is_all_or_nothing=not where.accept_partial,
            principal=ANONYMOUS,
        )

    def _refusal(self, where: WriteParameters, report: WriteReport) -> Response:
        status = _status(report)
        if where.accept_partial:
            lines = [_line(error) for error in report.errors]
            return self._answers.error_json(status, {"error": PARTIAL, "data": lines})
        return self._answers.error_json(status, {"error": REFUSED, "data": _line(report.errors[0])})


def _status(report: WriteReport) -> int:
    is_over = report.is_over_limit or any(error.message.startswith(LIMITS) for error in report.errors)
    return 422 if is_over else 400


def _line(error: LineError) -> dict[str, Any]:
    return {"error_message": error.message, "line_number": error.line, "original_line": error.original}


def _remember(
    cache: dict[bytes, WriteParameters], query_string: bytes, read: Callable[[bytes], WriteParameters]
) -> WriteParameters:
    parameters = read(query_string)
    if len(cache) >= REMEMBERED_MAX:
        cache.clear()
    cache[query_string] = parameters
    return parameters
