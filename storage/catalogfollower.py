"""Follows the Catalog from the store, for every node that does not own it (LOG L28, L29).

It looks for news by listing: probing the next sequence is fooled for ever once that object has been collected. A look
that began after a caller asked is shared by all who asked before it began. Driven by `nodes.member`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Final, Self, TypeVar

from storage.catalogstate import CatalogState
from storage.errors import ObjectMissing, StorageError, StoreUnavailable
from storage.frames import ObjectKind
from storage.logeffects import ListObjects, ReadObject, ReadPart
from storage.logreader import LogReader, ReadPhase
from storage.logstate import decode_own
from storage.store import CATALOG_LOG, is_sequence, log_folder, object_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from storage.catalogstate import CatalogSnapshot
    from storage.objects import ObjectStore
    from storage.schema import Table

_T = TypeVar("_T")

POLL_SECONDS: Final = 5.0
"""A look without a hint, in case hints are lost."""
TRIES_MAX: Final = 5
RETRY_SECONDS: Final = 0.05
STEP_OBJECTS_MAX: Final = 256
"""More news than this is read as a whole, from the newest Checkpoint."""


class CatalogFollower:
    """The Catalog as followed here. Enter it to follow in the background; `refresh` proves it current."""

    def __init__(self, store: ObjectStore, store_id: bytes, executor: Executor) -> None:
        self._store = store
        self._store_id = store_id
        self._executor = executor
        self._state = CatalogState()
        self._last = 0
        self._looking: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._hinted = asyncio.Event()
        self._hint = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        with contextlib.suppress(StorageError):
            await self.refresh()
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in (self._task, self._looking, self._next):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    @property
    def current(self) -> CatalogSnapshot:
        """The newest Revision known here."""
        return self._state.snapshot

    def table_by_id(self, table_id: int) -> Table | None:
        """A table at its newest schema, also a deleted one."""
        return self.current.tables_by_id.get(table_id)

    def hint(self, revision: int) -> None:
        """Somebody says that there is a newer one: look soon."""
        if revision > max(self._hint, self.current.revision):
            self._hint = revision
            self._hinted.set()

    async def refresh(self) -> CatalogSnapshot:
        """The Catalog, as a listing that began after this call shows it (L29). Raises a StorageError."""
        if self._next is None:
            self._next = asyncio.create_task(self._look_after(self._looking))
        await asyncio.shield(self._next)
        return self.current

    async def wait_revision(self, revision: int, seconds: float) -> CatalogSnapshot:
        """The Catalog at ``revision`` or newer. Raises StoreUnavailable when that takes longer."""
        await self.at_least(revision, seconds)
        return self.current

    async def at_least(self, revision: int, seconds: float) -> None:
        """Return when the Catalog here is at ``revision`` or newer."""
        if self.current.revision >= revision:
            return
        try:
            async with asyncio.timeout(seconds):
                await self.refresh()
                while self.current.revision < revision:
                    await asyncio.sleep(RETRY_SECONDS)
                    await self.refresh()
        except TimeoutError:
            raise StoreUnavailable(
                f"the Catalog's Revision {revision} cannot be seen here yet ({self.current.revision}): try again"
            ) from None

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS * random.uniform(0.8, 1.2)):
                    await self._hinted.wait()
            self._hinted.clear()
            with contextlib.suppress(StorageError):
                await self.refresh()

    # -- one look ----------------------------------------------------------------------------------------

    async def _look_after(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        self._looking, self._next = self._next, None
        await self._look()

    async def _look(self) -> None:
        for attempt in range(1, TRIES_MAX + 1):
            try:
                return await self._look_once()
            except StorageError as error:
                if attempt == TRIES_MAX or not error.retriable:
                    raise
            await asyncio.sleep(RETRY_SECONDS * 2**attempt)
        return None

    async def _look_once(self) -> None:
        names = await self._call(self._store.list, log_folder(CATALOG_LOG))
        sequences = sorted(int(name.name) for name in names if is_sequence(name.name))
        last = sequences[-1] if sequences else 0
        if last <= self._last:
            return
        news = list(range(self._last + 1, last + 1))
        if self._last == 0 or len(news) > STEP_OBJECTS_MAX or not set(news) <= set(sequences):
            await self._read_all()
        else:
            await self._read_news(news)

    async def _read_news(self, sequences: list[int]) -> None:
        for sequence in sequences:
            data = await self._get(f"{log_folder(CATALOG_LOG)}/{object_name(sequence)}")
            if data is None:  # collected meanwhile
                await self._read_all()
                return
            obj = decode_own(self._store_id, CATALOG_LOG, sequence, data)
            if obj.header.kind is ObjectKind.DATA:
                self._state.apply(obj)
            self._last = sequence

    async def _read_all(self) -> None:
        """A full snapshot (L10)."""
        reader = LogReader(self._store_id, CATALOG_LOG, CatalogState)
        while reader.phase not in (ReadPhase.DONE, ReadPhase.FAILED):
            for effect in reader.take():
                if isinstance(effect, ListObjects):
                    names = await self._call(self._store.list, log_folder(CATALOG_LOG))
                    reader.listed(sorted(int(name.name) for name in names if is_sequence(name.name)))
                elif isinstance(effect, ReadObject):
                    path = f"{log_folder(CATALOG_LOG)}/{object_name(effect.sequence)}"
                    reader.read(effect.sequence, await self._get(path))
                elif isinstance(effect, ReadPart):
                    reader.part_read(effect.path, await self._get(effect.path))
        if reader.error is not None:
            raise reader.error
        assert isinstance(reader.state, CatalogState)
        self._state, self._last = reader.state, reader.last

    async def _get(self, path: str) -> bytes | None:
        try:
            return await self._call(self._store.get, path)
        except ObjectMissing:
            return None

    async def _call(self, function: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
