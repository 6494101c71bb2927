"""Keeps materialized views folded in the background, so that queries compute little of them (`nodes.views`).

Driven by `nodes.embedded` and, on one gateway of a cluster, by `nodes.gateway.node`. If two nodes believe that it is
theirs, or it dies in the middle, nothing is wrong and nothing is lost: views are right without it, only slower.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from cluster.errors import ClusterError
from engine.errors import EngineError
from engine.viewsql import quote
from nodes.backend import Principal, QueryRequest
from nodes.status import ViewsStatus
from storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nodes.backend import Backend

DOOR: Final = "views"
"""What `system.queries` says of its statements."""
KEEPER: Final = Principal("views")

log = structlog.get_logger(__name__)


class ViewKeeper:
    """`run` it in the background. ``is_ours`` is asked each time: another node may have become the one."""

    def __init__(self, backend: Backend, seconds: float, is_ours: Callable[[], bool] = lambda: True) -> None:
        self.counters = ViewsStatus()
        self._backend = backend
        self._seconds = seconds
        self._is_ours = is_ours

    async def run(self) -> None:
        """For ever, unless the settings say never. What cannot be done now is done the next time."""
        while self._seconds:
            await asyncio.sleep(self._seconds)
            if self._is_ours():
                await self.refresh_all()

    async def refresh_all(self) -> None:
        """Every view of every database, one after the other."""
        catalog = self._backend.catalog
        for database in catalog.databases():
            for table in catalog.tables(database.name):
                if table.view is not None and not table.dropping:
                    await self._refresh(database.name, table.name)

    async def _refresh(self, database: str, name: str) -> None:
        text = f"REFRESH MATERIALIZED VIEW {quote(name)}"
        request = QueryRequest(database, text, door=DOOR, may_write=True)
        try:
            result = await self._backend.query(request, KEEPER)
            await result.aclose()
        except (StorageError, EngineError, ClusterError) as error:
            self.counters.failed += 1
            log.info("a materialized view was not refreshed", database=database, view=name, reason=str(error))
        except Exception:  # a defect: the view is right without it, and others are to be refreshed all the same
            self.counters.failed += 1
            log.exception("refreshing a materialized view failed", database=database, view=name)
        else:
            self.counters.refreshes += 1
