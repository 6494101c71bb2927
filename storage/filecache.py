"""DataFiles of an object store kept whole on this machine's disk: the FileCache.

`engine.files` opens it for a store that is not a local disk, and the planner takes a `Lease` of it for each statement,
from its planning threads. DataFiles never change and their names are never used again (LOG L20), so what is here is
what the store had; what is not here, or was damaged, is read from the store. Blocking, thread safe.

A file is written under a temporary name and renamed, with its CRC32C in its name. What a former process left is read
through once before a statement may use it: there was no fsync, so a crash of the machine may have left anything.
"""

from __future__ import annotations

import dataclasses
import os
import re
import threading
import time
import uuid
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
from crc32c import crc32c

from storage.errors import CorruptObject, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from storage.objects import ObjectStore
    from storage.schema import DataFile

PIECE_BYTES: Final = 4 * 2**20
"""Of a file that is being fetched, in memory at once in each of the threads that fetch."""
THREADS_WAITED: Final = 8
"""Fetch what statements wait for."""
THREADS_BEHIND: Final = 2
"""Fetch what none waits for: it must not take the way to the store from the statements themselves."""
WAITED_BYTES_MAX: Final = 32 * 2**20
"""A statement that lacks at most so many bytes waits for them; one that lacks more reads the store meanwhile."""
WAIT_SECONDS_MAX: Final = 3.0
STATEMENT_SHARE: Final = 0.25
"""Of the limit. A statement that reads more brings nothing in: what others use would go for it.

Measured (`benchmarks.filecache`: 40 % of the limit is read again and again, every tenth statement scans 45 or 90 % of
it): the others find all of their files here; with half the limit 76 and 100 %, with the whole one 76 and 40 %."""
FILES_MAX: Final = 50_000
"""However small they are: each takes memory, and a moment at start."""
COMING_MAX: Final = 10_000
"""Files that wait to be fetched."""
DISK_FREE_SHARE: Final = 0.05
"""Of the disk, left free for spilled queries and for others."""
TOUCH_SECONDS: Final = 60.0
"""How exactly the order of use is kept for the next process."""
TEMPORARY: Final = "new-"
_NAME: Final = re.compile(r"(?P<path>[A-Za-z0-9_=.,-]+)\.(?P<crc>[0-9a-f]{8})\.parquet", re.ASCII)
_END: Final = b"PAR1"
"""What a Parquet file ends with."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class CacheCounters:
    """Files since the start of the process: found here or not when a statement wanted them (``hits``, ``misses``),
    ``fetched``, ``evicted`` for others, found ``damaged``, and ``refused`` as there was no room or no answer.

    ``files`` and ``bytes`` are what the cache holds now.
    """

    files: int = 0
    bytes: int = 0
    hits: int = 0
    misses: int = 0
    fetched: int = 0
    fetched_bytes: int = 0
    evicted: int = 0
    damaged: int = 0
    refused: int = 0


@dataclass(slots=True)
class _Entry:
    """A file that is here. Evicted only while ``pins`` is 0; used only when ``is_checked``."""

    name: str
    bytes: int
    crc: int
    modified_ns: int
    touched: float
    is_checked: bool
    pins: int = 0


class Lease:
    """The cached files of one statement: they stay until it is released. Without a cache it holds none."""

    def __init__(self, cache: FileCache | None = None) -> None:
        self.is_doubted = False
        self._cache = cache
        self._held: dict[str, _Entry] = {}

    def hold(self, files: Iterable[DataFile]) -> dict[str, str]:
        """Pin those of ``files`` that are here; names in the cache's folder by the paths in the store."""
        if self._cache is None:
            return {}
        return {path: entry.name for path, entry in self._cache.pin(files, self._held).items()}

    def keep(self, paths: Collection[str]) -> None:
        """Let all go that are not among ``paths``: while names are resolved more is held than a plan reads."""
        if self._cache is not None:
            self._cache.unpin({path: self._held.pop(path) for path in self._held.keys() - set(paths)})

    def bring(self, files: Collection[DataFile]) -> bool:
        """Have fetched what is missing of all files that the statement reads; whether some are here now, and held.

        Waits only if little is missing, and then at most `WAIT_SECONDS_MAX`. Call it once: it counts hits and misses.
        """
        cache = self._cache
        if cache is None:
            return False
        missing = [file for file in files if file.path not in self._held]
        cache.count(len(files) - len(missing), len(missing))
        if sum(file.bytes for file in files) > cache.bytes_max * STATEMENT_SHARE:
            missing = cache.unchecked(missing)
        is_waited = sum(file.bytes for file in missing) <= WAITED_BYTES_MAX
        coming = [future for file in missing if (future := cache.fetch(file, is_waited)) is not None]
        if coming and is_waited:
            wait(coming, WAIT_SECONDS_MAX)
        return bool(coming) and is_waited and bool(self.hold(missing))

    def lost(self) -> list[str]:
        """The paths of held files that are not on the disk any more as they were; the cache forgets them."""
        return [] if self._cache is None else self._cache.lost(self._held)

    def doubt(self) -> bool:
        """Have the held files read through before they are used again; whether there are any, as ``is_doubted``."""
        self.is_doubted = bool(self._held)
        for entry in self._held.values():
            entry.is_checked = False
        return self.is_doubted

    def release(self) -> None:
        """Let the files go. Idempotent."""
        if self._cache is not None:
            self._cache.unpin(self._held)


