"""L7: a write that is sent again is applied once, across take-overs, Checkpoints, forgetting, late and lost answers.

Two ways. The exhaustive search sends rows again under their ids (`tests.sim.logsearch`, with the least state that
has ids and a horizon). Here a seeded simulation in virtual time drives the real `LogCore`, `ShardState` and what
`Shard` asks before it sends: owners with wrong clocks take over from each other, zombies go on, messages are late.
Each rule is then broken on purpose, and both ways must see it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest

import storage.shardstate
from storage.budget import MemoryBudget
from storage.entries import rows_entry
from storage.errors import OutcomeUnknown, WriteRefused
from storage.frames import WriteId
from storage.log import Identity, LogCore, Phase
from storage.logeffects import (
    CheckNext,
    CheckpointDraft,
    CheckpointStood,
    Closed,
    CreateObject,
    DeleteObject,
    Failed,
    ListObjects,
    Outcome,
    ReadObject,
    SettleObject,
    Stood,
    Ticket,
)
from storage.logreader import LogReader, ReadPhase
from storage.schema import DataFile
from storage.shard import Append, Shard, ShardLimits
from storage.shardstate import Frozen, ShardState, encode_frozen
from tests.harness.tables import make_rows, make_table
from tests.sim.logsearch import Bounds, Search, Violation
from tests.sim.machines import RowState

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor

    import pyarrow as pa

    from storage.objects import ObjectStore

STORE_ID = b"S" * 16
LOG_ID = 1
TABLE = make_table()
RETRY_MS = 400
"""The longest time in which a writer sends a part again; owners forget older ids."""
SKEW_MS = 2_000
"""How wrong an owner's clock may be: five times the retry time, since no rule may rest on it (L36)."""
LATE = 0.02
"""The weight of a message that takes its time: most arrive after all that they could harm has happened."""
OWNERS_MAX = 5
WRITES_MAX = 8


def lookup(table_id: int) -> Any:
    return TABLE if table_id == TABLE.id else None


@dataclass
class Write:
    """One part of a write and the client that waits for it."""

    number: int
    rows: pa.RecordBatch
    born: int = 0
    first_ms: int = 0
    tries: int = 0
    state: str = "new"  # new, open, acked, unknown

    @property
    def id(self) -> WriteId:
        return WriteId(1, b"w" * 16, 0, self.number, 1)


@dataclass
class Message:
    """One try on its way to an owner: it arrives at any later time, once."""

    write: Write
    born: int
    owner: Owner
    weight: float = 1.0


@dataclass(eq=False)
class Owner:
    """A node that owns the Log, believes that it does, or is about to."""

    core: LogCore
    shard: Shard
    skew_ms: int
    pending: list[Any] = field(default_factory=list)
    waiting: dict[int, list[Write]] = field(default_factory=dict)
    frozen: tuple[Frozen, list[DataFile]] | None = None
    committing: bool = False

    @property
    def state(self) -> ShardState:
        return self.shard.state


