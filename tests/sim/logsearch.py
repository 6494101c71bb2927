"""Exhaustive search of the real Log code: all interleavings of owners, zombies, late and lost answers,
checkpoints, collection, owner reads and store reads, over an in-memory store (LOG section 9).

Every node runs a real `LogCore`, every store read a real `LogReader`, and objects are real bytes. A step of
the search performs one effect of one machine, or lets a client act. A crash is a node that is never stepped
again; a zombie is one that is stepped late. States are deduplicated by a fingerprint, breadth first, so the
first violation found is a shortest one and is reported with its trace.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from storage.errors import OutcomeUnknown
from storage.frames import Entry, EntryKind, Frame, FrameType, LogObject, decode_object
from storage.log import Identity, LogCore, Phase
from storage.logeffects import (
    CheckNext,
    CheckpointDraft,
    CheckpointStood,
    Closed,
    CreateObject,
    DeleteObject,
    Effect,
    Failed,
    ListObjects,
    Outcome,
    Proved,
    ReadObject,
    ReadsFailed,
    SettleObject,
    Stood,
    Ticket,
)
from storage.logreader import LogReader, ReadPhase

STORE_ID = b"S" * 16
_MEMO: dict[int, Any] = {}


class RowState:
    """The least that a Log can add up to: a set of rows (one byte each) and k."""

    __slots__ = ("k", "last", "pending", "rows")

    def __init__(self) -> None:
        self.k = 0
        self.last = 0
        self.rows: frozenset[int] = frozenset()

    def load(self, checkpoint: LogObject | None) -> Sequence[str]:
        if checkpoint is not None:
            data = bytes(checkpoint.entries[0].frames[0].parts()[0])
            self.k, self.rows = data[0], frozenset(data[1:])
            self.last = self.k
        return ()

    def load_part(self, path: str, data: bytes) -> None:
        raise AssertionError("no parts here")

    def covered(self) -> int:
        return self.k

    def place(self, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        return tuple(entries)

    def apply(self, obj: LogObject, payloads: Sequence[object] = ()) -> None:
        assert obj.header.sequence > self.last, "objects are applied in the order of the Log"
        self.last = obj.header.sequence
        self.rows |= {bytes(e.frames[0].parts()[0])[0] for e in obj.entries}

    def checkpointed(self, sequence: int, covered: int, sections: Sequence[Entry]) -> None:
        assert covered >= self.k, "k never decreases (L18)"
        self.k = covered
        self.last = sequence

    def replay_is_full(self) -> bool:
        return False

    def clone(self) -> RowState:
        other = RowState()
        other.k, other.last, other.rows = self.k, self.last, self.rows
        return other


def row_entry(row: int) -> Entry:
    return Entry(EntryKind.ROWS, (Frame(FrameType.CLIENT, bytes([row])),), row_count=1, offset_count=1)


def _copy_value(value: Any) -> Any:
    if isinstance(value, (list, set, dict, deque)):
        return copy.copy(value)
    if isinstance(value, RowState):
        return value.clone()
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not value.__dataclass_params__.frozen:
        return dataclasses.replace(value, **{  # type: ignore[type-var]
            f.name: _copy_value(getattr(value, f.name)) for f in dataclasses.fields(value)
        })  # fmt: skip
    return value


def _freeze(value: Any) -> Any:
    """A hashable fingerprint of a machine's field."""
    if isinstance(value, RowState):
        return (value.k, value.last, value.rows)
    if isinstance(value, (list, deque)):
        return tuple(_freeze(v) for v in value)
    if isinstance(value, set):
        return frozenset(value)
    if isinstance(value, dict):
        return tuple(sorted((k, _freeze(v)) for k, v in value.items()))
    if isinstance(value, tuple):
        return tuple(_freeze(v) for v in value)
    if isinstance(value, Entry):
        return (value.kind, bytes(value.frames[0].parts()[0]) if value.frames else b"")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (type(value).__name__, *(_freeze(getattr(value, f.name)) for f in dataclasses.fields(value)))
    return value


