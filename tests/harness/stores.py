"""Object stores for tests: one in memory, and a wrapper that breaks what a store can break.

`MemoryStore` keeps the contract of `storage.objects.ObjectStore` without I/O and can be copied and put
back, for searches over many orders of events. `FaultStore` stands between one process's code and a
store that others share: it delays, fails, loses answers, tears objects, lists stale and crashes, by
seeded chance (``rates``) or as told (``arm``), and counts what really fired: a run in which nothing
fired has tested nothing.
"""

from __future__ import annotations

import enum
import fnmatch
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from storage.errors import FsyncFailed, ObjectMissing, StoreFull, StoreUnavailable
from storage.objects import (
    Buffers,
    CreateOutcome,
    Listed,
    Listing,
    ObjectStore,
    check_folder,
    check_path,
    check_range,
    check_start,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

LISTING_MISSES_MAX: Final = 2


class MemoryStore:
    """The contract in a dictionary. ``objects`` may be read and changed; ``now_ms`` is the store's clock."""

    def __init__(self, objects: Mapping[str, bytes] | None = None, now_ms: int = 1_700_000_000_000) -> None:
        self.url = "memory://store"
        self.objects: dict[str, bytes] = dict(objects or {})
        self.now_ms = now_ms
        self._lock = threading.Lock()
        self._closed = False

    def snapshot(self) -> dict[str, bytes]:
        """All objects, for `restore`; cheap, because objects never change."""
        with self._lock:
            return dict(self.objects)

    def restore(self, snapshot: Mapping[str, bytes]) -> None:
        """Put the objects back as they were."""
        with self._lock:
            self.objects = dict(snapshot)

    def copy(self) -> MemoryStore:
        """An independent store with the same objects and clock."""
        return MemoryStore(self.snapshot(), self.now_ms)

    def create(self, path: str, data: Buffers) -> CreateOutcome:
        self._ensure_open()
        content = data if isinstance(data, bytes) else b"".join(data)
        check_path(path)
        with self._lock:
            if path in self.objects:
                return CreateOutcome.EXISTS
            self.objects[path] = content
            return CreateOutcome.CREATED

    def settle(self, path: str) -> None:
        self._ensure_open()
        check_path(path)

    def get(self, path: str) -> bytes:
        self._ensure_open()
        try:
            return self.objects[check_path(path)]
        except KeyError:
            raise ObjectMissing(f"{self.url}: no object {path}") from None

    def get_range(self, path: str, start: int, length: int) -> bytes:
        check_range(start, length)
        return self.get(path)[start : start + length]

    def exists(self, path: str) -> bool:
        self._ensure_open()
        return check_path(path) in self.objects

    def list(self, folder: str, start: str = "") -> Listing:
        check_start(start)
        return [entry for entry in self.list_all(folder) if "/" not in entry.name and entry.name >= start]

    def list_all(self, folder: str) -> Listing:
        self._ensure_open()
        prefix = f"{check_folder(folder)}/" if folder else ""
        return [Listed(p[len(prefix) :], len(b)) for p, b in sorted(self.snapshot().items()) if p.startswith(prefix)]

    def delete(self, path: str) -> None:
        self._ensure_open()
        with self._lock:
            self.objects.pop(check_path(path), None)

    def clock_ms(self) -> int:
        self._ensure_open()
        return self.now_ms

    def local_path(self, path: str) -> Path | None:
        check_path(path)
        return None

    def close(self) -> None:
        self._closed = True

    def _ensure_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"{self.url}: this store is closed")


class Crash(BaseException):
    """The process died at this step; nothing but the test may catch it."""