class Simulation:
    """A history of one Log, decided by a seed."""

    def __init__(self, seed: int, again_as_new: bool = False) -> None:
        self.random = random.Random(seed)
        self.again_as_new = again_as_new
        self.now_ms = 10_000
        self.store: dict[int, bytes] = {}
        self.files: dict[str, list[str]] = {}
        self.owners: list[Owner] = []
        self.writes: list[Write] = []
        self.messages: list[Message] = []
        self.ghosts: list[tuple[int, bytes]] = []
        self.known_position = 0
        self.numbers = 0
        self.reached: set[str] = set()

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    # -- what may happen ---------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.now_ms += self.random.choice((0, 1, 5, 20))
            actions = self.actions()
            weights = [weight for weight, _ in actions]
            self.random.choices([action for _, action in actions], weights)[0]()
        self.judge()

    def actions(self) -> list[tuple[float, Callable[[], None]]]:
        actions: list[tuple[float, Callable[[], None]]] = []
        if len(self.owners) < OWNERS_MAX:
            actions.append((4.0 if not self.owners else 0.08, self.take_over))
        if len(self.writes) < WRITES_MAX and self.owners:
            actions.append((0.5, self.new_write))
        actions += [(0.4, partial(self.time_out, write)) for write in self.writes if write.state == "open"]
        actions += [(message.weight, partial(self.arrive, message)) for message in self.messages]
        actions += [(0.2, partial(self.land, ghost)) for ghost in self.ghosts]
        for owner in self.owners:
            actions += [(2.0, partial(self.perform, owner, effect)) for effect in owner.pending]
            if owner.core.is_owner and not owner.committing:
                actions.append((0.4, partial(self.freeze if owner.frozen is None else self.commit, owner)))
        return actions or [(1.0, lambda: None)]

    def take_over(self) -> None:
        identity = Identity(STORE_ID, LOG_ID, bytes([len(self.owners)]) * 16)
        executor = cast("ThreadPoolExecutor", None)  # nothing is asked of it: the simulation does what it would
        store = cast("ObjectStore", None)
        shard = Shard(store, identity, lookup, MemoryBudget(1 << 40), executor, ShardLimits(), lambda _: None)
        core = LogCore(identity, shard.state, lambda: self.number().to_bytes(16, "big"))
        owner = Owner(core, shard, self.random.randint(-SKEW_MS, SKEW_MS))
        self.owners.append(owner)
        core.start(self.clock(owner))
        self.settle(owner)

    def clock(self, owner: Owner) -> int:
        return max(0, self.now_ms + owner.skew_ms)

    # -- writers -----------------------------------------------------------------------------------------

    def new_write(self) -> None:
        number = len(self.writes)
        write = Write(number, make_rows([number], ["a"], number), self.known_position, self.now_ms)
        self.writes.append(write)
        write.state, write.tries = "open", 1
        self.send(write)

    def send(self, write: Write) -> None:
        # The newest owner mostly, but a writer may not know of it.
        owner = self.owners[-1] if self.random.random() < 0.7 else self.random.choice(self.owners)
        self.messages.append(Message(write, write.born, owner, self.random.choice((1.0, LATE))))

    def time_out(self, write: Write) -> None:
        """No answer: again under the same id and the same ``born``, as long as the retry time lasts."""
        if self.now_ms - write.first_ms > RETRY_MS:
            write.state = "unknown"
            return
        write.tries += 1
        self.reached.add("sent again")
        self.send(write)

    def answer(self, write: Write, what: str, position: int = 0) -> None:
        if self.random.random() < 0.3:
            return  # lost on its way
        self.known_position = max(self.known_position, position)
        if write.state != "open":
            return
        if what == "ok":
            write.state = "acked"
        elif what == "refused" and (write.tries == 1 or self.again_as_new):  # nothing of it can stand: a newer `born`
            write.born = position
            self.send(write)
        elif what == "refused":
            write.state = "unknown"

    # -- owners ------------------------------------------------------------------------------------------

    def arrive(self, message: Message) -> None:
        """What `Shard.append` does with a part, up to the Log."""
        self.messages.remove(message)
        owner, write = message.owner, message.write
        if not owner.core.is_owner:
            return  # "not here": the writer hears nothing that it could not have lost
        part = Append(TABLE, 1, write.rows, write.id, message.born)
        fresh = owner.shard._fresh([part])
        try:
            owner.shard._check_first(fresh)
        except WriteRefused:
            self.reached.add("refused")
            self.answer(write, "refused", owner.state.position)
            return
        if fresh:
            key = self.number()
            owner.waiting[key] = [write]
            owner.shard._in_flight[write.id] = cast("Any", key)
            entry = rows_entry(TABLE, 1, write.rows, write.id)
            owner.core.append([Ticket(key, entry, write.rows, key)], self.clock(owner))
            self.settle(owner)
        elif write.id in owner.state.write_ids:
            self.reached.add("known")
            self.answer(write, "ok", owner.state.position)
        else:
            self.reached.add("under way")
            owner.waiting[cast("int", owner.shard._known(part))].append(write)

    def freeze(self, owner: Owner) -> None:
        before = len(owner.state.write_ids)
        owner.state.advance_horizon(self.clock(owner) - RETRY_MS)
        if len(owner.state.write_ids) < before:
            self.reached.add("forgotten")
        frozen = owner.state.freeze()
        owner.frozen = (frozen, [self.file(owner, tail) for tail in frozen.tails.values()])

    def file(self, owner: Owner, tail: Any) -> DataFile:
        path = f"data/{LOG_ID}/1/1/{owner.core.epoch}-{self.number():032x}.parquet"
        self.files[path] = [text for batch in tail for text in batch.rows.column("s").to_pylist()]
        low, high = tail[0].first_offset, tail[-1].first_offset + tail[-1].rows.num_rows - 1
        return DataFile(path, TABLE.id, 1, low, high, low, high, 0, 99, high - low + 1, 100, 1)

    def commit(self, owner: Owner) -> None:
        assert owner.frozen is not None
        frozen, files = owner.frozen
        if frozen.covered < owner.state.k:
            owner.frozen = None
            return
        owner.frozen, owner.committing = None, True
        sections = (*encode_frozen(frozen, files), *owner.state.prepare(frozen, files, None))
        owner.core.checkpoint(CheckpointDraft(frozen.covered, sections), self.clock(owner))
        self.settle(owner)

    def settle(self, owner: Owner) -> None:
        """Take the effects: notices at once, the others wait to be performed."""
        while effects := owner.core.take():
            for effect in effects:
                if isinstance(effect, (Stood, Failed)):
                    self.heard(owner, effect)
                elif isinstance(effect, CheckpointStood):
                    owner.committing = False
                    self.reached.add("checkpoint")
                    owner.core.collect()
                elif isinstance(effect, Closed):
                    assert owner.core.phase is Phase.FENCED, effect.error
                    self.reached.add("fenced")
                    owner.pending.clear()
                elif isinstance(effect, (CreateObject, ListObjects, ReadObject, SettleObject, CheckNext, DeleteObject)):
                    owner.pending.append(effect)

    def heard(self, owner: Owner, effect: Stood | Failed) -> None:
        for ticket in effect.tickets:
            owner.shard._in_flight.pop(ticket.entry.write_id, None)
            for write in owner.waiting.pop(ticket.key):
                if isinstance(effect, Stood):
                    self.answer(write, "ok", effect.sequence)
                elif isinstance(effect.error, OutcomeUnknown):
                    self.reached.add("unknown")
        if isinstance(effect, Failed) and not effect.tickets:
            owner.committing = False

    # -- the store ---------------------------------------------------------------------------------------

    def land(self, ghost: tuple[int, bytes]) -> None:
        self.ghosts.remove(ghost)
        if ghost[0] not in self.store:
            self.reached.add("late landing")
        self.store.setdefault(*ghost)

    def perform(self, owner: Owner, effect: Any) -> None:
        owner.pending.remove(effect)
        core = owner.core
        if isinstance(effect, CreateObject):
            self.create(core, effect)
        elif isinstance(effect, ListObjects):
            core.listed(sorted(self.store))
        elif isinstance(effect, ReadObject):
            core.read(effect.sequence, self.store.get(effect.sequence))
        elif isinstance(effect, SettleObject):
            core.settled(effect.sequence)
        elif isinstance(effect, DeleteObject):
            self.store.pop(effect.sequence, None)
            core.deleted(effect.sequence)
            self.reached.add("collected")
        self.settle(owner)

    def create(self, core: LogCore, effect: CreateObject) -> None:
        data = b"".join(bytes(b) for b in effect.buffers)
        fate = self.random.random()
        if fate < 0.1:
            self.ghosts.append((effect.sequence, data))
            core.created(effect.sequence, Outcome.UNKNOWN)
            return
        free = effect.sequence not in self.store
        self.store.setdefault(effect.sequence, data)
        known = Outcome.CREATED if free else Outcome.EXISTS
        core.created(effect.sequence, Outcome.UNKNOWN if fate < 0.2 else known)

    # -- what must hold ----------------------------------------------------------------------------------

    def judge(self) -> None:
        rows = self.rows()
        twice = {row for row in rows if rows.count(row) > 1}
        if twice:
            raise Violation(f"{sorted(twice)} stand twice")
        lost = {f"s{w.number}" for w in self.writes if w.state == "acked"} - set(rows)
        if lost:
            raise Violation(f"{sorted(lost)} were acknowledged and are lost")

    def rows(self) -> list[str]:
        """Every row that a node which reads the store would see."""
        reader = LogReader(STORE_ID, LOG_ID, lambda: ShardState(STORE_ID, LOG_ID, lookup))
        while reader.phase not in (ReadPhase.DONE, ReadPhase.FAILED):
            for effect in reader.take():
                if isinstance(effect, ListObjects):
                    reader.listed(sorted(self.store))
                elif isinstance(effect, ReadObject):
                    reader.read(effect.sequence, self.store.get(effect.sequence))
        assert reader.phase is ReadPhase.DONE, reader.error
        state = cast("ShardState", reader.state)
        rows = [row for file in state.all_files() for row in self.files[file.path]]
        for snapshot in state.snapshot(TABLE):
            rows += [row for batch in snapshot.tail for row in batch.rows.column("s").to_pylist()]
        return rows


