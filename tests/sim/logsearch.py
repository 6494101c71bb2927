"""Exhaustive search of the real Log code: all interleavings of owners, zombies, late and lost answers,
checkpoints, collection, owner reads and store reads, over an in-memory store (LOG section 9).

Every node runs a real `LogCore`, every store read a real `LogReader`, and objects are real bytes
(`tests.sim.machines`). A step of the search performs one effect of one machine, delivers one answer, or lets a
client act. A crash is a node that is never stepped again; a zombie is one that is stepped late. Worlds are
compared exactly and visited breadth first, so a violation is reported with a shortest history.

``python -m tests.sim.logsearch`` searches larger bounds than the tests do.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from storage.errors import StorageError
from storage.frames import ObjectKind, decode_object
from storage.log import LogCore, Phase
from storage.logreader import LogReader
from tests.sim.machines import ABSENT, CREATED, EXISTS, UNKNOWN, Event, Machines, Step, Violation, answer_to

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Bounds", "Search", "Violation"]


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How much may happen in one history. ``opens`` counts open objects, so ``opens - 1`` take-overs."""

    nodes: int = 2
    rows: int = 2
    opens: int = 2
    checkpoints: int = 0
    owner_reads: int = 0
    store_reads: int = 0
    lost: int = 0  # creates whose answer is lost, and that may land later
    refused: int = 0  # creates that the store certainly refused
    closes: int = 0  # nodes that let go by themselves
    again: int = 0  # writes that are sent once more under the same id (L7)
    forget: bool = False  # Checkpoints that move the horizon up and forget all ids
    compact: bool = False  # Checkpoints that repeat the k in force
    full_rows: int = 0  # so many replayed rows need a Checkpoint on the way (L23)
    states_max: int = 5_000_000


class World(NamedTuple):
    """Everything at one moment. Machines and stores are numbers; sets of rows are bits."""

    store: int
    nodes: tuple[int, ...]
    reader: int = ABSENT
    reader_need: int = 0
    ghosts: tuple[Event, ...] = ()  # sent, and on their way
    acked: int = 0
    observed: int = 0
    failed: int = 0
    needs: tuple[tuple[int, int], ...] = ()  # (read, rows it must return)
    rows: int = 0
    opens: int = 0
    checkpoints: int = 0
    owner_reads: int = 0
    store_reads: int = 0
    lost: int = 0
    refused: int = 0
    closes: int = 0
    again: int = 0
    resent: int = 0  # of a write that was sent again, one try's "not written" says nothing of the other
    born: tuple[int, ...] = ()  # of each row: what the writer knew of the Log when it first tried


class Stores:
    """Contents of the store, by number, each judged once."""

    def __init__(self, machines: Machines, judge_objects: bool) -> None:
        self.contents: list[dict[int, int]] = []
        self.names: list[tuple[int, ...]] = []
        self._machines = machines
        self._judge_objects = judge_objects
        self._numbers: dict[tuple[tuple[int, int], ...], int] = {}
        self._rows: dict[int, int] = {}
        self._puts: dict[tuple[int, int, int], int] = {}

    def number(self, content: dict[int, int]) -> int:
        key = tuple(sorted(content.items()))
        number = self._numbers.setdefault(key, len(self.contents))
        if number == len(self.contents):
            self.contents.append(content)
            self.names.append(tuple(s for s, _ in key))
        return number

    def put(self, store: int, sequence: int, blob: int) -> int:
        """Create exclusively: the first one wins (L1)."""
        key = (store, sequence, blob)
        if key not in self._puts:
            content = dict(self.contents[store])
            content.setdefault(sequence, blob)
            self._puts[key] = self.number(content)
        return self._puts[key]

    def delete(self, store: int, sequence: int) -> int:
        if sequence not in self.contents[store]:
            return store
        return self.number({s: b for s, b in self.contents[store].items() if s != sequence})

    def rows(self, store: int) -> int:
        """What a node that reads the store now would see. Raises when the Log is damaged or breaks L2, L11."""
        if store not in self._rows:
            self._check_objects(store)
            self._rows[store] = self._read(store)
        return self._rows[store]

    def _read(self, store: int) -> int:
        content, names, machines = self.contents[store], self.names[store], self._machines
        step, met = machines.start_read(LogReader), set[int]()
        while step.machine >= 0:
            if step.machine in met:
                raise Violation("the Log is damaged: a store read starts over for ever")
            met.add(step.machine)
            asked = machines.nodes[step.machine].pending[0]
            step = machines.step(step.machine, ("perform", 0, *answer_to(asked, content, names)))
        ((what, outcome),) = step.notices
        if what == "violation":
            raise Violation(f"the Log is damaged: {outcome}")
        return int(outcome)

    def _check_objects(self, store: int) -> None:
        content = self.contents[store]
        if not content or not self._judge_objects:
            return
        headers = {s: decode_object(self._machines.blobs[b], "search").header for s, b in content.items()}
        last = headers[max(headers)]
        newest = max((s for s, h in headers.items() if h.kind is ObjectKind.CHECKPOINT), default=0)
        named = last.sequence if last.kind is ObjectKind.CHECKPOINT else last.checkpoint_seq
        if named != newest:
            raise Violation(f"the last object, {last.sequence}, names Checkpoint {named}; the newest is {newest} (L2)")
        for header in headers.values():
            if header.epoch not in headers:
                raise Violation(f"the open object of epoch {header.epoch} is gone (L11)")


