"""A Backend that is there before the real one: so the HTTP port answers health checks while rows are replayed.

Until `fill` every call is refused with a retryable error. Driven by `nodes.node`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.errors import ShardClosed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from nodes.backend import Backend, Batch, CatalogView, Change, Principal, QueryRequest, QueryResult
    from nodes.health import Health
    from nodes.status import QueryStatus


class BackendSlot:
    """Passes every call on to the Backend that fills it; raises ShardClosed (retriable) while empty."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._backend: Backend | None = None

    def fill(self, backend: Backend) -> None:
        """From now on calls go to ``backend``."""
        self._backend = backend

    def empty(self) -> None:
        """The Backend is about to close: refuse what still comes."""
        self._backend = None

    @property
    def catalog(self) -> CatalogView:
        return self._filled().catalog

    @property
    def store_id(self) -> str:
        """Empty until the store is open: health checks carry it in a header."""
        return self._backend.store_id if self._backend is not None else ""

    async def refresh(self) -> CatalogView:
        return await self._filled().refresh()

    async def write(self, batches: Sequence[Batch], principal: Principal, *, idempotency_key: str = "") -> None:
        await self._filled().write(batches, principal, idempotency_key=idempotency_key)

    async def alter(self, changes: Sequence[Change], principal: Principal) -> CatalogView:
        return await self._filled().alter(changes, principal)

    async def query(self, request: QueryRequest, principal: Principal) -> QueryResult:
        return await self._filled().query(request, principal)

    async def query_text(self, request: QueryRequest, format: str, principal: Principal) -> AsyncGenerator[bytes, None]:
        return await self._filled().query_text(request, format, principal)

    async def queries(self) -> Sequence[QueryStatus]:
        return await self._filled().queries()

    async def kill(self, query_id: str) -> QueryStatus:
        return await self._filled().kill(query_id)

    def _filled(self) -> Backend:
        if self._backend is None:
            raise ShardClosed(f"this node is not serving now ({self._health.report().text}); try again")
        return self._backend