STEPS = 200


@pytest.mark.parametrize("block", range(4))
def test_l7_a_write_that_is_sent_again_stands_once(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """L7: 100 histories in each block; in odd ones the table of ids is so small that it overflows all the time."""
    if block % 2:
        monkeypatch.setattr(storage.shardstate, "WRITE_IDS_MAX", 1)
    reached: set[str] = set()
    acked = 0
    for seed in range(100):
        simulation = Simulation(1_000 * block + seed)
        simulation.run(STEPS)
        reached |= simulation.reached
        acked += sum(w.state == "acked" for w in simulation.writes)
    assert reached >= {"sent again", "known", "refused", "forgotten", "checkpoint", "fenced", "late landing",
                       "collected", "unknown", "under way"}  # fmt: skip
    assert acked > 200


def breaches(again_as_new: bool = False) -> str:
    """What the first history that breaks the rule says."""
    for seed in range(1_000):
        try:
            Simulation(seed, again_as_new).run(STEPS)
        except Violation as violation:
            return str(violation)
    return "nothing was found"


def forget_the_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Checkpoint brings the ids back, but not the horizon."""
    load = ShardState.load

    def broken(self: ShardState, checkpoint: Any) -> Any:
        parts = load(self, checkpoint)
        self.horizon = 0
        return parts

    monkeypatch.setattr(ShardState, "load", broken)


def forget_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Checkpoint brings the horizon back, but not the ids above it."""
    load = ShardState.load

    def broken(self: ShardState, checkpoint: Any) -> Any:
        parts = load(self, checkpoint)
        self.write_ids.clear()
        return parts

    monkeypatch.setattr(ShardState, "load", broken)


def keep_ids_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the owner that wrote an entry remembers its id: replay adds none."""
    apply = ShardState.apply

    def broken(self: ShardState, obj: Any, payloads: Any = ()) -> None:
        apply(self, obj, payloads)
        if not payloads:
            for entry in obj.entries:
                self.write_ids.pop(entry.write_id, None)

    monkeypatch.setattr(ShardState, "apply", broken)


def refuse_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown id is taken for a new write, wherever it was born."""
    monkeypatch.setattr(Shard, "_check_first", lambda self, parts: None)


def ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are stored, but nobody looks them up."""
    monkeypatch.setattr(Shard, "_known", lambda self, part: None)


@pytest.mark.parametrize(
    "breach", [forget_the_horizon, forget_the_ids, keep_ids_in_memory, refuse_nothing, ask_nobody]
)  # fmt: skip
def test_l7_broken_is_found_by_the_simulation(
    breach: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    breach(monkeypatch)
    assert "stand twice" in breaches()


def test_l7_a_later_try_that_is_refused_is_unknown() -> None:
    """L7: "refused" on a later try says nothing of the first; with a newer ``born`` the row would stand twice."""
    assert "stand twice" in breaches(again_as_new=True)


# -- the same by exhaustive search ----------------------------------------------------------------------

SEARCHED = {
    "lost answers": Bounds(rows=2, again=2, lost=1),
    "two take-overs": Bounds(nodes=3, opens=3, rows=1, again=2, lost=1),
    "forgetting": Bounds(rows=1, again=2, checkpoints=1, forget=True, lost=1),
    "forgetting twice": Bounds(rows=1, again=1, checkpoints=2, forget=True),
    "forgetting, owners that come back": Bounds(opens=3, rows=1, again=1, checkpoints=1, forget=True),
}


@pytest.mark.parametrize("case", SEARCHED)
def test_l7_holds_in_every_history(case: str) -> None:
    search = Search(SEARCHED[case])
    assert search.run() > 10_000
    assert search.reached >= {"known id", "fenced"}
    assert ("refused below the horizon" in search.reached) == SEARCHED[case].forget


class NoHorizon(RowState):
    """The Checkpoint does not bring the horizon back."""

    def load(self, checkpoint: Any) -> Any:
        parts = super().load(checkpoint)
        self.horizon = 0
        return parts


class NoIds(RowState):
    """The Checkpoint does not bring the ids back."""

    def load(self, checkpoint: Any) -> Any:
        parts = super().load(checkpoint)
        self.ids = 0
        return parts


class OwnIdsOnly(RowState):
    """Replay adds no ids."""

    def apply(self, obj: Any, payloads: Any = ()) -> None:
        ids = self.ids
        super().apply(obj, payloads)
        self.ids = self.ids if payloads else ids


@pytest.mark.parametrize("broken", [NoHorizon, NoIds, OwnIdsOnly])
def test_l7_broken_is_found_by_the_search(broken: type[RowState], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.sim.machines.RowState", broken)
    with pytest.raises(Violation, match="stands twice"):
        Search(Bounds(rows=1, again=1, checkpoints=1, forget=True)).run()
