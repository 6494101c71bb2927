"""The life of one process: lock, listen, open, replay, serve, drain, checkpoint, close.

The parts come in as factories (`NodeParts`), so this module knows no HTTP server and no store, and tests run
the whole life with small real parts. Driven by `nodes.cli.start` and `nodes.cli.demo` through `run_node`.

The HTTP server opens first, over an empty `BackendSlot`: a taken port is found before the store is touched, and
health checks are answered during replay. A stop signal is obeyed at any moment of this; a second one ends the
process at once, which loses nothing that was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.metadata
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar

import structlog

from nodes.backend import Backend
from nodes.exitcodes import ExitCode, PortTaken, exit_code
from nodes.health import Health, Phase
from nodes.home import at_home
from nodes.lean import keep_pandas_out
from nodes.lockfile import LockFile
from nodes.pages import keep_pages
from nodes.slot import BackendSlot
from nodes.status import BackendStatus, MemoryStatus, NodeStatus
from storage.errors import ShardClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from nodes.settings_model import Budgets, Settings
    from nodes.status import ClusterControl, NodeControl

T = TypeVar("T")

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
CHECKPOINT_SECONDS_MAX: Final = 60.0
"""A clean stop checkpoints so that the next start is fast. Rows are safe in the Log without it."""
BESIDE_SECONDS_MAX: Final = 5.0

log = structlog.get_logger(__name__)


class HttpServer(Protocol):
    """A server that listens since it was entered, and is closed when it is left."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port it really listens on."""
        ...

    @property
    def listen(self) -> Mapping[str, str]:
        """What else it serves clients by: door -> HOST:PORT."""
        ...

    async def drain(self, seconds: float) -> None:
        """Accept nothing more; return when requests under way are answered, at the latest after ``seconds``."""
        ...


class NodeBackend(Backend, Protocol):
    """A Backend that is open, replayed and serving since it was entered."""

    @property
    def listen(self) -> Mapping[str, str]:
        """Where it listens beside HTTP: door -> HOST:PORT."""
        ...

    async def checkpoint(self) -> None:
        """Write what is in memory to DataFiles and commit the Checkpoints."""
        ...

    async def drain(self) -> None:
        """End cleanly: checkpoint, and hand over what others can serve. No request comes any more."""
        ...

    async def compact(self) -> int:
        """Merge the DataFiles of its shards that are worth it; how many merges that took."""
        ...

    def status(self) -> BackendStatus:
        """What it holds, without I/O."""
        ...


@dataclass(frozen=True, slots=True)
class NodeContext:
    """What every part gets. ``fail`` ends the node with an error, from any thread: fenced, fsync failed.

    ``cluster`` is None in a process that is all of its cluster.
    """

    settings: Settings
    budgets: Budgets
    health: Health
    control: NodeControl
    fail: Callable[[BaseException], None]
    cluster: ClusterControl | None = None


