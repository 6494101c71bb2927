"""Which parts make a node of one process: the HTTP doors over the embedded backend.

The one place that knows both `nodes.gateway` and `nodes.embedded`; imported only by commands that run a node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nodes.node import NodeParts

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from nodes.node import NodeBackend, NodeContext


def embedded_parts() -> NodeParts:
    """Everything in one process (`runnel start`, `runnel demo`)."""
    from nodes.gateway.assembly import open_gateway

    return NodeParts(http=open_gateway, backend=_backend)


def _backend(context: NodeContext) -> AbstractAsyncContextManager[NodeBackend]:
    """The engine and its libraries are imported here, when the port already answers health checks."""
    from nodes.embedded import EmbeddedBackend

    return EmbeddedBackend(context.settings, context.budgets, context.fail)
