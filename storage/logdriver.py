"""Drives a `LogCore` on an event loop: performs its effects against an object store, in worker threads.

The only place where the Log meets time: retries of reads and listings with a growing, jittered pause, and the
pause before a create is sent again. One driver serves one ownership of one Log; `storage.shard` and
`storage.catalog` own drivers.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from storage.errors import (
    CorruptObject,
    Fenced,
    FsyncFailed,
    ObjectMissing,
    OutcomeUnknown,
    ShardClosed,
    StorageError,
    StoreUnavailable,
    UnsupportedFormat,
)
from storage.frames import decode_header
from storage.log import LogCore, Phase
from storage.logeffects import (
    CheckNext,
    CheckpointStood,
    Closed,
    Collected,
    CreateObject,
    DeleteObject,
    Failed,
    ListObjects,
    Opened,
    Outcome,
    Proved,
    ReadObject,
    ReadPart,
    ReadsFailed,
    ReplayPaused,
    SettleObject,
    Stood,
    Ticket,
)
from storage.objects import CreateOutcome
from storage.store import is_sequence, log_folder, object_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from concurrent.futures import Executor

    from storage.frames import Entry, Header
    from storage.log import Identity, LogState
    from storage.logeffects import CheckpointDraft, Effect
    from storage.objects import ObjectStore

RETRY_FIRST_SECONDS: Final = 0.02
RETRY_PAUSE_SECONDS_MAX: Final = 2.0
OPEN_TRIES_MAX: Final = 8
"""Tries of an open's create that the store refuses, before the node gives up: about four seconds."""
SUCCESSOR_SECONDS_MAX: Final = 2.0
"""How long a fenced owner looks for whom it lost to, before it says that it has ended (L12)."""
CHECK_TRIES_MAX: Final = 6
"""Tries of the check behind a read; then the read fails with a retryable error (L13)."""

_OUTCOMES: Final = {
    CreateOutcome.CREATED: Outcome.CREATED,
    CreateOutcome.EXISTS: Outcome.EXISTS,
    CreateOutcome.UNKNOWN: Outcome.UNKNOWN,
}


def pause_seconds(attempt: int) -> float:
    """The pause before try ``attempt`` (2 and up): doubles, bounded, jittered so that rivals do not march in step."""
    longest: float = min(RETRY_PAUSE_SECONDS_MAX, RETRY_FIRST_SECONDS * 2 ** min(attempt, 10))
    return longest * random.uniform(0.5, 1.0)


def new_nonce() -> bytes:
    return uuid.uuid4().bytes


@dataclass(frozen=True, slots=True)
class Position:
    """Where an append stands."""

    sequence: int
    entry: Entry


