"""Ray: the one module that imports it. Actors that run tasks, kept alive by a thread of their own.

Nothing happens before a statement is large enough to want workers. Then the keeper's thread joins Ray, or starts it;
statements that come before it is ready, and all while no head answers, run in their own process. The head's port is
tried before Ray is: `ray.init` waits for minutes for a head that is not there, and Ray ends a process whose head has
been gone for a minute, so the keeper lets Ray go first. `engine.staged` calls `run` for each statement. A process has
one connection to Ray, so who has other work for it hires an actor here too: `nodes.raymerge`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from engine.ladder import Gathered, TaskFailed, WorkersLost
from engine.stages import walk
from engine.tasks import TaskInputs
from engine.worker import QueryWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from concurrent.futures import Future

    from engine.stages import Node, Stages, Task
    from engine.tasks import Blob, TaskFigures
    from engine.worker import WorkerSetup

LOOK_SECONDS: Final = 2.0
"""How often the keeper looks after head and actors."""
HEAD_SECONDS: Final = 10.0
"""A head that is silent for so long is given up: Ray would end this process after a minute."""
START_SECONDS: Final = 120.0
"""An actor that has just been started may take so long to answer, on a machine that is busy."""
HELLO_SECONDS: Final = 30.0
"""The same for one that is started again; when none of them answers, Ray is let go, and joined anew."""
PING_SECONDS: Final = 3.0
"""An actor lost from sight gets so long to say that it is there, before a statement goes on without it."""
SILENT_SECONDS: Final = 30.0
"""An actor that neither answers nor finishes a task for so long is given up, with the statements that wait for it."""
STOP_SECONDS: Final = 2.0
"""An actor that does not answer so long after its tasks were cancelled is killed; Ray starts it again."""
CONCURRENCY: Final = 64
"""Calls of one actor, most of which wait; a ping must always find a place."""
NAMESPACE: Final = "runnel"

log = structlog.get_logger(__name__)


class Head(Protocol):
    """Where Ray is; `nodes.rayhead` knows. All of it blocks, and is called in the keeper's thread."""

    @property
    def label(self) -> str:
        """For messages."""
        ...

    def prepare(self) -> dict[str, Any]:
        """Make the process ready for Ray, before it is imported; the arguments of ``ray.init``."""
        ...

    def is_reachable(self) -> bool:
        """Whether a head that is not ours answers; true if we start our own."""
        ...

    def answers(self, address: str) -> bool:
        """Whether something listens at HOST:PORT."""
        ...


@dataclass(eq=False)
class _Actor:
    """One actor. ``is_lost``: it did not answer, and gets no tasks until it does."""

    handle: Any
    pid: int
    is_lost: bool = False
    _asked: Future[Any] | None = None
    _asked_at: float = 0.0

    def silent_seconds(self, now: float) -> float:
        """How long it has not answered what it was asked; then it is asked anew."""
        if self._asked is None or self._asked.done():
            self._asked, self._asked_at = self.handle.hello.remote().future(), now
        return now - self._asked_at


@dataclass(eq=False)
class _Session:
    """One time of being joined to a Ray cluster."""

    ray: Any
    address: str
    actors: list[_Actor] = field(default_factory=list)
    turn: Iterator[int] = field(default_factory=itertools.count)
    running: set[_Run] = field(default_factory=set)
    hired: set[Hired] = field(default_factory=set)
    silent_since: float | None = None

    def able(self) -> list[_Actor]:
        return [actor for actor in self.actors if not actor.is_lost]


