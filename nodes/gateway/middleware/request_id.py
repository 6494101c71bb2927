"""Carry the request id: bind it to the log lines of slow routes and send it back to who gave one.

The write path stays without it: its log lines are errors, and those bind the id where they are written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from nodes.gateway.http import Response

if TYPE_CHECKING:
    from nodes.gateway.app import Handler, Route
    from nodes.gateway.http import Request


def request_id(route: Route, handler: Handler) -> Handler:
    """Middleware for routes that trace (``Route.is_traced``): queries and configuration."""
    if not route.is_traced:
        return handler

    async def traced(request: Request) -> Response:
        structlog.contextvars.bind_contextvars(request_id=request.request_id)
        response = await handler(request)
        own = (b"x-request-id", request.request_id.encode("latin-1"))
        return Response(response.status, [*response.headers, own], response.body)

    return traced