class Search:
    """Breadth-first over all interleavings within `Bounds`. The classes let a test break a rule on purpose, and
    ``judge_objects=False`` leaves L2 and L11 to their consequences."""

    def __init__(
        self,
        bounds: Bounds,
        core_class: type[LogCore] = LogCore,
        reader_class: type[LogReader] = LogReader,
        *,
        judge_objects: bool = True,
    ) -> None:
        self.bounds = bounds
        self.reached: set[str] = set()
        self.machines = Machines(core_class, reader_class, bounds.full_rows)
        self.stores = Stores(self.machines, judge_objects)
        self._doing = ""

    # -- steps from one world to the next ----------------------------------------------------------------

    def steps(self, world: World) -> Iterator[World]:
        """Every world that may follow; `_doing` says what leads to the one just given."""
        content = self.stores.contents[world.store]
        yield from self._ghost_steps(world)
        for index, machine in enumerate(world.nodes):
            if machine < 0:
                # Nodes are alike: the second starts only after the first has.
                if world.opens < self.bounds.opens and (index == 0 or world.nodes[index - 1] != ABSENT):
                    self._doing = f"N{index} starts, lists up to {max(content, default=0)}"
                    yield self._after(world, index, self.machines.start(index, self.stores.names[world.store]))
                continue
            yield from self._store_steps(world, index, machine)
            yield from self._answer_steps(world, index, machine)
            yield from self._client_steps(world, index, machine)
        yield from self._reader_steps(world)

    def _ghost_steps(self, world: World) -> Iterator[World]:
        """What was sent reaches the store now, whoever waits or not."""
        for position, ghost in enumerate(world.ghosts):
            if ghost in world.ghosts[:position]:
                continue
            rest = (*world.ghosts[:position], *world.ghosts[position + 1 :])
            if ghost[0] == "delete":
                self._doing = f"a late delete of {ghost[1]} arrives"
                yield world._replace(store=self.stores.delete(world.store, ghost[1]), ghosts=rest)
                continue
            free = ghost[1] not in self.stores.contents[world.store]
            if free:
                self.reached.add("late landing")
            self._doing = f"a late create of {ghost[1]} arrives: {'stands' if free else 'exists'}"
            yield world._replace(store=self.stores.put(world.store, ghost[1], ghost[2]), ghosts=rest)

    def _store_steps(self, world: World, index: int, machine: int) -> Iterator[World]:
        """One effect of a node is performed."""
        content = self.stores.contents[world.store]
        for position, asked in enumerate(self.machines.nodes[machine].pending):
            if asked[0] == "create":
                yield from self._create_steps(world, index, machine, position, asked)
                continue
            answer = answer_to(asked, content, self.stores.names[world.store])
            before = world
            if asked[0] == "delete":
                self.reached.add("collected")
                before = world._replace(store=self.stores.delete(world.store, asked[1]))
            elif asked[0] == "settle":
                self.reached.add("own nonce")
            self._doing = f"N{index}: {' '.join(map(str, asked))} -> {' '.join(map(str, answer))}"
            yield self._after(before, index, self.machines.step(machine, ("perform", position, *answer)))

    def _create_steps(self, world: World, index: int, machine: int, position: int, asked: Event) -> Iterator[World]:
        _, sequence, blob, opening = asked
        if opening and world.opens >= self.bounds.opens:
            return  # two nodes may overtake each other for ever: the number of open objects bounds a history
        world = world._replace(opens=world.opens + 1) if opening else world
        free = sequence not in self.stores.contents[world.store]
        landed = self.stores.put(world.store, sequence, blob)
        fate = "stands" if free else "exists"

        def step(*answer: object) -> Step:
            return self.machines.step(machine, ("perform", position, *answer))

        self._doing = f"N{index}: create {sequence} {fate}"
        known = step("created", sequence, CREATED if free else EXISTS)
        yield self._after(world._replace(store=landed), index, known)
        if world.lost < self.bounds.lost:
            self._doing = f"N{index}: create {sequence} {fate}, the answer is lost"
            lost = world._replace(lost=world.lost + 1)
            yield self._after(lost._replace(store=landed), index, step("created", sequence, UNKNOWN))
            self._doing = f"N{index}: create {sequence} is delayed, no answer"
            ghosts = tuple(sorted((*world.ghosts, ("create", sequence, blob))))
            yield self._after(lost._replace(ghosts=ghosts), index, step("created", sequence, UNKNOWN))
        if world.refused < self.bounds.refused:
            self._doing = f"N{index}: create {sequence} is refused"
            self.reached.add("refused")
            refused = world._replace(refused=world.refused + 1)
            yield self._after(refused, index, step("create_failed", sequence))

    def _answer_steps(self, world: World, index: int, machine: int) -> Iterator[World]:
        """An answer that was on its way reaches its node."""
        for position, answer in enumerate(self.machines.nodes[machine].answers):
            self._doing = f"N{index} hears {' '.join(map(str, answer))}"
            yield self._after(world, index, self.machines.step(machine, ("deliver", position)))

    def _client_steps(self, world: World, index: int, machine: int) -> Iterator[World]:
        """Somebody asks a node for something."""
        for event, before in self._client_events(world, machine):
            self._doing = f"N{index}: {' '.join(map(str, event))}"
            yield self._after(before, index, self.machines.step(machine, event))

    def _client_events(self, world: World, machine: int) -> Iterator[tuple[Event, World]]:
        node, bounds = self.machines.nodes[machine], self.bounds
        if world.closes < bounds.closes:
            yield ("close",), world._replace(closes=world.closes + 1)
        phase = node.core.phase
        if phase in (Phase.OWNER, Phase.PAUSED):
            if node.frozen is not None:
                yield ("commit",), world
            elif not node.committing and (world.checkpoints < bounds.checkpoints or phase is Phase.PAUSED):
                more = world._replace(checkpoints=world.checkpoints + (phase is Phase.OWNER))
                yield ("freeze",), more
                if bounds.forget:
                    yield ("forget",), more
                if bounds.compact and node.core.state.k:
                    yield ("compact",), more
        if phase is not Phase.OWNER:
            return
        if world.rows < bounds.rows and not node.core.queued:
            more = world._replace(rows=world.rows + 1)
            if bounds.again:
                more = more._replace(born=(*world.born, node.core.next_seq - 1))
            yield ("append", world.rows), more
        if world.again < bounds.again:
            yield from self._sent_again(world, machine)
        if node.collect:
            yield ("collect",), world
        if world.owner_reads < bounds.owner_reads:
            need = (world.owner_reads, world.acked | world.observed)
            yield (
                ("prove", world.owner_reads),
                world._replace(owner_reads=world.owner_reads + 1, needs=(*world.needs, need)),
            )

    def _sent_again(self, world: World, machine: int) -> Iterator[tuple[Event, World]]:
        """L7: whoever has heard no answer tries once more, here or at another owner; also if one was given."""
        for row in range(world.rows):
            bit = 1 << row
            tried = world._replace(again=world.again + 1, failed=world.failed & ~bit, resent=world.resent | bit)
            if self.machines.known(machine, row):
                self.reached.add("known id")
                tried = tried._replace(acked=tried.acked | bit)
            elif world.born[row] < self.machines.nodes[machine].core.state.horizon:
                self.reached.add("refused below the horizon")
            yield ("again", row, world.born[row]), tried

    def _reader_steps(self, world: World) -> Iterator[World]:
        if world.reader == ABSENT:
            if world.store_reads >= self.bounds.store_reads:
                return
            # It lists at once: had it begun earlier, it would need no more than it does now.
            need = world.acked | world.observed
            began = world._replace(
                reader=self.machines.start_read().machine, reader_need=need, store_reads=world.store_reads + 1
            )
            self._doing = "a store read begins"
            yield from self._reader_steps(began)
            return
        asked = self.machines.nodes[world.reader].pending[0]
        answer = answer_to(asked, self.stores.contents[world.store], self.stores.names[world.store])
        self._doing = f"store read: {' '.join(map(str, asked))} -> {' '.join(map(str, answer))}"
        step = self.machines.step(world.reader, ("perform", 0, *answer))
        if step.machine != ABSENT:
            yield world._replace(reader=step.machine)
            return
        ((what, rows),) = step.notices
        if what == "violation":
            raise Violation(rows)
        if world.reader_need & ~rows:
            raise Violation(f"a store read returns rows {rows:b}, needed {world.reader_need:b}")
        self.reached.add("store read")
        yield world._replace(reader=ABSENT, reader_need=0, observed=world.observed | rows)

    # -- what the world hears ----------------------------------------------------------------------------

    def _after(self, world: World, index: int, step: Step) -> World:
        nodes = (*world.nodes[:index], step.machine, *world.nodes[index + 1 :])
        world = world._replace(nodes=nodes)
        for what, *details in step.notices:
            world = self._hear(world, what, details)
        return world

    def _hear(self, world: World, what: str, details: list[object]) -> World:
        self.reached.add(what)
        match what, details:
            case "violation", [str() as message]:
                raise Violation(message)
            case "acked", [int() as rows]:
                return world._replace(acked=world.acked | rows)
            case "not written", [int() as rows]:
                return world._replace(failed=world.failed | rows & ~world.resent)
            case "proved", [tuple() as reads, int() as rows]:
                return self._proved(world, reads, rows)
            case "reads failed", [tuple() as reads]:
                return world._replace(needs=tuple(n for n in world.needs if n[0] not in reads))
            case "left behind", [tuple() as asked]:
                return world._replace(ghosts=tuple(sorted((*world.ghosts, asked))))
        return world

    def _proved(self, world: World, reads: tuple[int, ...], rows: int) -> World:
        for read, need in world.needs:
            if read in reads and need & ~rows:
                raise Violation(f"an owner read returns rows {rows:b}, needed {need:b}")
        self.reached.add("owner read")
        needs = tuple(n for n in world.needs if n[0] not in reads)
        return world._replace(needs=needs, observed=world.observed | rows)

    # -- what must hold in every world -------------------------------------------------------------------

    def judge(self, world: World) -> None:
        rows = self.stores.rows(world.store)
        if world.acked & ~rows:
            raise Violation(f"acknowledged rows {world.acked & ~rows:b} are lost")
        if world.observed & ~rows:
            raise Violation(f"rows {world.observed & ~rows:b} were seen and are gone")
        if world.failed & rows:
            raise Violation(f"rows {world.failed & rows:b} were reported as not written and stand")

    def run(self) -> int:
        """Search everything; return the number of worlds. Raises `Violation` with a shortest history."""
        start = World(self.stores.number({}), (ABSENT,) * self.bounds.nodes)
        gc.disable()  # nothing here is circular, and millions of tuples are tedious to walk
        try:
            return self._search(start)
        finally:
            gc.enable()

    def _search(self, start: World) -> int:
        seen: dict[World, World | None] = {start: None}
        queue = deque([start])
        while queue:
            world = queue.popleft()
            try:
                for new in self.steps(world):
                    if new not in seen:
                        seen[new] = world
                        self.judge(new)
                        queue.append(new)
            except (Violation, AssertionError, StorageError) as error:
                raise Violation(
                    "\n  ".join((str(error) or repr(error), *self._path(seen, world), self._doing))
                ) from error
            assert len(seen) <= self.bounds.states_max, "the search is larger than its bound"
        return len(seen)

    def _path(self, seen: dict[World, World | None], world: World) -> list[str]:
        """What led to ``world``, by taking the steps to it once more."""
        doing, names = self._doing, []
        before = seen[world]
        while before is not None:
            for new in self.steps(before):
                if new == world:
                    names.append(self._doing)
                    break
            world, before = before, seen[before]
        self._doing = doing
        return names[::-1]