class RayWorkers:
    """`engine.ladder.Workers` on Ray actors. ``actors`` None: one for each CPU of the cluster."""

    def __init__(
        self, head: Head, setup: Callable[[], WorkerSetup], actors: int | None, shuffle_bytes_max: int
    ) -> None:
        self._head = head
        self._setup = setup
        self._count = actors
        self._shuffle_bytes_max = shuffle_bytes_max
        self._session: _Session | None = None
        self._wants_actors = False
        self._reason = "Ray has not been needed yet"
        self._lock = threading.Lock()
        self._keeper: threading.Thread | None = None
        self._wake = threading.Event()
        self._closing = False

    # -- engine.ladder.Workers ---------------------------------------------------------------------------

    def slots(self) -> int:
        session = self._session
        self._wants_actors = True
        if session is None:
            self._ask()
            return 0
        busy = sum(run.pending for run in list(session.running))
        return max(0, len(session.able()) - busy)

    def reason(self) -> str:
        session = self._session
        if session is None:
            return self._reason
        if not session.actors:
            return self._reason or "its workers are being started"
        return f"{len(session.able())} workers of {len(session.actors)} are there, and too few of them are free"

    async def run(self, stages: Stages, began: Callable[[int], None] = lambda workers: None) -> Gathered:
        session = self._session
        if session is None:
            raise WorkersLost(self._reason)
        actors = await self._ready(session)
        run = _Run(session, stages, actors, self._shuffle_bytes_max)
        session.running.add(run)
        try:
            return await run.result(began)
        except WorkersLost:
            for actor in actors:
                actor.is_lost = True  # until it says otherwise
            raise
        finally:
            session.running.discard(run)
            if not run.is_done:
                await asyncio.shield(asyncio.to_thread(self._stop_run, session, run))

    async def aclose(self) -> None:
        self._closing = True
        self._wake.set()
        keeper = self._keeper
        if keeper is not None:
            await asyncio.to_thread(keeper.join, HEAD_SECONDS)

    # -- other work --------------------------------------------------------------------------------------

    async def hire(self, kind: type, *arguments: object) -> Hired:
        """An actor of ``kind``, two methods of which may run at once. Asks for Ray if it is not there.

        It is there when it answers the first call. Raises WorkersLost.
        """
        session = self._session
        if session is None:
            self._ask()
            raise WorkersLost(self._reason)
        hired = Hired(session)
        session.hired.add(hired)
        try:
            await asyncio.to_thread(hired.start, kind, arguments)
        except BaseException:
            session.hired.discard(hired)  # Ray ends an actor that nobody holds
            raise
        return hired

    # -- statements --------------------------------------------------------------------------------------

    async def _ready(self, session: _Session) -> list[_Actor]:
        """The actors that can be given tasks. Those lost from sight are asked, if no other is left or all were lost."""
        if not session.able():
            await asyncio.to_thread(_ping, session, session.actors, PING_SECONDS)
        able = session.able()
        if not able:
            self._wake.set()
            raise WorkersLost("no worker answers")
        return able

    def _stop_run(self, session: _Session, run: _Run) -> None:
        """Cancel what a statement still has under way; an actor that cannot stop is started anew by the keeper."""
        run.cancel()
        watcher = threading.Thread(target=_kill_silent, args=(session, run.actors), name="ray-stop", daemon=True)
        watcher.start()

    # -- the keeper --------------------------------------------------------------------------------------

    def _ask(self) -> None:
        with self._lock:
            if self._keeper is None and not self._closing:
                self._reason = "Ray is being started; until it is there queries run in their own process"
                self._keeper = threading.Thread(target=self._keep, name="ray-keeper", daemon=True)
                self._keeper.start()

    def _keep(self) -> None:
        said = ""
        while not self._closing:
            try:
                self._look()
                said = ""
            except Exception as error:  # noqa: BLE001 - Ray raises everything there is; queries go on without it
                self._reason = f"no Ray at {self._head.label}: {error}"
                if said != str(error):
                    log.warning("large queries run in their own process", reason=self._reason)
                said = str(error)
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()
        self._leave("the engine is closing")

    def _look(self) -> None:
        """Join if there is no session; else look after the one there is."""
        session = self._session or self._join()
        if self._head.answers(session.address):
            session.silent_since = None
        else:
            session.silent_since = session.silent_since or time.monotonic()
            if time.monotonic() - session.silent_since >= HEAD_SECONDS:
                self._leave("the Ray head does not answer")
                return
        if session.silent_since is None and not session.actors and self._wants_actors:
            session.actors, self._reason = self._start_actors(session.ray), ""
            log.info("large queries run on Ray", address=session.address, workers=len(session.actors))
        lost = [actor for actor in session.actors if actor.is_lost]
        _ping(session, lost, PING_SECONDS)
        _give_up_silent(session)
        if session.silent_since is None and session.actors and not session.able():
            _ping(session, session.actors, HELLO_SECONDS)
            if not session.able():
                self._leave("no worker answers")

    def _join(self) -> _Session:
        if not self._head.is_reachable():
            raise ConnectionError("its port does not answer")
        options = self._head.prepare()
        logging.getLogger("ray").setLevel(logging.ERROR)  # it warns that a thread other than the main one starts it
        import ray

        if ray.is_initialized():
            ray.shutdown()
        ray.init(namespace=NAMESPACE, log_to_driver=False, configure_logging=False, **options)
        try:
            session = self._session = _Session(ray, ray.get_runtime_context().gcs_address)
        except BaseException:
            ray.shutdown()
            raise
        self._reason = ""
        return session

    def _start_actors(self, ray: Any) -> list[_Actor]:
        setup = self._setup()
        count = self._count or max(1, int(ray.cluster_resources().get("CPU", 1)))
        kind = ray.remote(
            num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=CONCURRENCY, scheduling_strategy="SPREAD"
        )(QueryWorker)
        handles = [kind.remote(setup) for _ in range(count)]
        found = ray.get([handle.hello.remote() for handle in handles], timeout=START_SECONDS)
        foreign = [build for _, build in found if build != setup.build]
        if foreign:
            raise RuntimeError(f"its workers run another Runnel: {foreign[0]}, and here it is {setup.build}")
        return [_Actor(handle, pid) for handle, (pid, _) in zip(handles, found, strict=True)]

    def _leave(self, reason: str) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        self._reason = f"no Ray at {self._head.label}: {reason}"
        if not self._closing:
            log.warning("large queries run in their own process", reason=self._reason)
        for waiting in [*session.running, *session.hired]:
            waiting.lose(reason)
        with contextlib.suppress(Exception):
            session.ray.shutdown()