@dataclass(frozen=True, slots=True)
class NodeParts:
    """How to make the parts; nothing is opened before the context manager is entered.

    ``cluster`` answers from the beginning, while the backend is still opening.
    """

    http: Callable[[NodeContext, Backend], AbstractAsyncContextManager[HttpServer]]
    backend: Callable[[NodeContext], AbstractAsyncContextManager[NodeBackend]]
    cluster: ClusterControl | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """A node that serves, as those who run beside it see it. ``stop`` asks it for a clean stop."""

    settings: Settings
    host: str
    port: int
    stop: Callable[[], None]

    @property
    def url(self) -> str:
        """Where a client on this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


Beside: TypeAlias = "Callable[[Ready], Coroutine[Any, Any, None]]"
"""Runs while the node is ready (a banner, the demo's loader); cancelled when it drains; its error ends the node."""


class StopRequested(Exception):
    """A stop signal came before the node was ready."""


class Node:
    """One process's node; `run` lives it once."""

    def __init__(self, settings: Settings, parts: NodeParts) -> None:
        self.settings = settings
        self.health = Health()
        self._parts = parts
        self._budgets = settings.budgets()
        self._slot = BackendSlot(self.health)
        self._backend: NodeBackend | None = None
        self._listen: dict[str, str] = {}
        self._born = time.monotonic()
        self._end = asyncio.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def stop(self) -> None:
        """Ask for a clean stop; in the event loop's thread."""
        self._end.set()

    def fail(self, error: BaseException) -> None:
        """End the node because of ``error``, from any thread; the first error counts."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._fail, error)

    def status(self) -> NodeStatus:
        """Everything `runnel status` shows, without I/O on the store."""
        backend = self._backend.status() if self._backend is not None else BackendStatus()
        report = self.health.report()
        return NodeStatus(
            name=self.settings.node_name,
            version=version(),
            pid=os.getpid(),
            store_id=backend.store_id,
            store_url=self.settings.store_url,
            data_dir=str(self.settings.data_dir),
            phase=report.phase.value,
            ready=report.is_ready,
            reasons=dict(report.reasons),
            uptime_seconds=round(time.monotonic() - self._born, 3),
            listen=dict(self._listen),
            catalog_revision=backend.catalog_revision,
            databases=backend.databases,
            memory=self._memory(backend),
            queries_running=backend.queries_running,
            queries_waiting=backend.queries_waiting,
            logs=backend.logs,
            compaction=backend.compaction,
            file_cache=backend.file_cache,
            views=backend.views,
        )

    async def checkpoint(self) -> None:
        """Checkpoint everything now, because an operator asked."""
        if self._backend is None:
            raise ShardClosed("this node is not serving now; try again")
        await self._backend.checkpoint()

    async def compact(self) -> int:
        """Merge files now, because an operator asked."""
        if self._backend is None:
            raise ShardClosed("this node is not serving now; try again")
        return await self._backend.compact()

    async def run(self, beside: Sequence[Beside] = ()) -> None:
        """Live: returns after a clean stop, raises what ended the node otherwise."""
        self._loop = asyncio.get_running_loop()
        context = NodeContext(self.settings, self._budgets, self.health, self, self.fail, self._parts.cluster)
        with _signals(self._loop, self.stop), LockFile(self.settings.data_dir):
            try:
                async with contextlib.AsyncExitStack() as stack:
                    await self._live(stack, context, beside)
            except StopRequested:
                log.info("stopped before it was ready")
            except BaseException as error:
                self.health.fail(str(error))
                raise

    async def _live(
        self,
        stack: contextlib.AsyncExitStack,
        context: NodeContext,
        beside: Sequence[Beside],
    ) -> None:
        http = await self._listen_http(stack, context)
        self.health.move(Phase.REPLAYING)
        started = time.monotonic()
        backend = await self._unless_ended(stack.enter_async_context(self._parts.backend(context)))
        self._backend = backend
        stack.callback(self._forget_backend)
        self._listen.update(backend.listen)
        self._slot.fill(backend)
        self.health.move(Phase.READY)
        log.info("ready", open_seconds=round(time.monotonic() - started, 3), **self._listen)
        await self._serve(Ready(self.settings, *http.address, self.stop), beside)
        await self._drain(http, backend)

    async def _listen_http(self, stack: contextlib.AsyncExitStack, context: NodeContext) -> HttpServer:
        try:
            http = await self._unless_ended(stack.enter_async_context(self._parts.http(context, self._slot)))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
            reason = "is taken by another process" if error.errno == errno.EADDRINUSE else "is not of this machine"
            raise PortTaken(f"cannot listen on {self.settings.http.listen}: it {reason}; see --http") from error
        host, port = http.address
        self._listen.update(http.listen)
        self._listen["http"] = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return http

    async def _serve(self, ready: Ready, beside: Sequence[Beside]) -> None:
        """Wait for the end; raises the error that ended the node."""
        tasks = [asyncio.create_task(start(ready)) for start in beside]
        for task in tasks:
            task.add_done_callback(self._beside_done)
        try:
            await self._end.wait()
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=BESIDE_SECONDS_MAX)
        self._raise_failure()

    async def _drain(self, http: HttpServer, backend: NodeBackend) -> None:
        self.health.move(Phase.DRAINING)
        log.info("draining", drain_seconds=self.settings.node.drain_seconds)
        await http.drain(self.settings.node.drain_seconds)
        try:
            async with asyncio.timeout(CHECKPOINT_SECONDS_MAX):
                await backend.drain()
        except TimeoutError:
            log.warning("the last checkpoint took too long; the next start replays the Log instead")
        self._raise_failure()
        log.info("stopped")

    async def _unless_ended(self, opening: Coroutine[Any, Any, T]) -> T:
        """Await ``opening``, but give it up when the node is asked to end (StopRequested) or fails."""
        task, end = asyncio.create_task(opening), asyncio.create_task(self._end.wait())
        try:
            await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._raise_failure()
                raise StopRequested
            return task.result()
        finally:
            end.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: BaseException) -> None:
        self.health.fail(str(error) or type(error).__name__)
        self._failure = self._failure or error
        self._end.set()

    def _beside_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _forget_backend(self) -> None:
        self._backend = None
        self._slot.empty()

    def _memory(self, backend: BackendStatus) -> MemoryStatus:
        return MemoryStatus(
            resident_bytes=resident_bytes(),
            budget_bytes=self._budgets.total_bytes,
            memtable_bytes=backend.memtable_bytes,
            memtable_bytes_max=self._budgets.memtable_bytes,
            query_bytes_max=self._budgets.query_bytes,
            waiting_bytes_max=self._budgets.waiting_bytes,
        )


def run_node(settings: Settings, parts: NodeParts, beside: Sequence[Beside] = ()) -> ExitCode:
    """Run a node in this thread until it ends; log why it ended and return the exit code."""
    import uvloop

    keep_pages()
    keep_pandas_out()
    settings = at_home(settings)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Node(settings, parts).run(beside))
    except Exception as error:  # the process's last line of defence
        code = exit_code(error)
        log.error(
            "the node ends",
            error=str(error),
            error_code=getattr(error, "code", type(error).__name__),
            exit=code.value,
            exc_info=error if code is ExitCode.INTERNAL else None,
        )
        return code
    return ExitCode.OK


def version() -> str:
    """The version of the distribution that holds this package."""
    try:
        return importlib.metadata.version("runnel")
    except importlib.metadata.PackageNotFoundError:
        return "0.0.0"


def resident_bytes() -> int:
    """This process's resident memory; 0 where /proc is missing."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    """The first stop signal stops cleanly, the second ends the process at once."""
    seen = False

    def on_signal(number: signal.Signals) -> None:
        nonlocal seen
        if seen:
            log.warning("ended at once by a second signal", signal=number.name)
            os._exit(128 + number)
        seen = True
        log.info("stopping", signal=number.name)
        stop()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
