"""The Catalog's owner: a Log of effects and the snapshot they add up to (LOG L28-L30, FORMAT F19-F23).

One process owns it (the controller; here, the only one). Changes go through one at a time: each is planned
against the newest Revision and is one record, or nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from storage.catalogstate import CatalogState, plan
from storage.entries import record_entry
from storage.errors import StorageError
from storage.frames import FORMAT_VERSION, EntryKind
from storage.logdriver import LogDriver
from storage.logeffects import CheckpointDraft

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from concurrent.futures import Executor

    from storage.catalogstate import CatalogLimits, CatalogSnapshot, Effect
    from storage.changes import Change
    from storage.log import Identity
    from storage.objects import ObjectStore
    from storage.schema import Table

_T = TypeVar("_T")

CHECKPOINT_OBJECTS: Final = 1_000
"""Records above the last Checkpoint that start the next one (L23)."""


class Catalog:
    """The Catalog while this process owns it. `open`, then `alter`, `prove`, `current`; `close` at the end."""

    def __init__(
        self,
        store: ObjectStore,
        identity: Identity,
        executor: Executor,
        limits: CatalogLimits,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.state = CatalogState()
        self.limits = limits
        self._store = store
        self._identity = identity
        self._executor = executor
        self._on_fatal = on_fatal
        self._altering = asyncio.Lock()
        self._checkpointing = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._driver: LogDriver | None = None

    @property
    def driver(self) -> LogDriver:
        assert self._driver is not None, "open the Catalog first"
        return self._driver

    @property
    def current(self) -> CatalogSnapshot:
        """The newest Revision known here."""
        return self.state.snapshot

    def table_by_id(self, table_id: int) -> Table | None:
        """A table at its newest schema, also a deleted one: ids are never used again."""
        return self.state.snapshot.tables_by_id.get(table_id)

    @property
    def closed(self) -> asyncio.Future[StorageError]:
        """Done with the error that ended this ownership. There once `open` was called."""
        return self.driver.closed

    async def open(
        self, logs: Sequence[int], skips: frozenset[int] = frozenset(), placement: tuple[int, int] = (0, 0)
    ) -> None:
        """Take the Catalog over; an empty one is told its format and which Logs there are (F6, F21).

        When it fails nothing is left running. ``placement`` is the newest that this node knows (L12).
        """
        inline = self._store.local_path("probe") is not None
        self._driver = LogDriver(
            self._store, self._identity, self.state, self._executor, self._on_fatal, check_inline=inline
        )
        try:
            await self._driver.open(skips, placement)
            if logs and not self.current.logs:
                effects: list[Effect] = [{"do": "format", "version": FORMAT_VERSION}, {"do": "logs", "ids": list(logs)}]
                await self._commit(effects)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Let it go. Idempotent."""
        if self._driver is not None:
            await self._driver.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def prove(self) -> CatalogSnapshot:
        """The Catalog, proved to be the newest (L13, L29)."""
        await self.driver.prove()
        return self.current

    async def alter(self, changes: Sequence[Change]) -> CatalogSnapshot:
        """Apply all changes as one record, or none; return the Catalog after them, durable.

        Runs to its end even if the caller is cancelled: the next change must see what this one became.
        """
        return await asyncio.shield(self._spawn(self._alter(changes)))

    async def _alter(self, changes: Sequence[Change]) -> CatalogSnapshot:
        async with self._altering:
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
            effects = plan(self.current, changes, self.limits, stamp)
            if effects:
                await self._commit(effects)
            after = self.current
        if self.state.objects_above_k >= CHECKPOINT_OBJECTS and not self._checkpointing.locked():
            self._spawn(self._checkpoint_quietly())  # beside: the change stands, whatever becomes of this
        return after

    def _spawn(self, work: Coroutine[None, None, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _commit(self, effects: list[Effect]) -> None:
        record = {"revision": self.current.revision + 1, "effects": effects}
        (future,) = self.driver.append([record_entry(EntryKind.RECORD, record)], [None])
        await asyncio.shield(future)

    async def checkpoint(self) -> None:
        """Write the whole Catalog, so that replay and the Log stay short (L18, L19), to the end in any case."""
        await asyncio.shield(self._spawn(self._checkpoint()))

    async def _checkpoint(self) -> None:
        async with self._checkpointing:
            if self.state.objects_above_k == 0:
                return
            draft = CheckpointDraft(self.state.position, self.state.sections())
            await self.driver.checkpoint(draft)
            await self.driver.collect()

    async def _checkpoint_quietly(self) -> None:
        """The next change tries again; `closed` tells of the end of an ownership."""
        with contextlib.suppress(StorageError):
            await self._checkpoint()

    async def shutdown(self) -> None:
        """Checkpoint under the lock that changes take, for a clean stop."""
        async with self._altering:
            await self.checkpoint()
