"""Merges files on a Ray worker, if there is one: what runs there, and the node's side. Driven by `nodes.compaction`.

The worker is told the names of new files, which the shard's owner has reserved (LOG L20), and commits nothing: that is
the owner's too (L21). What a worker makes after it was given up is swept. Whatever goes wrong there, the same merge is
done by the node's own process: each create is exclusive, so it does no harm if both are at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import pyarrow as pa
import structlog

from engine.ladder import TaskFailed, WorkersLost
from engine.worker import Build, ForeignWorker, this_build
from nodes.mergeworker import NICENESS, Answer, Order, Setup, answer_order
from nodes.pace import Pace
from storage.merge import MergeJob
from storage.objects import open_store

if TYPE_CHECKING:
    from engine.workers import Hired, RayWorkers
    from nodes.compaction import Merger
    from storage.bundlemerge import BundleJob

START_SECONDS: Final = 120.0
"""A worker may take so long to start, on a machine that is busy."""
LOOK_SECONDS: Final = 10.0
"""How often a worker that merges is asked whether it is there."""
SILENT_SECONDS: Final = 30.0
"""One that does not answer for so long is given up."""
RETRY_SECONDS: Final = 60.0
"""For so long after that files are merged here."""

log = structlog.get_logger(__name__)


class MergeActor:
    """What runs in a Ray worker's process: one merge at a time, at the lowest priority, within a share of a core."""

    def __init__(self, setup: bytes) -> None:
        pa.set_cpu_count(1)
        self._setup = msgspec.json.decode(setup, type=Setup)
        self._pace = Pace()

    def hello(self) -> int:
        """The process's id; says that it is alive."""
        return os.getpid()

    def merge(self, order: bytes, build: Build) -> bytes:
        """An `Order` to an `Answer`. Raises ForeignWorker, StoreUnsuitable."""
        if build != this_build():
            raise ForeignWorker(f"this worker runs {this_build()}, and the node {build}")
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)  # of this thread: others answer whether it is there
        url = self._setup.url
        path = Path(urllib.parse.unquote(url.removeprefix("file://")))
        if url.startswith("file://") and not (path / "store.json").exists():
            raise FileNotFoundError(f"this worker's machine does not have the store {url}")
        with contextlib.closing(open_store(url, self._setup.options)) as store:
            wanted = msgspec.json.decode(order, type=Order)
            return msgspec.json.encode(answer_order(store, Path(tempfile.gettempdir()), wanted, self._pace))


class RayMerger:
    """`nodes.compaction.Merger` on an actor of its own; ``local`` merges what that cannot."""

    def __init__(self, workers: RayWorkers, setup: Setup, read_bytes: int, local: Merger) -> None:
        self._workers = workers
        self._setup = setup
        self._read_bytes = read_bytes
        self._local = local
        self._actor: Hired | None = None
        self._lock = asyncio.Lock()
        self._retry_at = 0.0
        self._said = ""
        self._closed = False

    async def merge(self, job: MergeJob | BundleJob, share: float) -> Answer:
        """Raises MergeFailed. When cancelled, whoever merges ends with it. Bundles are small, and merged here."""
        async with self._lock:
            if isinstance(job, MergeJob) and not self._closed and time.monotonic() >= self._retry_at:
                try:
                    return await self._on_worker(Order(job, share, self._read_bytes))
                except (WorkersLost, TaskFailed) as error:
                    self._say(str(error))
            return await self._local.merge(job, share)

    async def rest(self) -> None:
        """Let the worker's process go, and the node's. Idempotent."""
        if not self._lock.locked():
            await self._end()
        await self._local.rest()

    async def aclose(self) -> None:
        """The same for ever. Idempotent."""
        self._closed = True
        await self._local.aclose()  # first: what fails on the worker is not begun here
        await self._end()

    async def _on_worker(self, order: Order) -> Answer:
        """Raises WorkersLost; TaskFailed also for what the merge itself says: here it says it again."""
        try:
            if self._actor is None:
                self._actor = await self._workers.hire(MergeActor, msgspec.json.encode(self._setup))
                await self._alive(self._actor, START_SECONDS)
            if self._closed:  # meanwhile: there was no worker yet that could be ended
                raise WorkersLost("this node is stopping")
            answer = msgspec.json.decode(await self._answer(self._actor, order), type=Answer)
        except BaseException:
            await self._end()
            raise
        if answer.error:
            raise TaskFailed(answer.error)
        self._said = ""
        return msgspec.structs.replace(answer, on_ray=True)

    async def _answer(self, actor: Hired, order: Order) -> bytes:
        """What a worker answers, for as long as it says now and then that it is alive."""
        merging = asyncio.ensure_future(actor.call("merge", msgspec.json.encode(order), this_build()))
        try:
            while not merging.done():
                await asyncio.wait({merging}, timeout=LOOK_SECONDS)
                if not merging.done():
                    await self._alive(actor, SILENT_SECONDS)
            return bytes(merging.result())
        finally:
            merging.cancel()
            await asyncio.gather(merging, return_exceptions=True)

    async def _alive(self, actor: Hired, seconds: float) -> None:
        try:
            await asyncio.wait_for(actor.call("hello"), seconds)
        except TimeoutError as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            raise WorkersLost(f"a worker did not answer for {seconds:.0f} s") from error

    async def _end(self) -> None:
        actor, self._actor = self._actor, None
        if actor is not None:
            await asyncio.to_thread(actor.dismiss)

    def _say(self, reason: str) -> None:
        if reason != self._said and not self._closed:
            log.info("files are merged here, not on Ray", reason=reason)
        self._said = reason