class _Waiting:
    """Waits for answers of Ray's, until Ray is gone."""

    def __init__(self, session: _Session) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[str] = self._loop.create_future()

    def lose(self, reason: str) -> None:
        """Ray is gone, and nothing will be answered any more. From any thread."""

        def say() -> None:
            if not self._lost.done():
                self._lost.set_result(reason)

        with contextlib.suppress(RuntimeError):  # its event loop has ended
            self._loop.call_soon_threadsafe(say)

    async def _unless_lost(self, work: Coroutine[Any, Any, Any]) -> Any:
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._lost}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise WorkersLost(self._lost.result())
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _wait(self, ref: Any) -> Any:
        try:
            return await asyncio.wrap_future(ref.future())
        except Exception as error:
            raise _meaning(self._session.ray, error) from error


class Hired(_Waiting):
    """An actor for other work than queries. It ends when it is dismissed, with this process, or with Ray."""

    def __init__(self, session: _Session) -> None:
        super().__init__(session)
        self._handle: Any = None

    def start(self, kind: type, arguments: Sequence[object]) -> None:
        """`RayWorkers.hire` calls it. Blocking. Raises WorkersLost."""
        try:
            made = self._session.ray.remote(
                num_cpus=0, max_restarts=0, max_task_retries=0, max_concurrency=2, scheduling_strategy="SPREAD"
            )(kind)
            self._handle = made.remote(*arguments)
        except Exception as error:
            raise WorkersLost(f"no actor could be started: {error}") from error

    async def call(self, method: str, *arguments: object) -> Any:
        """What a method of it answers. Raises WorkersLost, and TaskFailed with what the method raised.

        To cancel this does not end the method: dismissing the actor does.
        """
        try:
            ref = getattr(self._handle, method).remote(*arguments)
        except Exception as error:
            raise WorkersLost(str(error)) from error
        return await self._unless_lost(self._wait(ref))

    def dismiss(self) -> None:
        """End its process, whatever it does. Blocking. Idempotent."""
        self._session.hired.discard(self)
        with contextlib.suppress(Exception):
            self._session.ray.kill(self._handle)