LARGE = {
    "owner reads": Bounds(rows=2, owner_reads=1, checkpoints=1, lost=1),
    "owner reads, two checkpoints": Bounds(rows=1, owner_reads=1, checkpoints=2, compact=True),
    "owner reads, two take-overs": Bounds(nodes=3, opens=3, rows=1, owner_reads=1, checkpoints=1),
    "store reads": Bounds(rows=2, store_reads=1, checkpoints=1, lost=1),
    "both reads": Bounds(rows=1, owner_reads=1, store_reads=1, checkpoints=1),
    "two take-overs": Bounds(nodes=3, opens=3, rows=2, checkpoints=1),
    "three take-overs": Bounds(nodes=3, opens=4, rows=2, checkpoints=1, states_max=8_000_000),
    "refusals": Bounds(rows=2, checkpoints=1, refused=1, closes=1, lost=1),
    "write ids": Bounds(nodes=3, opens=3, rows=1, checkpoints=1, again=1, forget=True),
    "replay that pauses": Bounds(nodes=3, opens=3, rows=2, checkpoints=1, full_rows=1),
}
"""Larger bounds: one to six million worlds each, up to two minutes."""


def main() -> None:
    for name, bounds in LARGE.items():
        if len(sys.argv) > 1 and not any(word in name for word in sys.argv[1:]):
            continue
        begun = time.process_time()
        search = Search(bounds)
        states = search.run()
        print(f"{name}: holds in {states:,} states, {time.process_time() - begun:.0f} s; {sorted(search.reached)}")


if __name__ == "__main__":
    main()
