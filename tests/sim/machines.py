"""The real `LogCore` and `LogReader` as a transition table for the exhaustive search.

Both are pure: what they do next depends only on what they are and on the answer that they get. So each state
of a machine is kept once, under a fingerprint of all its fields, and what follows from (state, event) is
computed once by running the real code on a copy. The search (`tests.sim.logsearch`) then works on numbers.

Nothing is approximated: fingerprints are exact tuples, and a field that is not known to be immutable is copied.
"""

from __future__ import annotations

import dataclasses
import enum
import types
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from storage.errors import CorruptObject, OutcomeUnknown, StoreFull
from storage.frames import Entry, EntryKind, Frame, FrameType, LogObject
from storage.log import Identity, LogCore, Phase
from storage.logeffects import (
    CheckNext,
    CheckpointDraft,
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
    ReadsFailed,
    ReplayPaused,
    SettleObject,
    Stood,
    Ticket,
)
from storage.logreader import LogReader, ReadPhase

if TYPE_CHECKING:
    from collections.abc import Sequence

STORE_ID: Final = b"S" * 16
LOG_ID: Final = 1
DEAD: Final = -2
"""The machine number of a node that was fenced or let go: it may start again."""
ABSENT: Final = -1
"""The machine number of a node that has not started yet, and of no store read."""

Event = tuple[Any, ...]
Notice = tuple[Any, ...]


class Violation(AssertionError):
    """A rule does not hold; the message ends with the shortest history that shows it."""


# -- the least that a Log can add up to -----------------------------------------------------------------


def row_entry(row: int) -> Entry:
    return Entry(EntryKind.ROWS, (Frame(FrameType.CLIENT, bytes([row])),), row_count=1, offset_count=1)


def checkpoint_section(frozen: Frozen) -> Entry:
    return Entry(EntryKind.SECTION, (Frame(FrameType.CLIENT, bytes(frozen)),))


class Frozen(NamedTuple):
    """What a Checkpoint says: k, the rows up to k, and the write ids above the horizon (a bit for each row)."""

    covered: int
    rows: int
    ids: int
    horizon: int


def first_bytes(entry: Entry) -> bytes:
    return bytes(memoryview(entry.frames[0].parts()[0]))


