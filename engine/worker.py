"""What runs in a worker process: tasks of stages, side by side, each a plan of one partition.

`engine.workers` makes a Ray actor of `QueryWorker`; nothing here knows Ray, and tests call it as it is.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import os
import platform
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import engine
from engine.ownfolder import own_folder
from engine.session import new_context, register_s3, set_option
from engine.tasks import INPUT_BYTES_MAX, TaskContext, TaskInputs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from engine.stages import Task
    from engine.tasks import Blob, TaskFigures
    from storage.objects import S3Options

WATCH_SECONDS: Final = 1.0
RUNAWAY_SECONDS: Final = 3
"""So many looks in a row at a process that works for nobody, and it ends."""
RUNAWAY_SHARE: Final = 0.1
"""Of a core, between two looks: one that rests uses a hundredth, and on a busy machine a runaway gets no more."""
RUNAWAY_EXIT: Final = 70
SPILL_PREFIX: Final = "runnel-worker-"


class ForeignWorker(Exception):
    """The worker imported another Runnel than the one that started it: it serves nothing."""


@dataclass(frozen=True, slots=True)
class Build:
    """Which Runnel this is: where its engine lies, a digest of its sources below `nodes`, and DataFusion's version."""

    folder: str
    digest: str
    datafusion: str


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What every worker gets. ``memory_bytes`` is one pool for its tasks; ``bucket``: of the S3 store, if it is one.

    ``output_bytes_max`` is what one task may hand on. ``owns_process``: nothing else runs in its process, which may be
    ended.
    """

    build: Build
    memory_bytes: int
    output_bytes_max: int = INPUT_BYTES_MAX
    spill_bytes_max: int = 10 * 2**30
    batch_rows: int = 8_192
    tasks_max: int = 2
    bucket: str | None = None
    s3: S3Options | None = None
    owns_process: bool = True


def this_build() -> Build:
    """The build of this process."""
    folder = Path(str(engine.__file__)).parent
    digest = hashlib.sha256()
    for package in folder, folder.parent / "storage":
        for path in sorted(package.glob("*.py")):
            digest.update(path.read_bytes())
    return Build(str(folder), digest.hexdigest(), importlib.metadata.version("datafusion"))


class QueryWorker:
    """Runs tasks. Its methods are coroutines of one event loop, so that a task can be cancelled while it runs."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._expected = setup.build
        self._build = this_build()
        self._name = f"{platform.node()}:{os.getpid()}"
        self._places = asyncio.Semaphore(setup.tasks_max)
        self._active = self._begun = self._seen = 0
        self._context: TaskContext | None = None
        if self._build == self._expected:
            self._context = _task_context(setup)
        if setup.owns_process:
            threading.Thread(target=self._watch, name="runaway", daemon=True).start()

    async def hello(self) -> tuple[int, Build]:
        """The process's id, and what it runs; also says that it is alive."""
        return os.getpid(), self._build

    async def run(self, task: Task, counts: Sequence[int], *data: Blob | pa.Buffer) -> tuple[TaskFigures | Blob, ...]:
        """Run a task: ``data`` has for each of `Task.reads` so many outputs as ``counts`` says, and then `Task.held`.

        The figures, then the task's outputs. Raises ForeignWorker, EngineError, StorageError, CannotBeCut.
        """
        if self._context is None:
            raise ForeignWorker(f"this worker runs {self._build}, and was started by {self._expected}")
        self._active += 1
        self._begun += 1
        try:
            async with self._places:
                figures, blobs = await self._context.run(task, _inputs(task, counts, data), self._name)
        finally:
            self._active -= 1
        return figures, *blobs

    def _watch(self) -> None:
        """A join that finds no row to hand on cannot be cancelled: it ends with its process; Ray starts a new one."""
        watch = Runaway(self._has_served, time.process_time)
        while not watch.look():
            time.sleep(WATCH_SECONDS)
        sys.stderr.write(f"{self._name}: works for nobody, and ends\n")
        sys.stderr.flush()
        os._exit(RUNAWAY_EXIT)

    def _has_served(self) -> bool:
        """Whether there was a task since the last time: many short ones are hardly ever met while they run."""
        begun, self._seen = self._begun - self._seen, self._begun
        return self._active > 0 or begun > 0


class Runaway:
    """Tells from looks `WATCH_SECONDS` apart whether a process computes although nobody wants anything of it."""

    def __init__(self, has_served: Callable[[], bool], cpu_seconds: Callable[[], float]) -> None:
        self._has_served = has_served
        self._cpu_seconds = cpu_seconds
        self._before = cpu_seconds()
        self._looks = 0

    def look(self) -> bool:
        """Whether it is one, after this look."""
        now = self._cpu_seconds()
        busy = now - self._before > RUNAWAY_SHARE * WATCH_SECONDS
        self._before = now
        self._looks = 0 if self._has_served() or not busy else self._looks + 1
        return self._looks >= RUNAWAY_SECONDS


def _inputs(task: Task, counts: Sequence[int], data: Sequence[Any]) -> TaskInputs:
    left = iter(data)
    reads = {read: [next(left) for _ in range(count)] for read, count in zip(task.reads, counts, strict=True)}
    return TaskInputs(reads, dict(zip(task.held, left, strict=True)))


def _task_context(setup: WorkerSetup) -> TaskContext:
    spill = own_folder(Path(tempfile.gettempdir()), SPILL_PREFIX)
    context = new_context(setup.memory_bytes, spill, 1, setup.batch_rows, setup.spill_bytes_max)
    # One partition of a scan would read the files of all: with it tasks give rows several times.
    set_option(context, "execution.enable_file_stream_work_stealing", "false")
    if setup.bucket is not None and setup.s3 is not None:
        register_s3(context, setup.bucket, setup.s3)
    return TaskContext(context, setup.output_bytes_max)
