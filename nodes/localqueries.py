"""The queries of this process's engine, as operators and SQL see them.

`nodes.embedded` has all there are in it; in a cluster `nodes.clusterqueries` puts those of every query node together.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import structlog

from engine.killstatement import killed_id
from engine.running import Origin, Phase
from nodes.resulttext import ReadyResult
from nodes.status import QueryStatus
from nodes.systemtables import queries as queries_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.running import QueryView, RunningQueries
    from nodes.backend import QueryRequest
    from nodes.status import QueryControl

SECONDS_DIGITS: Final = 6

log = structlog.get_logger(__name__)


class LocalQueries:
    """`nodes.status.QueryControl` over one engine."""

    def __init__(self, running: RunningQueries, node: str) -> None:
        self._running = running
        self._node = node

    def listed(self) -> Sequence[QueryStatus]:
        """From any thread."""
        return [query_status(view, self._node) for view in self._running.views()]

    def counts(self) -> tuple[int, int]:
        """How many run and how many wait."""
        return self._running.counts()

    async def queries(self) -> Sequence[QueryStatus]:
        return self.listed()

    async def kill(self, query_id: str) -> QueryStatus:
        killed = query_status(self._running.kill(query_id), self._node)
        log.info("a query was killed", id=killed.id, phase=killed.phase, seconds=killed.total_seconds)
        return killed


async def kill_if_asked(request: QueryRequest, control: QueryControl) -> ReadyResult | None:
    """Carry KILL QUERY out, and answer what the query was; None if the statement is another one.

    Raises InvalidStatement, and as ``control`` does.
    """
    wanted = killed_id(request.text)
    if wanted is None:
        return None
    (row,) = queries_table([await control.kill(wanted)]).to_batches()
    return ReadyResult(row)


def origin(request: QueryRequest) -> Origin:
    """Who sent the statement, for the engine."""
    return Origin(request.door, request.client, request.request_id)


def query_status(view: QueryView, node: str) -> QueryStatus:
    """A query of the engine of ``node``."""
    seconds = {phase: round(spent, SECONDS_DIGITS) for phase, spent in view.seconds.items()}
    return QueryStatus(
        node=node,
        phase=view.phase.value,
        id=view.id,
        issue_time=datetime.fromtimestamp(view.started_ns / 1e9, UTC),
        database=view.database,
        query_text=view.text,
        door=view.origin.door,
        client=view.origin.client,
        request_id=view.origin.request_id,
        waiting_seconds=seconds[Phase.WAITING],
        planning_seconds=seconds[Phase.PLANNING],
        running_seconds=seconds[Phase.RUNNING],
        sending_seconds=seconds[Phase.SENDING],
        total_seconds=round(view.total_seconds, SECONDS_DIGITS),
        rows=view.rows,
        bytes=view.bytes,
        parquet_files=view.files,
        parquet_bytes=view.file_bytes,
        rung=view.rung,
        workers=view.workers,
    )