def _is_of_size(entry: _Entry, file: DataFile) -> bool:
    """Of the object that a slice is in its entry does not say the size."""
    return file.is_slice or entry.bytes == file.bytes


def _write(target: str, pieces: Iterable[bytes]) -> int:
    """A new file of these pieces; their CRC32C."""
    crc = 0
    with open(target, "xb", buffering=0) as output:
        for piece in pieces:
            if output.write(piece) != len(piece):
                raise OSError("a short write: the disk is full")
            crc = crc32c(piece, crc)
    return crc


class FileCache:
    """At most ``bytes_max`` of whole files in ``folder``, which is this object's alone; the least recently used go.

    Whatever goes wrong here, the statement reads the store: a full disk, a folder that cannot be written, damage.
    """

    def __init__(self, folder: Path, bytes_max: int, store: Callable[[], ObjectStore]) -> None:
        self.bytes_max = bytes_max
        self._folder = str(folder)
        self._store = store
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """By the files' paths in the store; the least recently used first."""
        self._coming: dict[str, Future[None]] = {}
        self._used_bytes = 0
        """Of the entries, and of what is being written."""
        self._counters = CacheCounters()
        self._waited = ThreadPoolExecutor(THREADS_WAITED, thread_name_prefix="fetch")
        self._behind = ThreadPoolExecutor(THREADS_BEHIND, thread_name_prefix="fetch-behind")
        self._is_open = self._adopt()

    @property
    def counters(self) -> CacheCounters:
        """Read from any thread."""
        with self._lock:
            self._counters.files = len(self._entries)
            self._counters.bytes = self._bytes_of(self._entries)
            return dataclasses.replace(self._counters)

    def close(self) -> None:
        """Fetch nothing more; what is being fetched ends when the store does. Idempotent."""
        with self._lock:
            self._is_open = False
        for threads in (self._waited, self._behind):
            threads.shutdown(wait=False, cancel_futures=True)

    # -- what leases do ----------------------------------------------------------------------------------

    def pin(self, files: Iterable[DataFile], held: dict[str, _Entry]) -> dict[str, _Entry]:
        """Those of ``files`` that are here whole, added to ``held`` with a pin each that was not in it."""
        found: dict[str, _Entry] = {}
        now = time.time()
        with self._lock:
            for file in files:
                entry = held.get(file.path)
                if entry is None:
                    entry = self._entries.get(file.path)
                    if entry is None or not entry.is_checked or not _is_of_size(entry, file):
                        continue
                    entry.pins += 1
                    held[file.path] = entry
                    self._entries.move_to_end(file.path)
                    self._touch(entry, now)
                found[file.path] = entry
        return found

    def unpin(self, held: dict[str, _Entry]) -> None:
        """Take the pins back, and empty ``held``."""
        with self._lock:
            for entry in held.values():
                entry.pins -= 1
            held.clear()

    def unchecked(self, files: Iterable[DataFile]) -> list[DataFile]:
        """Those of ``files`` that are here, but have to be read through first."""
        with self._lock:
            return [file for file in files if file.path in self._entries]

    def count(self, hits: int, misses: int) -> None:
        """Of one statement."""
        with self._lock:
            self._counters.hits += hits
            self._counters.misses += misses

    def fetch(self, file: DataFile, is_waited: bool) -> Future[None] | None:
        """Done when the file is here, or cannot be. One fetch for all who want it; None if it is not begun."""
        with self._lock:
            coming = self._coming.get(file.path)
            if coming is None and self._is_open and len(self._coming) < COMING_MAX:
                threads = self._waited if is_waited else self._behind
                coming = self._coming[file.path] = threads.submit(self._bring, file)
            return coming

    def lost(self, held: Mapping[str, _Entry]) -> list[str]:
        """Those of ``held`` whose file is gone or has another size: they are no entries any more."""
        lost = [path for path, entry in held.items() if self._size(entry) != entry.bytes]
        with self._lock:
            for path in lost:
                self._forget_damaged(path, held[path])
        return lost

    # -- in the threads that fetch -----------------------------------------------------------------------

    def _bring(self, file: DataFile) -> None:
        try:
            if not self._check(file):
                self._fetch(file)
        except (OSError, StorageError) as error:
            log.debug("a file is not cached", file=file.path, reason=str(error))
            with self._lock:
                self._counters.refused += 1
        finally:
            with self._lock:
                self._coming.pop(file.path, None)

    def _check(self, file: DataFile) -> bool:
        """Whether the file is here as it was written; what is not goes."""
        with self._lock:
            entry = self._entries.get(file.path)
            if entry is None:
                return False
            entry.pins += 1
        is_whole = _is_of_size(entry, file) and self._crc(entry) == entry.crc
        with self._lock:
            entry.pins -= 1
            entry.is_checked = is_whole
            if not is_whole:
                self._forget_damaged(file.path, entry)
        return is_whole

    def _crc(self, entry: _Entry) -> int | None:
        """Of what is on the disk; None if it cannot be read."""
        crc = 0
        try:
            with open(f"{self._folder}/{entry.name}", "rb", buffering=0) as file:
                while piece := file.read(PIECE_BYTES):
                    crc = crc32c(piece, crc)
        except OSError:
            return None
        return crc

    def _fetch(self, file: DataFile) -> None:
        """Raises OSError, StorageError."""
        whole = self._whole(file) if file.is_slice else None
        size = file.bytes if whole is None else len(whole)
        if not self._take_room(size):
            raise OSError("no room")
        temporary = f"{self._folder}/{TEMPORARY}{uuid.uuid4().hex}"
        try:
            crc = _write(temporary, self._pieces(file) if whole is None else [whole])
            name = f"{file.path.replace('/', ',')}.{crc:08x}.parquet"
            modified_ns = os.stat(temporary).st_mtime_ns
            os.rename(temporary, f"{self._folder}/{name}")
        except BaseException:
            _unlink(temporary)
            with self._lock:
                self._used_bytes -= size
            raise
        with self._lock:
            self._entries[file.path] = _Entry(name, size, crc, modified_ns, time.time(), is_checked=True)
            self._counters.fetched += 1
            self._counters.fetched_bytes += size

    def _whole(self, file: DataFile) -> bytes:
        """A bundle, which is never large: what the entry of a slice says is its share of the object's bytes."""
        data = self._store().get(file.path)
        if not data.endswith(_END):
            raise CorruptObject(f"{file.path} is no DataFile")
        return data

    def _pieces(self, file: DataFile) -> Iterator[bytes]:
        """The object's bytes. What is no DataFile of its size is refused."""
        store = self._store()
        for at in range(0, file.bytes, PIECE_BYTES):
            wanted = min(PIECE_BYTES, file.bytes - at)
            is_last = at + wanted == file.bytes
            piece = store.get_range(file.path, at, wanted + is_last)  # one more: there must be none
            if len(piece) != wanted or (is_last and not piece.endswith(_END)):
                raise CorruptObject(f"{file.path} is no DataFile of {file.bytes} bytes")
            yield piece

    # -- under the lock ----------------------------------------------------------------------------------

    def _take_room(self, wanted: int) -> bool:
        """Make room under the limit and count it as used; False if files in use or the disk leave none."""
        with self._lock:
            excess = self._used_bytes + wanted - self.bytes_max
            going: list[str] = []
            for path, entry in self._entries.items():
                if excess <= 0 and len(self._entries) - len(going) < FILES_MAX:
                    break
                if not entry.pins:
                    going.append(path)
                    excess -= entry.bytes
            if not self._is_open or excess > 0 or self._is_disk_full(wanted - self._bytes_of(going)):
                return False
            for path in going:
                self._drop(path)
            self._counters.evicted += len(going)
            self._used_bytes += wanted
            return True

    def _bytes_of(self, paths: Iterable[str]) -> int:
        return sum(self._entries[path].bytes for path in paths)

    def _is_disk_full(self, more: int) -> bool:
        """Whether ``more`` bytes would leave the others too little."""
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize - more < DISK_FREE_SHARE * disk.f_blocks * disk.f_frsize

    def _forget_damaged(self, path: str, entry: _Entry) -> None:
        """Others may read it still: unlinked, it stays for those who have it open."""
        if self._entries.get(path) is entry:
            log.warning("a cached file was damaged", file=entry.name)
            self._counters.damaged += 1
            self._drop(path)

    def _drop(self, path: str) -> None:
        entry = self._entries.pop(path)
        self._used_bytes -= entry.bytes
        _unlink(f"{self._folder}/{entry.name}")

    def _touch(self, entry: _Entry, now: float) -> None:
        """For the order in the next process. The time of modification stays: DataFusion tells files apart by it."""
        if now - entry.touched < TOUCH_SECONDS:
            return
        entry.touched = now
        try:
            os.utime(f"{self._folder}/{entry.name}", ns=(int(now * 1e9), entry.modified_ns))
        except OSError:
            return  # it is gone: `lost` will say so

    # -- the disk ----------------------------------------------------------------------------------------

    def _adopt(self) -> bool:
        """Take over what a former process left, sweep the rest; whether the folder can be used."""
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            found = sorted(self._found(), key=lambda item: item[1].touched)
        except OSError as error:
            log.warning("files of the store are not cached", folder=self._folder, reason=str(error))
            return False
        for path, entry in found:
            if path in self._entries:
                self._drop(path)
            self._entries[path] = entry
            self._used_bytes += entry.bytes
        while self._used_bytes > self.bytes_max or len(self._entries) > FILES_MAX:
            self._drop(next(iter(self._entries)))
        return True

    def _found(self) -> Iterable[tuple[str, _Entry]]:
        """Path in the store and entry of each file that was put here whole; whatever else there is goes."""
        with os.scandir(self._folder) as listed:
            for item in listed:
                named = _NAME.fullmatch(item.name)
                if named is None or not item.is_file(follow_symlinks=False):
                    _unlink(item.path)
                    continue
                stat = item.stat(follow_symlinks=False)
                crc, touched = int(named["crc"], 16), stat.st_atime
                path = named["path"].replace(",", "/")
                yield path, _Entry(item.name, stat.st_size, crc, stat.st_mtime_ns, touched, is_checked=False)

    def _size(self, entry: _Entry) -> int | None:
        try:
            return os.stat(f"{self._folder}/{entry.name}").st_size
        except OSError:
            return None


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError as error:
        log.debug("a file cannot be removed", path=path, reason=str(error))