class RowState:
    """A set of rows (a bit each), their write ids and k. ``base`` is what the Checkpoint in force holds."""

    __slots__ = ("base", "full_rows", "horizon", "ids", "k", "last", "rows")

    def __init__(self, full_rows: int = 0) -> None:
        self.full_rows = full_rows
        self.k = self.last = self.rows = self.base = self.ids = self.horizon = 0

    def load(self, checkpoint: LogObject | None) -> Sequence[str]:
        if checkpoint is not None:
            frozen = Frozen(*first_bytes(checkpoint.entries[0]))
            self.k = self.last = frozen.covered
            self.rows = self.base = frozen.rows
            self.ids, self.horizon = frozen.ids, frozen.horizon
        return ()

    def load_part(self, path: str, data: bytes) -> None:
        raise AssertionError("no parts here")

    def covered(self) -> int:
        return self.k

    def place(self, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        first = self.rows.bit_count()
        return tuple(dataclasses.replace(e, base_offset=first + i) for i, e in enumerate(entries))

    def apply(self, obj: LogObject, payloads: Sequence[object] = ()) -> None:
        if obj.header.sequence <= self.last:
            raise Violation("objects are not applied in the order of the Log")
        self.last = obj.header.sequence
        for entry in obj.entries:
            if entry.base_offset != self.rows.bit_count():  # as a shard sees that rows are missing
                raise CorruptObject(f"offset {entry.base_offset} where {self.rows.bit_count()} must follow")
            bit = 1 << first_bytes(entry)[0]
            if self.rows & bit:
                raise Violation(f"row {bit.bit_length() - 1} stands twice")
            self.rows |= bit
            self.ids |= bit  # L7: replay only adds

    def forget(self) -> None:
        """L7: the horizon moves up to here, and every id below it is forgotten."""
        self.ids, self.horizon = 0, self.last

    def checkpointed(self, sequence: int, covered: int, sections: Sequence[Entry]) -> None:
        if covered < self.k:
            raise Violation("k decreases (L18)")
        self.k, self.base, _, _ = first_bytes(sections[0])

    def replay_is_full(self) -> bool:
        return 0 < self.full_rows <= (self.rows & ~self.base).bit_count()


# -- copying and comparing machines ---------------------------------------------------------------------

_SAME = (int, str, bytes, memoryview, tuple, frozenset, enum.Enum, types.FunctionType, type, types.NoneType)
_SKIPPED: Final = frozenset({"_new_nonce", "_new_state", "_effects", "_relists", "_tries", "error"})
"""Fields that a fingerprint leaves out: they are constant, empty between steps, or only bound endless loops."""


def _is_constant(value: Any) -> bool:
    if isinstance(value, _SAME):
        return True
    parameters = vars(type(value)).get("__dataclass_params__")
    return parameters is not None and bool(parameters.frozen)


def _fields(value: Any) -> list[str]:
    names = list(getattr(value, "__dict__", ()))
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        names.extend(name for name in ((slots,) if isinstance(slots, str) else slots) if hasattr(value, name))
    return names


def clone(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of a machine; what cannot change is shared."""
    if _is_constant(value):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, (list, deque, set)):
        return type(value)(clone(v, memo) for v in value)
    if isinstance(value, dict):
        return type(value)((k, clone(v, memo)) for k, v in value.items())
    other = memo[id(value)] = object.__new__(type(value))
    for name in _fields(value):
        object.__setattr__(other, name, clone(getattr(value, name), memo))
    return other


def freeze(value: Any, seen: tuple[int, ...] = ()) -> Any:
    """A hashable value that is equal for equal machines, and only for them. Type names count: a Stood is no Failed."""
    if isinstance(value, (tuple, list, deque)):
        return (type(value).__name__, *(freeze(v, seen) for v in value))
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, _SAME):
        return value
    if isinstance(value, set):
        return frozenset(value)
    if isinstance(value, dict):
        return tuple(sorted((k, freeze(v, seen)) for k, v in value.items()))
    if id(value) in seen:
        return ("above", seen.index(id(value)))
    names = (n for n in _fields(value) if n not in _SKIPPED)
    return (type(value).__name__, *((n, freeze(getattr(value, n), (*seen, id(value)))) for n in names))


class _Nonces:
    """Deterministic nonces, new for each create: node, epoch, sequence, and how often a create was refused."""

    def __init__(self, core: LogCore) -> None:
        self.core = core
        self.refused = 0

    def __call__(self) -> bytes:
        core = self.core
        return bytes([core.identity.node[0], core.next_seq & 255, core.epoch & 255, self.refused]) + bytes(12)


@dataclasses.dataclass
class Node:
    """One node: the real machine, what it asked the store for, and answers that have not reached it yet."""

    core: Any
    pending: list[Event] = dataclasses.field(default_factory=list)
    answers: list[Event] = dataclasses.field(default_factory=list)
    frozen: Frozen | None = None  # a Checkpoint whose files are being written
    committing: bool = False
    collect: bool = False


class Step(NamedTuple):
    """What an event leads to: the node's next state and what the world hears of it."""

    machine: int
    notices: tuple[Notice, ...]


class Machines:
    """All states of nodes and readers that were met, by number, and the steps between them."""

    def __init__(self, core_class: type[LogCore], reader_class: type[LogReader], full_rows: int) -> None:
        self.nodes: list[Node] = []
        self.blobs: list[bytes] = []
        self._core_class = core_class
        self._reader_class = reader_class
        self._full_rows = full_rows
        self._numbers: dict[Any, int] = {}
        self._steps: dict[tuple[int, Event], Step] = {}
        self._blob_numbers: dict[bytes, int] = {}
        self._starts: dict[tuple[int, tuple[int, ...]], Step] = {}

    def blob(self, data: bytes) -> int:
        number = self._blob_numbers.setdefault(data, len(self.blobs))
        if number == len(self.blobs):
            self.blobs.append(data)
        return number

    def start(self, index: int, sequences: tuple[int, ...]) -> Step:
        """A node begins to take the Log over and lists it at once: to wait between the two changes nothing."""
        key = (index, sequences)
        if key not in self._starts:
            core = self._core_class(Identity(STORE_ID, LOG_ID, bytes([index]) * 16), RowState(self._full_rows), bytes)
            core._new_nonce = _Nonces(core)
            core.start(1)
            assert core.take() == [ListObjects()]
            core.listed(sequences)
            self._starts[key] = self._step_of(Node(core))
        return self._starts[key]

    def start_read(self, reader_class: type[LogReader] | None = None) -> Step:
        """A store read begins."""
        return self._reader_step(Node((reader_class or self._reader_class)(STORE_ID, LOG_ID, RowState)))

    def step(self, machine: int, event: Event) -> Step:
        """What ``event`` leads to in this state, by running the real code (once)."""
        key = (machine, event)
        found = self._steps.get(key)
        if found is None:
            node = clone(self.nodes[machine], {})
            if isinstance(node.core, LogReader):
                self._answer(node, event[2:])
                del node.pending[event[1]]
                found = self._reader_step(node)
            else:
                self._happen(node, event)
                found = self._step_of(node)
            self._steps[key] = found
        return found

    # -- running the real code ---------------------------------------------------------------------------

    def _happen(self, node: Node, event: Event) -> None:
        core, what = node.core, event[0]
        if what == "perform":
            asked = node.pending.pop(event[1])
            if _late(core, asked[0]):
                node.answers.append(event[2:])
            else:
                self._answer(node, event[2:])
        elif what == "deliver":
            self._answer(node, node.answers.pop(event[1]))
        elif what == "append":
            core.append([Ticket(event[1], row_entry(event[1]))], 1)
        elif what == "prove":
            core.prove(event[1])
        elif what == "again":
            self._again(core, *event[1:])
        elif what in ("freeze", "forget"):
            if what == "forget":
                core.state.forget()
            covered = core.next_seq - 1 if core.is_owner else core.state.last
            node.frozen = Frozen(covered, core.state.rows, core.state.ids, core.state.horizon)
        elif what == "compact":  # L18: a compaction's Checkpoint repeats the k in force
            node.frozen = Frozen(core.state.k, core.state.base, core.state.ids, core.state.horizon)
        elif what == "commit":
            assert node.frozen is not None
            draft = CheckpointDraft(node.frozen[0], (checkpoint_section(node.frozen),))
            node.frozen, node.committing = None, True
            core.checkpoint(draft, 1)
        elif what == "collect":
            node.collect = False
            core.collect()
        else:
            assert event == ("close",)
            core.close()

    def _again(self, core: LogCore, row: int, born: int) -> None:
        """L7, as a shard has it: what is known or under way is not sent again; born below the horizon is refused."""
        under_way = (*core._queue, *(core._inflight.tickets if core._inflight is not None else ()))
        state = core.state
        assert isinstance(state, RowState)
        known = state.ids >> row & 1 or any(ticket.key == row for ticket in under_way)
        if not known and born >= state.horizon:
            core.append([Ticket(row, row_entry(row))], 1)

    def known(self, machine: int, row: int) -> bool:
        """Whether the owner remembers the write id of this row (L7)."""
        return bool(self.nodes[machine].core.state.ids >> row & 1)

    def _answer(self, node: Node, answer: Event) -> None:
        method, *arguments = answer
        if method == "read":
            sequence, blob = arguments
            node.core.read(sequence, None if blob is None else self.blobs[blob])
        elif method == "create_failed":
            node.core._new_nonce.refused += 1
            node.core.create_failed(arguments[0], StoreFull("full"))
        else:
            getattr(node.core, method)(*arguments)

    def _step_of(self, node: Node) -> Step:
        """Take the effects: notices go to the world, the others wait to be performed."""
        notices: list[Notice] = []
        while effects := node.core.take():
            for effect in effects:
                self._effect(node, effect, notices)
        if node.core.phase in (Phase.FENCED, Phase.CLOSED):
            return Step(DEAD, tuple(notices))
        return Step(self._number(node), tuple(notices))

    def _reader_step(self, node: Node) -> Step:
        reader = node.core
        node.pending.extend(_asked(effect) for effect in reader.take())
        if reader.phase is ReadPhase.FAILED:
            return Step(ABSENT, (("violation", f"a store read fails: {reader.error}"),))
        if reader.phase is ReadPhase.DONE:
            return Step(ABSENT, (("read", reader.state.rows),))
        return Step(self._number(node), ())

    def _number(self, node: Node) -> int:
        node.pending.sort(key=repr)
        node.answers.sort(key=repr)
        number = self._numbers.setdefault(freeze(node), len(self.nodes))
        if number == len(self.nodes):
            self.nodes.append(node)
        return number

    def _effect(self, node: Node, effect: Any, notices: list[Notice]) -> None:
        if isinstance(effect, Stood):
            notices.append(("acked", _mask(effect.tickets)))
        elif isinstance(effect, Failed):
            if not effect.tickets:
                node.committing = False
            elif not isinstance(effect.error, OutcomeUnknown):
                notices.append(("not written", _mask(effect.tickets)))
            else:
                notices.append(("unknown", _mask(effect.tickets)))
        elif isinstance(effect, Proved):
            notices.append(("proved", effect.reads, node.core.state.rows))
        elif isinstance(effect, ReadsFailed):
            notices.append(("reads failed", effect.reads))
        elif isinstance(effect, CheckpointStood):
            node.committing, node.collect = False, True
            notices.append(("checkpoint",))
            if node.core.phase is Phase.PAUSED:
                notices.append(("paused replay goes on",))
                node.core.resume_replay()
        elif isinstance(effect, ReplayPaused):
            notices.append(("replay paused",))
        elif isinstance(effect, Opened):
            node.collect = node.core.state.k > 0  # an earlier owner may have left garbage
            notices.append(("opened", effect.epoch))
        elif isinstance(effect, Closed):
            self._closed(node, effect, notices)
        elif isinstance(effect, Collected):
            notices.append(("collection ends",))
        elif isinstance(effect, CreateObject):
            opening = node.core.phase is Phase.OPENING and effect.attempt == 1
            node.pending.append(("create", effect.sequence, self.blob(b"".join(effect.buffers)), opening))
        else:
            node.pending.append(_asked(effect))

    def _closed(self, node: Node, effect: Closed, notices: list[Notice]) -> None:
        """Creates and deletes that are on their way may still be performed, whoever has gone."""
        phase = node.core.phase
        if phase is Phase.DAMAGED:
            notices.append(("violation", f"an owner says damage where there is none: {effect.error}"))
        notices.append((phase.value,))
        for asked in node.pending:
            if asked[0] in ("create", "delete"):
                notices.append(("left behind", asked[:3]))
        node.pending.clear()
        node.answers.clear()


def _mask(tickets: Sequence[Ticket]) -> int:
    return sum(1 << t.key for t in tickets)


def _asked(effect: Any) -> Event:
    if isinstance(effect, ListObjects):
        return ("list",)
    if isinstance(effect, ReadObject):
        return ("read", effect.sequence)
    if isinstance(effect, CheckNext):
        return ("check", effect.sequence)
    if isinstance(effect, DeleteObject):
        return ("delete", effect.sequence)
    assert isinstance(effect, SettleObject), effect
    return ("settle", effect.sequence)


def _late(core: Any, asked: str) -> bool:
    """Whether the answer travels apart from the act, so that other things may happen in between.

    Where it does not, nothing is lost: in a take-over one thing happens after the other, so that a late answer
    is the same as a late act seen from the next one on; and the answers to reads, settles and deletes change
    nothing but what the machine asks for next, which may be performed at any later time.
    """
    return asked == "check" or (asked in ("create", "list") and core.phase in (Phase.OWNER, Phase.PAUSED))


def answer_to(asked: Event, store: dict[int, int], names: tuple[int, ...]) -> Event:
    """What the store says to an effect that is not a create."""
    what = asked[0]
    if what == "list":
        return ("listed", names)
    if what == "read":
        return ("read", asked[1], store.get(asked[1]))
    if what == "check":
        return ("checked", asked[1], asked[1] in store)
    return ("deleted" if what == "delete" else "settled", asked[1])


CREATED: Final = Outcome.CREATED
EXISTS: Final = Outcome.EXISTS
UNKNOWN: Final = Outcome.UNKNOWN
