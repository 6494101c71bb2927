"""Keeps materialized views folded in the background, so that queries compute little of them (`nodes.views`).

Driven by `nodes.embedded` and, on one gateway of a cluster, by `nodes.gateway.node`. If two nodes believe that it is
theirs, or it dies in the middle, nothing is wrong and nothing is lost: views are right without it, only slower.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from cluster.errors import ClusterError
from engine.errors import EngineError, QueryMemoryExhausted
from engine.viewsql import quote
from nodes.backend import Principal, QueryRequest
from nodes.status import ViewsStatus
from storage.errors import RequestTooLarge, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nodes.backend import Backend
    from storage.schema import Table

DOOR: Final = "views"
"""What `system.queries` says of its statements."""
KEEPER: Final = Principal("views")
PAUSE_ROUNDS_MAX: Final = 64
"""A view with a bucket that is too large to be stored is tried after 2, 4, 8 .. so many rounds: each try costs."""
TOO_LARGE: Final = (RequestTooLarge, QueryMemoryExhausted)

log = structlog.get_logger(__name__)


class ViewKeeper:
    """`run` it in the background. ``is_ours`` is asked each time: another node may have become the one."""

    def __init__(self, backend: Backend, seconds: float, is_ours: Callable[[], bool] = lambda: True) -> None:
        self.counters = ViewsStatus()
        self._backend = backend
        self._seconds = seconds
        self._is_ours = is_ours
        self._round = 0
        self._paused: dict[int, tuple[int, int]] = {}
        """By view (table id): the pause in rounds, and the round in which it ends."""

    async def run(self) -> None:
        """For ever, unless the settings say never. What cannot be done now is done the next time."""
        while self._seconds:
            await asyncio.sleep(self._seconds)
            if self._is_ours():
                await self.refresh_all()

    async def refresh_all(self) -> None:
        """Every view of every database, one after the other."""
        self._round += 1
        catalog = self._backend.catalog
        self._paused = {view: paused for view, paused in self._paused.items() if view in catalog.tables_by_id}
        for database in catalog.databases():
            for table in catalog.tables(database.name):
                is_paused = self._paused.get(table.id, (0, 0))[1] > self._round
                if table.view is not None and not table.dropping and not is_paused:
                    await self._refresh(database.name, table)

    async def _refresh(self, database: str, table: Table) -> None:
        name = table.name
        text = f"REFRESH MATERIALIZED VIEW {quote(name)}"
        request = QueryRequest(database, text, door=DOOR, may_write=True)
        try:
            result = await self._backend.query(request, KEEPER)
            await result.aclose()
        except (StorageError, EngineError, ClusterError) as error:
            self.counters.failed += 1
            log.info("a materialized view was not refreshed", database=database, view=name, reason=str(error))
            if isinstance(error, TOO_LARGE):
                pause = min(PAUSE_ROUNDS_MAX, 2 * self._paused.get(table.id, (1, 0))[0])
                self._paused[table.id] = (pause, self._round + pause)
        except Exception:  # a defect: the view is right without it, and others are to be refreshed all the same
            self.counters.failed += 1
            log.exception("refreshing a materialized view failed", database=database, view=name)
        else:
            self.counters.refreshes += 1
            self._paused.pop(table.id, None)
