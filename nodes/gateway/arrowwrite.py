"""Write rows that came as Arrow: make what the Catalog lacks, write, and again if the table changed meanwhile.

The counterpart of `nodes.gateway.coalesce` for columns: these bodies are large, so each is written by itself.
Driven by the gRPC door.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from nodes.backend import EnsureTable
from nodes.gateway.arrowrows import batches_for, read_rows
from nodes.gateway.batches import StaleTable
from storage.errors import NoSuchDatabase, NoSuchTable, SchemaConflict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nodes.backend import Backend, CatalogView, Principal
    from nodes.gateway.arrowrows import ArrowRows

ATTEMPTS_MAX: Final = 5
"""How often the table may change under a write before its client is told to retry."""


class ArrowWriter:
    """`write` returns when the rows are durable."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def write(
        self,
        database: str,
        table: str,
        data: bytes,
        *,
        tags: Sequence[str] = (),
        principal: Principal,
        idempotency_key: str = "",
    ) -> int:
        """How many rows. Raises BadRequest for bytes that are none, and what the Backend raises."""
        rows = await asyncio.to_thread(read_rows, data, tags)
        if not rows.batches:
            return 0
        error: Exception = StaleTable("not tried")
        view = self._backend.catalog
        for _ in range(ATTEMPTS_MAX):
            try:
                view = await self._ensure(database, table, rows, view, principal)
                found = view.table(database, table)
                if found is None:
                    raise NoSuchTable(f"table {table!r} was dropped")
                await self._backend.write(batches_for(found, rows), principal, idempotency_key=idempotency_key)
            except (StaleTable, NoSuchTable, NoSuchDatabase) as changed:
                error, view = changed, await self._backend.refresh()
            else:
                return rows.rows
        raise SchemaConflict(f"table {table!r} changes all the time") if isinstance(error, StaleTable) else error

    async def _ensure(
        self, database: str, table: str, rows: ArrowRows, view: CatalogView, principal: Principal
    ) -> CatalogView:
        """The Catalog with the table and its columns. SchemaConflict if one is there and is another."""
        known = view.table(database, table)
        missing = [
            spec
            for spec in rows.columns
            if known is None
            or (column := known.by_name.get(spec.name)) is None
            or (column.role, column.kind) != (spec.role, spec.kind)
        ]
        if known is not None and not missing and known.view is None:
            return view
        return await self._backend.alter([EnsureTable(database, table, tuple(missing))], principal)
