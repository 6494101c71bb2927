"""The queries that wait or run in one engine: the phase of each, the seconds in each phase, what it has handed out.

A registry without I/O. `engine.engine` and `engine.stream` drive it, at each change of phase and once for each batch,
never for a row; `views` may be called from any thread.
"""

from __future__ import annotations

import enum
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from engine.errors import NoSuchQuery, QueryKilled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engine.ladder import Rung

TEXT_CHARACTERS_MAX: Final = 2_000
"""Of a statement; what is longer is cut and ends with `CUT`."""
CUT: Final = "..."
ID_BYTES: Final = 8
DONE: Final = "done"
"""The outcome of a query whose result is whole; of others it is the code of their error."""


class Phase(enum.StrEnum):
    """What a query is doing."""

    WAITING = "waiting"
    """For a place among the running ones."""
    PLANNING = "planning"
    """Snapshots of its tables, and the plan."""
    RUNNING = "running"
    """The next batch is being computed."""
    SENDING = "sending"
    """The reader has a batch, and has not asked for the next."""


NEXT: Final[Mapping[Phase, frozenset[Phase]]] = {
    Phase.WAITING: frozenset({Phase.PLANNING}),
    Phase.PLANNING: frozenset({Phase.RUNNING, Phase.WAITING}),
    Phase.RUNNING: frozenset({Phase.SENDING, Phase.WAITING}),
    Phase.SENDING: frozenset({Phase.RUNNING}),
}
"""What may follow. Back to waiting: the statement is planned once more (`engine.engine.PLANS_MAX`)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks: the door's name, the client's HOST:PORT, the id of its request. What is not known is empty."""

    door: str = ""
    client: str = ""
    request_id: str = ""


UNKNOWN_ORIGIN: Final = Origin()


@dataclass(frozen=True, slots=True)
class QueryView:
    """One query at one moment. ``seconds`` has every phase; ``bytes`` are of its batches as Arrow IPC messages.

    ``files`` and ``file_bytes`` are the DataFiles of its tables' snapshots: the most that it may read. ``rung`` is None
    until it is planned; ``workers`` is how many have tasks of it.
    """

    id: str
    database: str
    text: str
    origin: Origin
    started_ns: int
    phase: Phase
    seconds: Mapping[Phase, float]
    rows: int
    bytes: int
    files: int
    file_bytes: int
    rung: Rung | None
    workers: int

    @property
    def total_seconds(self) -> float:
        """Since it came."""
        return sum(self.seconds.values())


EndListener: TypeAlias = "Callable[[QueryView, str], None]"
"""Called with what a query was at its end, and its outcome: `DONE` or an error's code."""


class RunningQuery:
    """One query from its arrival to its end. In the event loop's thread, but for `view` and `runs_on`."""

    def __init__(self, registry: RunningQueries, database: str, text: str, origin: Origin) -> None:
        is_long = len(text) > TEXT_CHARACTERS_MAX
        self.id = secrets.token_hex(ID_BYTES)
        self.database = database
        self.text = text[: TEXT_CHARACTERS_MAX - len(CUT)] + CUT if is_long else text
        self.origin = origin
        self.phase = Phase.WAITING
        self.is_killed = False
        self._registry = registry
        self._started_ns = time.time_ns()
        self._since = registry.clock()
        self._seconds = dict.fromkeys(Phase, 0.0)
        self._rows = self._bytes = self._files = self._file_bytes = 0
        self._place: tuple[Rung | None, int] = None, 0
        self._stop: Callable[[], None] | None = None

    def enter(self, phase: Phase) -> None:
        """The next phase; one of `NEXT`."""
        assert phase in NEXT[self.phase], f"{self.phase} -> {phase}"
        now = self._registry.clock()
        self._seconds[self.phase] += now - self._since
        self.phase, self._since = phase, now

    def reads(self, files: int, file_bytes: int) -> None:
        """What its snapshots hold."""
        self._files, self._file_bytes = files, file_bytes

    def runs_on(self, rung: Rung, workers: int) -> None:
        """Where it runs from now on, and how many workers have tasks of it."""
        self._place = rung, workers

    def hands_out(self, rows: int, bytes: int) -> None:
        """The reader gets a batch."""
        self._rows += rows
        self._bytes += bytes
        self.enter(Phase.SENDING)

    def stop_by(self, stop: Callable[[], None]) -> None:
        """From now on ``stop`` is what ends it early; it may be called once."""
        self._stop = stop

    def kill(self) -> None:
        """End it with `killed`. Idempotent."""
        if not self.is_killed:
            self.is_killed = True
            if self._stop is not None:
                self._stop()

    def killed(self) -> QueryKilled:
        """What its reader gets then."""
        return QueryKilled(f"query {self.id} was killed by an operator, with KILL QUERY")

    def view(self) -> QueryView:
        """What it is now."""
        seconds = dict(self._seconds)
        seconds[self.phase] += max(0.0, self._registry.clock() - self._since)
        return QueryView(
            self.id, self.database, self.text, self.origin, self._started_ns, self.phase, seconds,
            self._rows, self._bytes, self._files, self._file_bytes, *self._place,
        )  # fmt: skip

    def end(self, outcome: str) -> None:
        """It is over, and listed no more. Only the first outcome counts."""
        self._registry.forget(self, outcome)


class RunningQueries:
    """All queries of one engine. ``clock`` gives seconds; ``on_end`` hears of each query's end."""

    def __init__(self, on_end: EndListener | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._on_end = on_end
        self._queries: dict[str, RunningQuery] = {}

    def add(self, database: str, text: str, origin: Origin = UNKNOWN_ORIGIN) -> RunningQuery:
        """A query has come; it waits."""
        query = RunningQuery(self, database, text, origin)
        self._queries[query.id] = query
        return query

    def forget(self, query: RunningQuery, outcome: str) -> None:
        """`RunningQuery.end` calls it."""
        if self._queries.pop(query.id, None) is not None and self._on_end is not None:
            self._on_end(query.view(), outcome)

    def views(self) -> Sequence[QueryView]:
        """Every query, the oldest first."""
        return [query.view() for query in list(self._queries.values())]

    def counts(self) -> tuple[int, int]:
        """How many run, in any phase, and how many wait."""
        waiting = sum(query.phase is Phase.WAITING for query in self._queries.values())
        return len(self._queries) - waiting, waiting

    def kill(self, id: str) -> QueryView:
        """End a query that waits or runs; what it was until now. Raises NoSuchQuery."""
        query = self._queries.get(id)
        if query is None:
            raise NoSuchQuery(f"no query with the id {id[:100]!r} waits or runs: see system.queries")
        view = query.view()
        query.kill()
        return view
