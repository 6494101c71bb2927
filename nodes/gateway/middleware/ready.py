"""Refuse what needs the store while the node is starting, replaying or failed: 503 with Retry-After.

A node that drains still serves what reaches it; its server closes each connection after the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nodes.gateway.faults import NotReady
from nodes.health import Phase

if TYPE_CHECKING:
    from nodes.gateway.app import Handler, Middleware, Route
    from nodes.gateway.http import Request, Response
    from nodes.health import Health

SERVING: Final = frozenset({Phase.READY, Phase.DRAINING})


def ready_gate(health: Health) -> Middleware:
    """Middleware for routes that need the Backend (``Route.needs_backend``)."""

    def wrap(route: Route, handler: Handler) -> Handler:
        if not route.needs_backend:
            return handler

        async def gated(request: Request) -> Response:
            if health.phase not in SERVING:
                raise NotReady(f"this node is not serving now ({health.report().text}); try again")
            return await handler(request)

        return gated

    return wrap
