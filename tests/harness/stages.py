"""Stages run in the test's own process, task by task, over nothing but bytes: what workers do, without Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from engine.ladder import Gathered, TaskFailed, WorkersLost
from engine.session import new_context, set_option
from engine.tasks import TaskContext, TaskInputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.stages import Stages, Task
    from engine.tasks import Blob, TaskFigures

POOL_BYTES = 256 * 2**20


def task_context() -> TaskContext:
    """A context as a worker has it."""
    context = new_context(POOL_BYTES, None, 1, 8_192, 0)
    set_option(context, "execution.enable_file_stream_work_stealing", "false")
    return TaskContext(context)


class LocalWorkers:
    """`engine.ladder.Workers` in this process. The first ``losses`` runs lose their workers, ``failure`` fails all."""

    def __init__(self, slots: int = 3, losses: int = 0, failure: str = "", context: TaskContext | None = None) -> None:
        self.runs: list[Stages] = []
        self.tasks: list[Task] = []
        self.is_closed = False
        self.losses = losses
        self.failure = failure
        self._slots = slots
        self._context = context or task_context()

    def slots(self) -> int:
        return self._slots

    def reason(self) -> str:
        return "too few workers in this test"

    async def run(self, stages: Stages, began: Callable[[int], None]) -> Gathered:
        self.runs.append(stages)
        began(self._slots)
        if self.losses > 0:
            self.losses -= 1
            raise WorkersLost("a test took them away")
        if self.failure:
            raise TaskFailed(self.failure)
        try:
            return await gather(stages, self._context, self.tasks)
        except Exception as error:
            raise TaskFailed(f"{type(error).__name__}: {error}") from error

    async def aclose(self) -> None:
        self.is_closed = True


async def gather(stages: Stages, context: TaskContext, ran: list[Task] | None = None) -> Gathered:
    """Run all tasks of all stages but the last, one after the other."""
    outputs: dict[tuple[int, int], list[Blob]] = {}
    figures: list[TaskFigures] = []

    def inputs(task: Task) -> TaskInputs:
        reads = {
            (stage, output): [outputs[stage, number][output] for number in range(stages.stages[stage].tasks)]
            for stage, output in task.reads
        }
        return TaskInputs(reads, {at: pa.py_buffer(stages.held[at]) for at in task.held})

    for stage in range(len(stages.stages) - 1):
        for task in stages.tasks(stage):
            figure, outputs[stage, task.number] = await context.run(task, inputs(task), "here")
            figures.append(figure)
            if ran is not None:
                ran.append(task)
    return Gathered(inputs(stages.last), tuple(figures))


async def rows_of(stages: Stages, context: TaskContext) -> list[dict[str, Any]]:
    """The result of a whole cut plan."""
    gathered = await gather(stages, context)
    _, ((_, data),) = await context.run(stages.last, gathered.inputs, "here")
    table: pa.Table = pa.ipc.open_stream(data).read_all()
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
