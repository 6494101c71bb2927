"""Drives a `LogReader` on an event loop: reads of a Log by a node that does not own it (LOG L10, L15, L28).

`storage.storereader` (shards) and `storage.catalogfollower` (the Catalog) run one `ReadDriver` for each snapshot.
Objects are read ahead, a bounded number and a bounded size at once, and kept in an `ObjectCache` that may be shared.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from storage.errors import ObjectMissing, StoreUnavailable
from storage.logdriver import pause_seconds
from storage.logeffects import ListObjects, ReadObject, ReadPart
from storage.logreader import ReadPhase
from storage.store import is_sequence, log_folder, object_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from storage.logreader import LogReader
    from storage.objects import ObjectStore

READS_MAX: Final = 8
"""Objects of one snapshot that are asked for at once."""
READ_AHEAD_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of which at most so many bytes are ahead of the one that is waited for."""
STORE_TRIES_MAX: Final = 6
"""Tries of one listing or read; then the snapshot fails with a retryable error."""
INLINE_BYTES_MAX: Final = 64 * 1024
"""An object up to this size is decoded on the event loop: cheaper than a thread."""


class ObjectCache:
    """Objects by path, the least recently used let go over ``bytes_max``. Used on one event loop."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes = 0
        self._bytes_max = bytes_max
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def get(self, path: str, size: int | None) -> bytes | None:
        """An object that a listing has just shown with this size (None: that needs no listing, as a part)."""
        data = self._kept.get(path)
        if data is None or (size is not None and len(data) != size):
            return None
        self._kept.move_to_end(path)
        return data

    def put(self, path: str, data: bytes) -> None:
        """Keep an object; objects never change (L1)."""
        self.bytes += len(data) - len(self._kept.pop(path, b""))
        self._kept[path] = data
        while self.bytes > self._bytes_max:
            self.bytes -= len(self._kept.popitem(last=False)[1])


class ReadDriver:
    """One snapshot of one Log: `list` and `run`."""

    def __init__(self, store: ObjectStore, log_id: int, executor: Executor, cache: ObjectCache) -> None:
        self._store = store
        self._folder = log_folder(log_id)
        self._executor = executor
        self._cache = cache
        self._sizes: dict[int, int] = {}
        self._ahead: dict[int, asyncio.Task[bytes | None]] = {}
        self._listed: Sequence[int] | None = None

    async def list(self, start: int = 0) -> Sequence[int]:
        """All sequences of the Log from ``start`` on, as a listing that begins now shows them."""
        first = object_name(start) if start else ""
        found = await self._retried(self._store.list, self._folder, first)
        sequences = {int(entry.name): entry.size for entry in found if is_sequence(entry.name)}
        self._sizes.update(sequences)
        return list(sequences)

    async def run(self, reader: LogReader, listed: Sequence[int] | None = None) -> None:
        """Perform what ``reader`` asks for until it is done; ``listed`` is its first listing, if it was made already.

        Raises what it failed with: LogDamaged, or SnapshotTooOld when owners were faster too often; StoreUnavailable
        when the store does not answer; and what its state refuses.
        """
        self._listed = listed
        try:
            while reader.phase not in (ReadPhase.DONE, ReadPhase.FAILED):
                effects = reader.take()
                await self._read_parts(reader, [e.path for e in effects if isinstance(e, ReadPart)])
                for effect in effects:
                    if isinstance(effect, ListObjects):
                        await self._list_for(reader)
                    elif isinstance(effect, ReadObject):
                        data = await self._object(reader, effect.sequence)
                        await self._give(functools.partial(reader.read, effect.sequence), data)
        finally:
            self._let_go()
        if reader.error is not None:
            raise reader.error

    async def _list_for(self, reader: LogReader) -> None:
        given, self._listed = self._listed, None
        if given is not None:
            reader.listed(given)
            return
        if reader.phase is ReadPhase.LISTING and reader.tries > 1:  # an owner is at work: let it finish
            self._let_go()
            await asyncio.sleep(pause_seconds(reader.tries))
        start = reader.last if reader.phase is ReadPhase.RELISTING else reader.list_from
        reader.listed(await self.list(start))

    async def _object(self, reader: LogReader, sequence: int) -> bytes | None:
        """The bytes of an object, read ahead if it is one of many in a row."""
        if reader.phase is ReadPhase.READING:
            self._read_ahead(sequence, reader.last)
        task = self._ahead.pop(sequence, None)
        if task is not None:
            return await task
        return await self._fetch(f"{self._folder}/{object_name(sequence)}", self._sizes.get(sequence))

    def _read_ahead(self, sequence: int, last: int) -> None:
        ahead = 0
        for following in range(sequence, min(last + 1, sequence + READS_MAX)):
            size = self._sizes.get(following, 0)
            ahead += size
            if following > sequence and ahead > READ_AHEAD_BYTES_MAX:
                return
            if following not in self._ahead:
                path = f"{self._folder}/{object_name(following)}"
                self._ahead[following] = asyncio.create_task(self._fetch(path, self._sizes.get(following)))

    async def _read_parts(self, reader: LogReader, paths: Sequence[str]) -> None:
        for start in range(0, len(paths), READS_MAX):
            some = paths[start : start + READS_MAX]
            found = await asyncio.gather(*(self._fetch(path, None) for path in some))
            for path, data in zip(some, found, strict=True):
                await self._give(functools.partial(reader.part_read, path), data)

    async def _give(self, take: Callable[[bytes | None], None], data: bytes | None) -> None:
        if data is None or len(data) <= INLINE_BYTES_MAX:
            take(data)
        else:
            await asyncio.get_running_loop().run_in_executor(self._executor, take, data)

    async def _fetch(self, path: str, size: int | None) -> bytes | None:
        known = self._cache.get(path, size)
        if known is not None:
            return known
        try:
            data: bytes = await self._retried(self._store.get, path)
        except ObjectMissing:
            return None
        self._cache.put(path, data)
        return data

    async def _retried(self, function: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        for attempt in range(2, STORE_TRIES_MAX + 1):
            try:
                return await loop.run_in_executor(self._executor, function, *arguments)
            except StoreUnavailable as error:
                if not error.retriable:
                    raise
                await asyncio.sleep(pause_seconds(attempt))
        return await loop.run_in_executor(self._executor, function, *arguments)

    def _let_go(self) -> None:
        """Of what was read ahead for nothing."""
        for task in self._ahead.values():
            task.cancel()
            task.add_done_callback(lambda t: t.cancelled() or t.exception())
        self._ahead.clear()