class _Run(_Waiting):
    """The tasks of one statement. They are all handed in at once: Ray starts each when what it reads is there."""

    def __init__(self, session: _Session, stages: Stages, actors: list[_Actor], bytes_max: int) -> None:
        super().__init__(session)
        self.actors = actors
        self.is_done = False
        self.pending = 0
        self.given: frozenset[_Actor] = frozenset()
        """Those that have tasks of it."""
        self.moved_at = time.monotonic()
        """When the last of its tasks was done."""
        self._stages = stages
        self._bytes_max = bytes_max
        self._refs: list[Any] = []
        self._outputs: dict[tuple[int, int], list[Any]] = {}
        self._cancelled = threading.Event()

    async def result(self, began: Callable[[int], None]) -> Gathered:
        """Raises WorkersLost, TaskFailed."""
        self.given = await asyncio.to_thread(self._submit)
        began(len(self.given))
        figures = await self._unless_lost(self._finish())
        last = self._stages.last
        inputs = await self._unless_lost(self._inputs(last))
        self.is_done = True
        return Gathered(inputs, figures)

    def cancel(self) -> None:
        """Cancel every task. Blocking."""
        self._cancelled.set()
        for ref in self._refs:
            with contextlib.suppress(Exception):
                self._session.ray.cancel(ref)

    def _submit(self) -> frozenset[_Actor]:
        """Hand all tasks in; the actors that have some. Blocking. Raises TaskFailed."""
        try:
            return frozenset(self._submit_all())
        except Exception as error:
            raise TaskFailed(f"its tasks could not be handed in: {error}") from error

    def _submit_all(self) -> set[_Actor]:
        ray = self._session.ray
        given: set[_Actor] = set()
        held = [ray.put(_as_buffer(rows)) for rows in self._stages.held]
        for stage, found in enumerate(self._stages.stages[:-1]):
            places = _places(found.plan) or self._session.turn
            for task in self._stages.tasks(stage):
                if self._cancelled.is_set():
                    return given
                reads = [self._refs_of(read) for read in task.reads]
                arguments = [ref for refs in reads for ref in refs] + [held[at] for at in task.held]
                actor = self.actors[next(places) % len(self.actors)]
                call = actor.handle.run.options(num_returns=1 + task.outputs)
                figures, *outputs = call.remote(task, [len(refs) for refs in reads], *arguments)
                self._refs.append(figures)
                if self._cancelled.is_set():  # while it was handed in: `cancel` may not have met it
                    ray.cancel(figures)
                self._outputs[stage, task.number] = outputs
                self.pending += 1
                given.add(actor)
        return given

    def _refs_of(self, read: tuple[int, int]) -> list[Any]:
        stage, output = read
        return [self._outputs[stage, number][output] for number in range(self._stages.stages[stage].tasks)]

    async def _finish(self) -> tuple[TaskFigures, ...]:
        """All figures; a failure as soon as there is one."""
        found: list[TaskFigures] = []
        waiting = [asyncio.ensure_future(self._wait(ref)) for ref in self._refs]
        try:
            for done in asyncio.as_completed(waiting):
                found.append(await done)
                self.pending -= 1
                self.moved_at = time.monotonic()
                if sum(one.bytes for one in found) > self._bytes_max:
                    raise TaskFailed(f"its stages exchange more than ray.shuffle_bytes_max ({self._bytes_max} bytes)")
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return tuple(sorted(found, key=lambda one: (one.stage, one.number)))

    async def _inputs(self, task: Task) -> TaskInputs:
        reads: dict[tuple[int, int], Sequence[Blob]] = {}
        for read in task.reads:
            reads[read] = await asyncio.gather(*(self._wait(ref) for ref in self._refs_of(read)))
        return TaskInputs(reads, {at: _as_buffer(self._stages.held[at]) for at in task.held})


def _meaning(ray: Any, error: Exception) -> WorkersLost | TaskFailed:
    """What an answer of Ray's that is none means: the task's own error, or a worker that went away."""
    errors = ray.exceptions
    cause = getattr(error, "cause", None)
    if isinstance(error, errors.RayTaskError) and not isinstance(cause, errors.RayError):
        return TaskFailed(f"{type(cause).__name__}: {cause}")
    return WorkersLost(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def _places(plan: Node) -> Iterator[int] | None:
    """Where the tasks of a stage that reads files go: those of the same files to the same actors each time, which have
    read their footers. None if it reads none."""
    scans = (node.parquet_scan.base_conf for node in walk(plan) if node.WhichOneof("kind") == "parquet_scan")
    first = next((file.path for scan in scans for group in scan.file_groups for file in group.files), None)
    return None if first is None else itertools.count(zlib.crc32(first.encode()))


def _as_buffer(rows: bytes) -> Any:
    import pyarrow as pa

    return pa.py_buffer(rows)


def _ping(session: _Session, actors: Sequence[_Actor], seconds: float) -> None:
    """Ask actors whether they are there, and note what they say, or do not say in time. Blocking."""
    asked: list[tuple[_Actor, Future[Any]]] = [(actor, actor.handle.hello.remote().future()) for actor in actors]
    deadline = time.monotonic() + seconds
    for actor, answer in asked:
        try:
            actor.pid, _ = answer.result(max(0.0, deadline - time.monotonic()))
            actor.is_lost = False
        except Exception:  # noqa: BLE001 - whatever it is, the actor gets no task
            actor.is_lost = True


def _give_up_silent(session: _Session) -> None:
    """Let statements go on without a worker that is frozen: no process has ended, so Ray says nothing of it."""
    now = time.monotonic()
    running = list(session.running)
    given = set[_Actor]().union(*(run.given for run in running))
    silent = {actor for actor in given if actor.silent_seconds(now) >= SILENT_SECONDS}
    for run in running:
        if run.given & silent and now - run.moved_at >= SILENT_SECONDS:
            run.lose(f"a worker did not answer for {SILENT_SECONDS:.0f} s")


def _kill_silent(session: _Session, actors: Sequence[_Actor]) -> None:
    """Kill those actors that do not answer; Ray starts them again."""
    with contextlib.suppress(Exception):
        _ping(session, actors, STOP_SECONDS)
        for actor in actors:
            if actor.is_lost:
                session.ray.kill(actor.handle, no_restart=False)