class Fault(enum.StrEnum):
    """What a store can do to a call."""

    DELAY = "delay"
    """The call takes longer."""
    UNAVAILABLE = "unavailable"
    """StoreUnavailable, certainly before any effect."""
    FULL = "full"
    """A create raises StoreFull, certainly before any effect."""
    CONFLICT = "conflict"
    """S3's 409 ConditionalRequestConflict: UNKNOWN, and nothing was created."""
    LOST_REQUEST = "lost_request"
    """A create is UNKNOWN and had no effect."""
    LOST_ANSWER = "lost_answer"
    """The effect stands; a create is UNKNOWN, another call raises StoreUnavailable."""
    LATE = "late"
    """A create is UNKNOWN; its effect comes later (`FaultStore.land_late`, or with some later call)."""
    TORN = "torn"
    """A prefix of the bytes stands; the create is UNKNOWN. No store of ours does this; a broken disk may (L3)."""
    STALE_LISTING = "stale_listing"
    """A listing misses its greatest names, as one from a cache would (L35)."""
    FSYNC = "fsync"
    """A create or settle raises FsyncFailed, with or without the effect; then everything is refused (L34)."""


_CREATE: Final = frozenset({"create"})
_LISTINGS: Final = frozenset({"list", "list_all"})
_WRITES: Final = frozenset({"create", "settle", "delete"})
_ALL: Final = _WRITES | _LISTINGS | {"get", "get_range", "exists", "clock_ms"}
APPLIES_TO: Final[dict[Fault, frozenset[str]]] = {
    Fault.DELAY: _ALL,
    Fault.UNAVAILABLE: _ALL,
    Fault.FULL: _CREATE,
    Fault.CONFLICT: _CREATE,
    Fault.LOST_REQUEST: _CREATE,
    Fault.LOST_ANSWER: _WRITES,
    Fault.LATE: _CREATE,
    Fault.TORN: _CREATE,
    Fault.STALE_LISTING: _LISTINGS,
    Fault.FSYNC: frozenset({"create", "settle"}),
}


@dataclass(slots=True)
class _Armed:
    fault: Fault
    call: str
    match: str
    times: int