class Machine:
    """A core or reader with the effects that have not been performed yet."""

    def __init__(self, core: Any, pending: list[Any]) -> None:
        self.core = core
        self.pending = pending
        self.checks: list[tuple[int, bool]] = []
        self.frozen: tuple[int, frozenset[int]] | None = None  # a memtable whose files are being written
        self.collect = False

    def clone(self) -> Machine:
        core = copy.copy(self.core)
        for name, value in vars(self.core).items():
            if name != "_new_nonce":
                setattr(core, name, _copy_value(value))
        if isinstance(core, LogCore):
            core._new_nonce = _Nonces(core)
        other = Machine(core, list(self.pending))
        other.checks, other.frozen, other.collect = list(self.checks), self.frozen, self.collect
        return other

    def fingerprint(self) -> Any:
        skip = ("_new_nonce", "_new_state", "identity", "_effects", "error", "_relists", "_tries")
        fields = tuple(_freeze(v) for k, v in vars(self.core).items() if k not in skip)
        return (fields, tuple(_freeze(p) for p in self.pending), tuple(self.checks), self.frozen, self.collect)


class _Nonces:
    """Deterministic nonces: epoch-independent, new for each create of each node."""

    def __init__(self, core: LogCore) -> None:
        self.core = core

    def __call__(self) -> bytes:
        node = self.core.identity.node[0]
        return bytes([node, self.core.next_seq & 255, self.core.epoch & 255]) + bytes(13)


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How much may happen in one history."""

    nodes: int = 2
    rows: int = 2
    opens: int = 2
    checkpoints: int = 1
    reads: int = 1
    lost: int = 1
    owner_reads: bool = True
    store_reads: bool = True
    states_max: int = 3_000_000


class Violation(AssertionError):
    pass


@dataclasses.dataclass
class World:
    store: dict[int, bytes]
    nodes: list[Machine | None]
    reader: Machine | None
    reader_need: frozenset[int]
    ghosts: frozenset[tuple[int, bytes]]
    acked: frozenset[int]
    observed: frozenset[int]
    failed: frozenset[int]
    needs: dict[int, frozenset[int]]
    rows: int
    opens: int
    checkpoints: int
    reads: int
    lost: int

    def clone(self) -> World:
        return World(
            dict(self.store), list(self.nodes), self.reader, self.reader_need, self.ghosts, self.acked, self.observed,
            self.failed, dict(self.needs), self.rows, self.opens, self.checkpoints, self.reads, self.lost,
        )  # fmt: skip

    def fingerprint(self) -> int:
        return hash((
            tuple(sorted(self.store.items())),
            tuple(None if n is None else n.fingerprint() for n in self.nodes),
            None if self.reader is None else self.reader.fingerprint(), self.reader_need, self.ghosts, self.acked,
            self.observed, self.failed, tuple(sorted(self.needs.items())), self.rows, self.opens, self.checkpoints,
            self.reads, self.lost,
        ))  # fmt: skip


def store_view(store: dict[int, bytes]) -> frozenset[int]:
    """What a node that reads the store now would see; raises when the Log is damaged."""
    key = hash(tuple(sorted(store.items())))
    if key in _MEMO:
        return _MEMO[key]  # type: ignore[no-any-return]
    reader = LogReader(STORE_ID, 1, RowState)
    while reader.phase not in (ReadPhase.DONE, ReadPhase.FAILED):
        for effect in reader.take():
            if isinstance(effect, ListObjects):
                reader.listed(sorted(store))
            elif isinstance(effect, ReadObject):
                reader.read(effect.sequence, store.get(effect.sequence))
    if reader.phase is ReadPhase.FAILED:
        raise Violation(f"the Log is damaged: {reader.error}")
    assert isinstance(reader.state, RowState)
    _MEMO[key] = reader.state.rows
    return reader.state.rows


class Search:
    """Breadth-first over all interleavings within `Bounds`. ``core_class`` lets a test break a rule on purpose."""

    def __init__(self, bounds: Bounds, core_class: type[LogCore] = LogCore, reader_class: type[LogReader] = LogReader):
        self.bounds = bounds
        self.core_class = core_class
        self.reader_class = reader_class
        self.reached: set[str] = set()

    # -- one world to the next ---------------------------------------------------------------------------

    def _settle(self, world: World, index: int) -> None:
        """Take a node's effects: notices are judged at once, the others wait to be performed."""
        machine = world.nodes[index]
        assert machine is not None
        while effects := machine.core.take():
            for effect in effects:
                self._notice(world, machine, effect)

    def _notice(self, world: World, machine: Machine, effect: Effect) -> None:
        if isinstance(effect, Stood):
            world.acked |= {t.key for t in effect.tickets}
            self.reached.add("acked")
        elif isinstance(effect, Failed):
            if not isinstance(effect.error, OutcomeUnknown):
                world.failed |= {t.key for t in effect.tickets}
            self.reached.add("failed")
        elif isinstance(effect, Proved):
            rows = machine.core.state.rows
            for read in effect.reads:
                need = world.needs.pop(read)
                if not need <= rows:
                    raise Violation(f"an owner read returns {sorted(rows)}, needed {sorted(need)}")
            world.observed |= rows
            self.reached.add("owner read")
        elif isinstance(effect, ReadsFailed):
            for read in effect.reads:
                world.needs.pop(read)
        elif isinstance(effect, CheckpointStood):
            machine.collect = True
            self.reached.add("checkpoint")
        elif isinstance(effect, Closed):
            machine.pending.clear()
            machine.checks.clear()
            machine.frozen = None
            machine.collect = False
            self.reached.add("fenced" if machine.core.phase is Phase.FENCED else "damaged")
            if machine.core.phase is Phase.DAMAGED:
                raise Violation(f"an owner says damage where there is none: {effect.error}")
        elif isinstance(effect, (ListObjects, CreateObject, ReadObject, CheckNext, DeleteObject, SettleObject)):
            machine.pending.append(effect)

    def _fork(self, world: World, index: int) -> tuple[World, Machine]:
        new = world.clone()
        machine = new.nodes[index]
        assert machine is not None
        clone = machine.clone()
        new.nodes[index] = clone
        return new, clone

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        yield from self._ghost_steps(world)
        for index in range(self.bounds.nodes):
            yield from self._node_steps(world, index)
        if self.bounds.store_reads:
            yield from self._reader_steps(world)

    def _ghost_steps(self, world: World) -> Iterator[tuple[str, World]]:
        """A create that was sent lands now, whoever waits or not."""
        for ghost in world.ghosts:
            new = world.clone()
            new.ghosts -= {ghost}
            landed = new.store.setdefault(*ghost) is ghost[1]
            if landed:
                self.reached.add("late landing")
            yield f"a late create lands at {ghost[0]}: {landed}", new

    def _node_steps(self, world: World, index: int) -> Iterator[tuple[str, World]]:
        machine = world.nodes[index]
        dead = machine is None or machine.core.phase in (Phase.FENCED, Phase.CLOSED)
        if dead and world.opens < self.bounds.opens:
            yield f"N{index} starts", self._started(world, index)
        if machine is None or dead:
            return
        for position, effect in enumerate(machine.pending):
            for name, new in self._perform(world, index, position, effect):
                self._settle(new, index)
                yield f"N{index} {name}", new
        for position, (sequence, exists) in enumerate(machine.checks):
            new, clone = self._fork(world, index)
            del clone.checks[position]
            clone.core.checked(sequence, exists)
            self._settle(new, index)
            yield f"N{index} check of {sequence} answers {exists}", new
        if machine.core.is_owner:
            yield from self._owner_steps(world, index, machine)

    def _started(self, world: World, index: int) -> World:
        new = world.clone()
        core = self.core_class(Identity(STORE_ID, 1, bytes([index]) * 16), RowState(), lambda: b"")
        core._new_nonce = _Nonces(core)
        core.start(1)
        new.nodes[index] = Machine(core, [])
        self._settle(new, index)
        return new

    def _perform(self, world: World, index: int, position: int, effect: Effect) -> Iterator[tuple[str, World]]:
        if isinstance(effect, CreateObject):
            if not self._may_create(world, index, effect):
                return
            yield from self._perform_create(world, index, position, effect)
            return
        new, machine = self._fork(world, index)
        del machine.pending[position]
        core = machine.core
        if isinstance(effect, ListObjects):
            core.listed(sorted(new.store))
            yield f"lists up to {max(new.store, default=0)}", new
        elif isinstance(effect, ReadObject):
            core.read(effect.sequence, new.store.get(effect.sequence))
            yield f"reads {effect.sequence}", new
        elif isinstance(effect, CheckNext):
            machine.checks.append((effect.sequence, effect.sequence in new.store))
            yield f"checks {effect.sequence}", new
        elif isinstance(effect, DeleteObject):
            new.store.pop(effect.sequence, None)
            core.deleted(effect.sequence)
            self.reached.add("collected")
            yield f"deletes {effect.sequence}", new
        elif isinstance(effect, SettleObject):
            core.settled(effect.sequence)
            self.reached.add("own nonce")
            yield f"settles {effect.sequence}", new

    def _may_create(self, world: World, index: int, effect: CreateObject) -> bool:
        """Two nodes may overtake each other for ever: the number of open objects bounds a history."""
        machine = world.nodes[index]
        assert machine is not None
        resent = effect.attempt > 1
        return resent or machine.core.phase is not Phase.OPENING or world.opens < self.bounds.opens

    def _perform_create(
        self, world: World, index: int, position: int, effect: CreateObject
    ) -> Iterator[tuple[str, World]]:
        data = b"".join(effect.buffers)
        sequence = effect.sequence
        new, machine = self._fork(world, index)
        del machine.pending[position]
        new.opens += machine.core.phase is Phase.OPENING and effect.attempt == 1
        free = sequence not in new.store
        new.store.setdefault(sequence, data)
        machine.core.created(sequence, Outcome.CREATED if free else Outcome.EXISTS)
        yield f"creates {sequence}: {free}", new
        if world.lost >= self.bounds.lost:
            return
        new, machine = self._fork(world, index)  # it lands, the answer is lost
        del machine.pending[position]
        new.lost += 1
        new.opens += machine.core.phase is Phase.OPENING and effect.attempt == 1
        new.store.setdefault(sequence, data)
        machine.core.created(sequence, Outcome.UNKNOWN)
        yield f"creates {sequence}, answer lost", new
        new, machine = self._fork(world, index)  # it is on its way and may land at any later time
        del machine.pending[position]
        new.lost += 1
        new.opens += machine.core.phase is Phase.OPENING and effect.attempt == 1
        new.ghosts |= {(sequence, data)}
        machine.core.created(sequence, Outcome.UNKNOWN)
        yield f"create of {sequence} delayed, answer lost", new

    def _owner_steps(self, world: World, index: int, machine: Machine) -> Iterator[tuple[str, World]]:
        if world.rows < self.bounds.rows and machine.core.queued == 0:
            new, clone = self._fork(world, index)
            clone.core.append([Ticket(world.rows, row_entry(world.rows))], 1)
            new.rows += 1
            self._settle(new, index)
            yield f"N{index} appends row {world.rows}", new
        if machine.frozen is None and world.checkpoints < self.bounds.checkpoints and not machine.collect:
            new, clone = self._fork(world, index)
            clone.frozen = (clone.core.next_seq - 1, clone.core.state.rows)
            new.checkpoints += 1
            yield f"N{index} writes files, k={clone.frozen[0]}", new
        if machine.frozen is not None and machine.core._draft is None:
            new, clone = self._fork(world, index)
            assert machine.frozen is not None
            covered, rows = machine.frozen
            clone.frozen = None
            section = Entry(EntryKind.SECTION, (Frame(FrameType.CLIENT, bytes([covered, *sorted(rows)])),))
            clone.core.checkpoint(CheckpointDraft(covered, (section,)), 1)
            self._settle(new, index)
            yield f"N{index} commits the Checkpoint that covers {covered}", new
        if machine.collect:
            new, clone = self._fork(world, index)
            clone.collect = False
            clone.core.collect()
            self._settle(new, index)
            yield f"N{index} collects", new
        if self.bounds.owner_reads and world.reads < self.bounds.reads:
            new, clone = self._fork(world, index)
            new.needs[world.reads] = world.acked | world.observed
            new.reads += 1
            clone.core.prove(world.reads)
            self._settle(new, index)
            yield f"a read arrives at N{index}", new

    def _reader_steps(self, world: World) -> Iterator[tuple[str, World]]:
        if world.reader is None:
            if world.reads < self.bounds.reads:
                new = world.clone()
                reader = self.reader_class(STORE_ID, 1, RowState)
                new.reader = Machine(reader, reader.take())
                new.reader_need = world.acked | world.observed
                new.reads += 1
                yield "a store read begins", new
            return
        for position, effect in enumerate(world.reader.pending):
            new = world.clone()
            machine = new.reader = world.reader.clone()
            del machine.pending[position]
            if isinstance(effect, ListObjects):
                machine.core.listed(sorted(new.store))
            elif isinstance(effect, ReadObject):
                machine.core.read(effect.sequence, new.store.get(effect.sequence))
            machine.pending.extend(machine.core.take())
            self._finish_read(new, machine)
            yield f"store read: {type(effect).__name__} {getattr(effect, 'sequence', '')}", new

    def _finish_read(self, world: World, machine: Machine) -> None:
        reader = machine.core
        if reader.phase is ReadPhase.FAILED:
            raise Violation(f"a store read fails: {reader.error}")
        if reader.phase is ReadPhase.DONE:
            if not world.reader_need <= reader.state.rows:
                raise Violation(f"a store read returns {sorted(reader.state.rows)}, needed {sorted(world.reader_need)}")
            world.observed |= reader.state.rows
            world.reader = None
            self.reached.add("store read")

    # -- what must hold in every state -------------------------------------------------------------------

    def judge(self, world: World) -> None:
        rows = store_view(world.store)
        if not world.acked <= rows:
            raise Violation(f"acknowledged rows {sorted(world.acked - rows)} are lost")
        if not world.observed <= rows:
            raise Violation(f"rows {sorted(world.observed - rows)} were seen and are gone")
        if world.failed & rows:
            raise Violation(f"rows {sorted(world.failed & rows)} were reported as not written and stand")
        _opens_stand(world.store)

    def run(self) -> int:
        """The number of states searched; raises `Violation` with the shortest trace."""
        start = World({}, [None] * self.bounds.nodes, None, frozenset(), frozenset(), frozenset(), frozenset(),
                      frozenset(), {}, 0, 0, 0, 0, 0)  # fmt: skip
        first = start.fingerprint()
        trace: dict[int, tuple[int, str]] = {first: (0, "")}
        queue = deque([(first, start)])
        while queue:
            key, world = queue.popleft()
            steps = self.steps(world)
            while True:
                try:
                    name, new = next(steps)
                    mark = new.fingerprint()
                    if mark in trace:
                        continue
                    trace[mark] = (key, name)
                    self.judge(new)
                except StopIteration:
                    break
                except Violation as violation:
                    raise Violation(f"{violation}\n  " + "\n  ".join(_path(trace, key))) from None
                queue.append((mark, new))
            assert len(trace) <= self.bounds.states_max, "the search is larger than its bound"
        return len(trace)


def _opens_stand(store: dict[int, bytes]) -> None:
    """L11: the open of every epoch that appears in the Log is still there."""
    for sequence, data in store.items():
        key = hash((sequence, data))
        if key not in _MEMO:
            _MEMO[key] = decode_object(data, "search").header.epoch
        if _MEMO[key] not in store:
            raise Violation(f"the open object of epoch {_MEMO[key]} is gone")


def _path(trace: dict[int, tuple[int, str]], key: int) -> list[str]:
    names = []
    while trace[key][1]:
        key, name = trace[key]
        names.append(name)
    return names[::-1]
