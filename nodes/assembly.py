"""Which parts make a node: of one process (the HTTP doors over the embedded backend), and of each kind in a cluster.

The one place that knows `nodes.gateway`, `nodes.embedded` and the kinds; imported only by commands that run a node.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from typing import TYPE_CHECKING

from nodes.node import NodeParts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from cluster.members import Kind
    from nodes.node import NodeBackend, NodeContext


def embedded_parts() -> NodeParts:
    """Everything in one process (`runnel start`, `runnel demo`)."""
    from nodes.gateway.assembly import open_gateway

    return NodeParts(http=open_gateway, backend=_backend)


def parts_of(kind: Kind) -> NodeParts:
    """One node of a cluster (`runnel gateway`, `ingest`, `query`): ``parts()`` of ``nodes.KIND.node``."""
    parts: NodeParts = importlib.import_module(f"nodes.{kind.value}.node").parts()
    return parts


@contextlib.asynccontextmanager
async def _backend(context: NodeContext) -> AsyncIterator[NodeBackend]:
    """The engine and its libraries are imported here, in a thread: the port already answers health checks."""
    embedded = await asyncio.to_thread(importlib.import_module, "nodes.embedded")
    backend: AbstractAsyncContextManager[NodeBackend] = embedded.EmbeddedBackend(
        context.settings, context.budgets, context.fail
    )
    async with backend as opened:
        yield opened
