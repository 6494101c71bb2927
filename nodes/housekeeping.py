"""What the owner of shards does now and then: it lets files go that nobody can see, and sweeps orphans (LOG L20).

Driven by `nodes.embedded` and `nodes.ingest.node`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from storage.errors import StorageError
from storage.expiry import gone_files

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from storage.catalogstate import CatalogSnapshot
    from storage.shard import Shard

TIDY_SECONDS: Final = 300.0
LOOK_SECONDS: Final = 10.0
"""How often shards are asked whether a Checkpoint has brought files, of which the oldest may have to go (L36)."""

log = structlog.get_logger(__name__)


class Housekeeper:
    """`run` it in the background. ``refresh`` gives the Catalog, proved current (LOG L29)."""

    def __init__(
        self, shards: Callable[[], Iterable[Shard]], refresh: Callable[[], Awaitable[CatalogSnapshot]]
    ) -> None:
        self.files_gone = 0
        """Files of dropped tables and of expired rows that were taken off the lists since the start."""
        self._shards = shards
        self._refresh = refresh
        self._looked: dict[int, int] = {}
        """By shard the Checkpoint whose files were looked at."""

    async def run(self) -> None:
        """For ever. What cannot be done now is done the next time."""
        waited = 0.0
        while True:
            pause = min(LOOK_SECONDS, TIDY_SECONDS)
            await asyncio.sleep(pause)
            waited += pause
            is_due = waited >= TIDY_SECONDS
            waited = 0.0 if is_due else waited
            for shard in list(self._shards()):
                if is_due or shard.state.checkpoint_seq != self._looked.get(shard.log_id):
                    await self._tidy(shard.log_id, self.let_go(shard, is_due=is_due))
                if is_due:
                    await self._tidy(shard.log_id, shard.sweep())  # also when a full disk takes no new list of files

    async def _tidy(self, log_id: int, work: Awaitable[int]) -> None:
        try:
            await work
        except StorageError as error:
            log.info("housekeeping put off", shard=log_id, reason=str(error))
        except Exception:  # a defect: no row is at risk, and without a sweep the disk would fill up unseen
            log.exception("housekeeping failed", shard=log_id)

    async def let_go(self, shard: Shard, *, is_due: bool = True) -> int:
        """Take files off the shard's list whose rows nobody can see; how many. Not ``is_due``: only by bytes.

        The Catalog is proved current before, and only files that were there before that go: rows of a retention
        period that has just been cleared are to be kept (L36).
        """
        known = {file.path for file in shard.state.all_files()}
        catalog = await self._refresh()
        self._looked[shard.log_id] = shard.state.checkpoint_seq
        if not is_due and not catalog.shares:
            return 0
        here = {table_id for table_id, _ in shard.state.partitions}
        await shard.cutoffs.record(catalog, [catalog.tables_by_id[i] for i in here if i in catalog.tables_by_id])
        changes = gone_files(shard.state, catalog, known)
        stands = await shard.replace_files(changes) if changes else []
        gone = sum(len(change.removed) for change, stand in zip(changes, stands, strict=True) if stand)
        if gone:
            self.files_gone += gone
            log.info("files of expired or dropped rows let go", shard=shard.log_id, files=gone)
        return gone