class FaultStore:
    """One process's view of ``inner``, with faults.

    Every call is an I/O step before its effect, and every write another one after it. With
    ``crash_at=n`` the n-th step raises `Crash`, and so does every call after it: run once without it,
    read ``steps``, then run with each number up to that. ``trail`` names the steps. ``fired`` and
    ``calls`` count; a fault counts when it changed something.
    """

    def __init__(
        self,
        inner: ObjectStore,
        *,
        seed: int = 0,
        rates: Mapping[Fault, float] | None = None,
        crash_at: int | None = None,
        delay_seconds_max: float = 0.005,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = inner.url
        self.inner = inner
        self.rates = dict(rates or {})
        self.crash_at = crash_at
        self.steps = 0
        self.trail: list[str] = []
        self.fired: Counter[Fault] = Counter()
        self.calls: Counter[str] = Counter()
        self.late: list[tuple[str, bytes]] = []
        self._random = random.Random(seed)
        self._delay_seconds_max = delay_seconds_max
        self._sleep = sleep
        self._armed: list[_Armed] = []
        self._lock = threading.RLock()
        self._dead = False
        self._fsync_failed = False

    def arm(self, fault: Fault, call: str = "create", match: str = "*", times: int = 1) -> None:
        """Let the next ``times`` calls of this name whose path fits the pattern suffer this fault."""
        if call not in APPLIES_TO[fault]:
            raise ValueError(f"{fault} does not happen to {call}")
        with self._lock:
            self._armed.append(_Armed(fault, call, match, times))

    def land_late(self) -> list[CreateOutcome]:
        """Let the late creates take effect now, in the order they were sent."""
        with self._lock:
            landing, self.late = self.late, []
        return [self.inner.create(path, content) for path, content in landing]

    def create(self, path: str, data: Buffers) -> CreateOutcome:
        content = data if isinstance(data, bytes) else b"".join(data)
        fault = self._begin("create", check_path(path))
        outcome = self._create(fault, path, content)
        self._step(f"after create {path}")
        return outcome

    def settle(self, path: str) -> None:
        self._write("settle", path, lambda: self.inner.settle(path))

    def get(self, path: str) -> bytes:
        self._begin("get", path)
        return self.inner.get(path)

    def get_range(self, path: str, start: int, length: int) -> bytes:
        self._begin("get_range", path)
        return self.inner.get_range(path, start, length)

    def exists(self, path: str) -> bool:
        self._begin("exists", path)
        return self.inner.exists(path)

    def list(self, folder: str, start: str = "") -> Listing:
        fault = self._begin("list", folder)
        return self._perhaps_stale(fault, self.inner.list(folder, start))

    def list_all(self, folder: str) -> Listing:
        fault = self._begin("list_all", folder)
        return self._perhaps_stale(fault, self.inner.list_all(folder))

    def delete(self, path: str) -> None:
        self._write("delete", path, lambda: self.inner.delete(path))

    def clock_ms(self) -> int:
        self._begin("clock_ms", "")
        return self.inner.clock_ms()

    def local_path(self, path: str) -> Path | None:
        return self.inner.local_path(path)

    def close(self) -> None:
        """This process's end of the store; the shared store behind it stays open."""

    def _create(self, fault: Fault | None, path: str, content: bytes) -> CreateOutcome:
        match fault:
            case Fault.FULL:
                raise StoreFull(f"{self.url}: no room for {path} (injected)")
            case Fault.CONFLICT | Fault.LOST_REQUEST:
                return CreateOutcome.UNKNOWN
            case Fault.LATE:
                self.late.append((path, content))
                return CreateOutcome.UNKNOWN
            case Fault.TORN:
                self.inner.create(path, content[: self._random.randrange(len(content) or 1)])
                return CreateOutcome.UNKNOWN
            case Fault.LOST_ANSWER:
                self.inner.create(path, content)
                return CreateOutcome.UNKNOWN
            case Fault.FSYNC:
                if self._random.random() < 0.5:
                    self.inner.create(path, content)
                raise self._fail_fsync(path)
        return self.inner.create(path, content)

    def _write(self, call: str, path: str, effect: Callable[[], None]) -> None:
        fault = self._begin(call, path)
        effect()
        if fault is Fault.FSYNC:
            raise self._fail_fsync(path)
        if fault is Fault.LOST_ANSWER:
            raise StoreUnavailable(f"{self.url}: no answer for {path} (injected)")
        self._step(f"after {call} {path}")

    def _fail_fsync(self, path: str) -> FsyncFailed:
        self._fsync_failed = True
        return FsyncFailed(f"{self.url}: fsync of {path} failed (injected)")

    def _perhaps_stale(self, fault: Fault | None, listing: Listing) -> Listing:
        if fault is not Fault.STALE_LISTING or not listing:
            return listing
        self.fired[Fault.STALE_LISTING] += 1
        return listing[: -self._random.randint(1, LISTING_MISSES_MAX)]

    def _begin(self, call: str, path: str) -> Fault | None:
        """The step before the effect: count it, then draw what happens. Raises what needs no effect."""
        with self._lock:
            self._step(f"before {call} {path}")
            self.calls[call] += 1
            if self._fsync_failed:
                raise FsyncFailed(f"{self.url}: an earlier fsync failed (injected)")
            fault = self._draw(call, path)
            if fault is not None and fault is not Fault.STALE_LISTING:
                self.fired[fault] += 1
        if self.late and self.rates.get(Fault.LATE) and self._random.random() < 0.5:
            self.land_late()
        if fault is Fault.DELAY:
            self._sleep(self._random.uniform(0, self._delay_seconds_max))
        if fault is Fault.UNAVAILABLE:
            raise StoreUnavailable(f"{self.url}: {call} {path} is unavailable (injected)")
        return fault

    def _draw(self, call: str, path: str) -> Fault | None:
        for armed in self._armed:
            if armed.call == call and fnmatch.fnmatchcase(path, armed.match):
                armed.times -= 1
                if not armed.times:
                    self._armed.remove(armed)
                return armed.fault
        for fault, rate in self.rates.items():
            if call in APPLIES_TO[fault] and self._random.random() < rate:
                return fault
        return None

    def _step(self, name: str) -> None:
        with self._lock:
            if self._dead:
                raise Crash(f"dead before {name}")
            self.steps += 1
            self.trail.append(name)
            if self.steps == self.crash_at:
                self._dead = True
                raise Crash(f"step {self.steps}: {name}")