class LogDriver:
    """One ownership of one Log. `open` takes it over; `closed` is done when it has ended, with the reason.

    ``successor`` is then the header of the open object that fenced us, if it could be read: the Placement and node
    in it are news (L12). ``catch_up`` is awaited after our open object stands and before anything is replayed: what
    the Log holds by then is of a Revision that a listing of the Catalog shows from then on (L30).
    """

    def __init__(
        self,
        store: ObjectStore,
        identity: Identity,
        state: LogState,
        executor: Executor,
        on_fatal: Callable[[BaseException], None],
        *,
        check_inline: bool = False,
        on_replay_full: Callable[[], Awaitable[None]] | None = None,
        min_interval_seconds: float = 0.0,
        catch_up: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self.core = LogCore(identity, state, new_nonce)
        self._store = store
        self._folder = log_folder(identity.log_id)
        self._executor = executor
        self._on_fatal = on_fatal
        self._check_inline = check_inline
        self._on_replay_full = on_replay_full
        self._min_interval_seconds = min_interval_seconds
        self._catch_up = catch_up
        self.successor: Header | None = None
        self._error: StorageError | None = None
        self._sent_at = -min_interval_seconds
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[StorageError] = self._loop.create_future()
        self._opened: asyncio.Future[int] = self._loop.create_future()
        self._tickets: dict[int, asyncio.Future[Position]] = {}
        self._reads: dict[int, asyncio.Future[None]] = {}
        self._checkpoint: asyncio.Future[int] | None = None
        self._collection: asyncio.Future[int] | None = None
        self._numbers = 0
        self._tasks: set[asyncio.Task[None]] = set()

    # -- what callers do ---------------------------------------------------------------------------------

    async def open(self, skips: frozenset[int] = frozenset(), placement: tuple[int, int] = (0, 0)) -> int:
        """Take the Log over and replay it; return the epoch. Raises LogDamaged, Fenced, StoreFull."""
        self.core.start(_now_ms(), skips, placement)
        self._pump()
        return await asyncio.shield(self._opened)

    def append(self, entries: Sequence[Entry], payloads: Sequence[object]) -> list[asyncio.Future[Position]]:
        """Queue entries for the next group commit; each future is done when its entry is durable (L4)."""
        self.check_owner()
        futures: list[asyncio.Future[Position]] = []
        tickets = []
        self._numbers += 1
        request = self._numbers
        for entry, payload in zip(entries, payloads, strict=True):
            self._numbers += 1
            future: asyncio.Future[Position] = self._loop.create_future()
            self._tickets[self._numbers] = future
            tickets.append(Ticket(self._numbers, entry, payload, request))
            futures.append(future)
        self.core.append(tickets, _now_ms())
        self._pump()
        return futures

    async def prove(self) -> None:
        """Return when the state is proved to be the newest (L13)."""
        self.check_owner()
        self._numbers += 1
        future: asyncio.Future[None] = self._loop.create_future()
        self._reads[self._numbers] = future
        self.core.prove(self._numbers)
        self._pump()
        await future

    async def checkpoint(self, draft: CheckpointDraft) -> int:
        """Create a Checkpoint; return its sequence when it stands (L18)."""
        if self.core.phase not in (Phase.OWNER, Phase.PAUSED):
            raise self._refusal()
        assert self._checkpoint is None, "one Checkpoint at a time"
        self._checkpoint = self._loop.create_future()
        try:
            self.core.checkpoint(draft, _now_ms())
            self._pump()
            return await self._checkpoint
        finally:
            self._checkpoint = None

    async def collect(self) -> int:
        """Delete what the newest Checkpoint made garbage (L19); return how many objects went."""
        if self._collection is not None or not self.core.is_owner:
            return 0
        self._collection = self._loop.create_future()
        try:
            self.core.collect()
            self._pump()
            return await self._collection
        finally:
            self._collection = None

    async def close(self) -> None:
        """Let the Log go. Idempotent; whatever is in flight may still land."""
        self.core.close()
        self._pump()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._error is not None:
            self._end(self._error)

    def check_owner(self) -> None:
        """Raise why nothing is taken here, if this is no owner: the error that ended it, or ShardClosed."""
        if not self.core.is_owner:
            raise self._refusal()

    def _refusal(self) -> StorageError:
        if self._error is not None:
            return self._error
        return ShardClosed(f"log {self.core.identity.log_id} is not open here ({self.core.phase.value}): try again")

    # -- effects -----------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Perform everything that the core asks for now."""
        while effects := self.core.take():
            for effect in effects:
                self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        notice = self._NOTICES.get(type(effect))
        if notice is not None:
            notice(self, effect)
        elif isinstance(effect, CheckNext) and self._check_inline:
            self._check_now(effect)
        else:
            task = self._loop.create_task(self._io(effect))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _io(self, effect: Effect) -> None:
        try:
            if isinstance(effect, CreateObject):
                await self._create(effect)
            elif isinstance(effect, ListObjects):
                await self._list()
            elif isinstance(effect, ReadObject):
                self.core.read(effect.sequence, await self._read(self._path(effect.sequence)))
            elif isinstance(effect, ReadPart):
                self.core.part_read(effect.path, await self._read(effect.path))
            elif isinstance(effect, SettleObject):
                await self._retried(self._store.settle, self._path(effect.sequence))
                self.core.settled(effect.sequence)
            elif isinstance(effect, CheckNext):
                await self._check(effect)
            elif isinstance(effect, DeleteObject):
                await self._delete(effect)
            self._pump()
        except Exception as error:  # noqa: BLE001 - L34 (fsync failed), or a defect: no answer would ever come
            self._give_up(error)

    async def _list(self) -> None:
        prepared = self._catch_up is None or self.core.phase is not Phase.VERIFYING
        names = await self._retried(self._store.list, self._folder)
        if not prepared and not await self._caught_up():
            return
        self.core.listed([int(n.name) for n in names if is_sequence(n.name)])

    async def _caught_up(self) -> bool:
        """L30: an owner's Catalog is at least at the highest Revision in its Log: what is there is there by now."""
        assert self._catch_up is not None
        try:
            await self._catch_up()
        except StorageError as error:
            _fail(self._opened, error)
            self.core.close()
            return False
        return True

    def _give_up(self, error: Exception) -> None:
        """The process ends; who waits is told now, and that what was sent may stand (L6)."""
        self._on_fatal(error)
        _fail(self._opened, error)
        self.core.close()
        self._pump()
        unknown = OutcomeUnknown(f"log {self.core.identity.log_id}: its owner failed ({error}); a write may stand")
        waiting: list[asyncio.Future[Any]] = [*self._tickets.values(), *self._reads.values()]
        for future in waiting:  # the core knows them no more: a defect came between
            _fail(future, unknown)

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await self._loop.run_in_executor(self._executor, functools.partial(function, *arguments))

    async def _retried(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Reads and listings change nothing: they are tried until the store answers."""
        attempt = 1
        while True:
            try:
                return await self._run(function, *arguments)
            except StoreUnavailable:
                attempt += 1
                await asyncio.sleep(pause_seconds(attempt))

    async def _read(self, path: str) -> bytes | None:
        try:
            data: bytes = await self._retried(self._store.get, path)
        except ObjectMissing:
            return None
        return data

    async def _create(self, effect: CreateObject) -> None:
        if effect.attempt > 1:
            await asyncio.sleep(pause_seconds(effect.attempt))
        elif (early := self._sent_at + self._min_interval_seconds - self._loop.time()) > 0:
            await asyncio.sleep(early)  # L5: for stores that charge for each put; the next group gathers meanwhile
        self._sent_at = self._loop.time()
        try:
            outcome = await self._send_create(effect)
        except FsyncFailed:
            raise
        except StorageError as error:
            self.core.create_failed(effect.sequence, error)
            return
        self.core.created(effect.sequence, _OUTCOMES[outcome])

    async def _send_create(self, effect: CreateObject) -> CreateOutcome:
        """One transmission. A refusal is certain: nothing was created, so an open is sent again, for some seconds."""
        tries = OPEN_TRIES_MAX if self.core.phase is Phase.OPENING else 1
        for attempt in itertools.count(1):
            try:
                outcome: CreateOutcome = await self._run(
                    self._store.create, self._path(effect.sequence), effect.buffers
                )
            except StoreUnavailable as error:
                if attempt >= tries or not error.retriable:
                    raise
                await asyncio.sleep(pause_seconds(attempt + 1))
            else:
                return outcome
        raise AssertionError("the count never ends")

    async def _check(self, effect: CheckNext) -> None:
        for attempt in range(1, CHECK_TRIES_MAX + 1):
            try:
                exists = await self._run(self._store.exists, self._path(effect.sequence))
            except StoreUnavailable as error:
                if attempt == CHECK_TRIES_MAX:
                    self.core.check_failed(error)
                    return
                await asyncio.sleep(pause_seconds(attempt + 1))
            else:
                self.core.checked(effect.sequence, exists)
                return

    def _check_now(self, effect: CheckNext) -> None:
        """A local disk answers in microseconds: cheaper than a thread."""
        try:
            exists = self._store.exists(self._path(effect.sequence))
        except StorageError as error:
            self.core.check_failed(error)
        else:
            self.core.checked(effect.sequence, exists)

    async def _delete(self, effect: DeleteObject) -> None:
        try:
            await self._run(self._store.delete, self._path(effect.sequence))
        except StoreUnavailable:
            self.core.collect_failed()
            if self._collection is not None and not self._collection.done():
                self._collection.set_result(0)
        else:
            self.core.deleted(effect.sequence)

    def _path(self, sequence: int) -> str:
        return f"{self._folder}/{object_name(sequence)}"

    # -- notices -----------------------------------------------------------------------------------------

    def _on_opened(self, notice: Opened) -> None:
        if not self._opened.done():
            self._opened.set_result(notice.epoch)

    def _on_paused(self, notice: ReplayPaused) -> None:
        assert self._on_replay_full is not None, "a state that can be full has someone who empties it"
        task = self._loop.create_task(self._checkpoint_on_the_way(self._on_replay_full))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _checkpoint_on_the_way(self, checkpoint: Callable[[], Awaitable[None]]) -> None:
        try:
            await checkpoint()
        except Exception as error:  # noqa: BLE001 - whatever it is, `open` must not wait for ever
            _fail(self._opened, error)
            return
        self.core.resume_replay()
        self._pump()

    def _on_stood(self, notice: Stood) -> None:
        for ticket, entry in zip(notice.tickets, notice.entries, strict=True):
            future = self._tickets.pop(ticket.key)
            if not future.done():
                future.set_result(Position(notice.sequence, entry))

    def _on_failed(self, notice: Failed) -> None:
        for ticket in notice.tickets:
            _fail(self._tickets.pop(ticket.key), notice.error)
        if not notice.tickets and self._checkpoint is not None:
            _fail(self._checkpoint, notice.error)

    def _on_proved(self, notice: Proved) -> None:
        for read in notice.reads:
            future = self._reads.pop(read)
            if not future.done():
                future.set_result(None)

    def _on_reads_failed(self, notice: ReadsFailed) -> None:
        for read in notice.reads:
            _fail(self._reads.pop(read), notice.error)

    def _on_checkpoint_stood(self, notice: CheckpointStood) -> None:
        if self._checkpoint is not None and not self._checkpoint.done():
            self._checkpoint.set_result(notice.sequence)

    def _on_collected(self, notice: Collected) -> None:
        if self._collection is not None and not self._collection.done():
            self._collection.set_result(notice.deleted)

    def _on_closed(self, notice: Closed) -> None:
        for future in (self._opened, self._checkpoint, self._collection):
            if future is not None:
                _fail(future, notice.error)
        self.successor, self._error = notice.successor, notice.error
        if isinstance(notice.error, Fenced) and notice.successor is None:
            task = self._loop.create_task(self._find_successor(notice.error))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._end(notice.error)

    async def _find_successor(self, error: StorageError) -> None:
        """L12: who fenced us stands where our next create would have met it, and is never deleted (L11)."""
        try:
            async with asyncio.timeout(SUCCESSOR_SECONDS_MAX):
                data = await self._run(self._store.get, self._path(self.core.next_seq))
            self.successor = decode_header(data, self._path(self.core.next_seq))
        except (TimeoutError, ObjectMissing, StoreUnavailable, CorruptObject, UnsupportedFormat):
            self.successor = None  # the owner of this shard learns it from its next Placement
        finally:
            self._end(error)

    def _end(self, error: StorageError) -> None:
        if not self.closed.done():
            self.closed.set_result(error)

    _NOTICES: Final[dict[type, Callable[[LogDriver, Any], None]]] = {
        Opened: _on_opened,
        ReplayPaused: _on_paused,
        Stood: _on_stood,
        Failed: _on_failed,
        Proved: _on_proved,
        ReadsFailed: _on_reads_failed,
        CheckpointStood: _on_checkpoint_stood,
        Collected: _on_collected,
        Closed: _on_closed,
    }


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # a caller that has gone away is no reason for a warning


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
