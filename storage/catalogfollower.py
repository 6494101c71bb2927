"""Follows the Catalog by listing its Log, on every node that does not own it (LOG L28, L29, L30).

Enter it, or `start` and `close` it. A door or a query asks `refresh`, who was told of a Revision `wait_revision`;
gossip calls `hint`. In between it lists every few seconds. One listing when nothing is new, and only new objects are
read otherwise.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from storage.catalogstate import CatalogState
from storage.errors import CatalogBehind, StorageError, StoreUnavailable
from storage.logdriver import pause_seconds
from storage.logreader import LogReader, Resume
from storage.readdriver import ObjectCache, ReadDriver
from storage.store import CATALOG_LOG

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Executor

    from storage.catalogstate import CatalogSnapshot
    from storage.objects import ObjectStore
    from storage.schema import Table

_T = TypeVar("_T")

POLL_SECONDS: Final = 3.0
"""How often the Catalog is listed when nobody asks and nothing is heard of."""
CACHE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Objects kept for the case that reading has to start over."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What the last read came to."""

    state: CatalogState
    base: int = 0
    last: int = 0


class CatalogFollower:
    """The Catalog as this node knows it: `current` never goes back. ``error`` is why the last listing failed, or None;
    ``on_error`` is called with it when nobody waits for that listing."""

    def __init__(
        self,
        store: ObjectStore,
        store_id: bytes,
        executor: Executor,
        *,
        poll_seconds: float = POLL_SECONDS,
        on_error: Callable[[StorageError], None] | None = None,
    ) -> None:
        self.error: StorageError | None = None
        self._store = store
        self._store_id = store_id
        self._executor = executor
        self._poll_seconds = poll_seconds
        self._on_error = on_error
        self._cache = ObjectCache(CACHE_BYTES_MAX)
        self._read = _Read(CatalogState(follower=True))
        self._running: asyncio.Task[CatalogSnapshot] | None = None
        self._next: asyncio.Task[CatalogSnapshot] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._hinted = 0
        self._closed = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Read the Catalog once and go on following it. Raises what `refresh` does, and leaves nothing running then."""
        try:
            await self.refresh()
        except BaseException:
            await self.close()
            raise
        self._spawn(self._poll())

    async def close(self) -> None:
        """Stop following. Idempotent; whoever waits is told."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what is known -----------------------------------------------------------------------------------

    @property
    def current(self) -> CatalogSnapshot:
        """The newest Revision known here."""
        return self._read.state.snapshot

    @property
    def position(self) -> int:
        """The last object of the Catalog's Log known here: `born` of a proposal (L7)."""
        return self._read.last

    def table_by_id(self, table_id: int) -> Table | None:
        """A table at its newest schema known here, also a deleted one: `tables` of shards and store reads."""
        return self.current.tables_by_id.get(table_id)

    # -- news --------------------------------------------------------------------------------------------

    async def refresh(self) -> CatalogSnapshot:
        """The Catalog as one listing shows it that began after the call (L29).

        Calls share the next listing, never one in transit. Raises StoreUnavailable or SnapshotTooOld, which are
        retriable, and LogDamaged; `current` stays as it was.
        """
        if self._closed:
            raise self._gone()
        if self._next is None:
            self._next = self._spawn(self._in_turn(self._running))
        listing = self._next
        await asyncio.wait({listing})  # which never cancels what it waits for
        if listing.cancelled():  # closed before it had a turn
            raise self._gone()
        return listing.result()

    async def wait_revision(self, revision: int, timeout: float) -> CatalogSnapshot:
        """The Catalog at ``revision`` or newer (L30). Raises CatalogBehind when ``timeout`` seconds did not suffice."""
        attempt = 1
        try:
            async with asyncio.timeout(timeout):
                while self.current.revision < revision:
                    if attempt > 1:
                        await asyncio.sleep(pause_seconds(attempt))
                    await self._refresh_again()
                    attempt += 1
        except TimeoutError:
            raise CatalogBehind(
                f"the Catalog is at Revision {self.current.revision} here, {revision} did not show in {timeout:g} s"
            ) from self.error
        return self.current

    def hint(self, revision: int) -> None:
        """Somebody says that there is this Revision: look soon, once for each that is claimed."""
        if revision > max(self._hinted, self.current.revision) and not self._closed:
            self._hinted = revision
            self._spawn(self._look())

    async def _refresh_again(self) -> None:
        """Refresh; what may be better in a moment is no reason to give up."""
        try:
            await self.refresh()
        except StorageError as error:
            if not error.retriable or self._closed:
                raise

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            await self._look()

    async def _look(self) -> None:
        """For nobody in particular: a failure is reported, and the next time may be better."""
        try:
            await self.refresh()
        except StorageError as error:
            if self._on_error is not None and not self._closed:
                self._on_error(error)

    async def _in_turn(self, before: asyncio.Task[CatalogSnapshot] | None) -> CatalogSnapshot:
        """Wait for the listing in transit, then list for all who have called meanwhile."""
        try:
            if before is not None:
                await asyncio.wait([before])
            self._running, self._next = self._next, None  # from here on this one is in transit
            await self._list()
        except StorageError as error:
            self.error = error
            raise
        except asyncio.CancelledError:
            if self._closed:
                raise self._gone() from None
            raise
        self.error = None
        return self.current

    async def _list(self) -> None:
        """L28: news is what a listing shows above the last object known, never what a probe of the next one says."""
        known = self._read
        driver = ReadDriver(self._store, CATALOG_LOG, self._executor, self._cache)
        listed = await driver.list(known.last)
        if listed and listed[-1] == known.last:
            return  # were anything above it collected, the Checkpoint that made it garbage would stand there
        resume = Resume(known.base, known.last, known.state.copy) if known.last else None
        new_state = functools.partial(CatalogState, follower=True)
        reader = LogReader(self._store_id, CATALOG_LOG, new_state, resume)
        await driver.run(reader, listed)
        assert isinstance(reader.state, CatalogState)
        if reader.state.snapshot.revision >= self.current.revision:
            self._read = _Read(reader.state, reader.base, reader.last)

    def _gone(self) -> StorageError:
        return StoreUnavailable("the Catalog is not followed here any more: try again elsewhere")

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()  # callers have it, if they have not gone away
        if error is not None and not isinstance(error, StorageError):
            handed_on = {"message": "following the Catalog failed", "exception": error, "task": task}
            asyncio.get_running_loop().call_exception_handler(handed_on)
