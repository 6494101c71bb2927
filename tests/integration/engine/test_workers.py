"""Real Ray, started in this machine: answers, deaths in mid-query, cancelling, strangers, and heads that are not there.

Every process that a test kills is a child of this one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import itertools
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import engine.workers
from engine.ladder import OPTIONS, Rung, TaskFailed, WorkersLost
from engine.stages import CannotBeCut
from engine.tasks import TaskFigures
from engine.worker import RUNAWAY_EXIT, ForeignWorker, QueryWorker, Runaway, WorkerSetup, this_build
from engine.workers import SILENT_SECONDS, RayWorkers, _Actor, _give_up_silent
from nodes.rayhead import RayHead, new_workers, worker_setup, write_token
from tests.harness.ports import free_port
from tests.harness.raydriver import (
    ENDLESS,
    QUICK,
    SLOW,
    START_SECONDS,
    is_as_in_one_process,
    make_settings,
    make_tables,
    read,
    source_of,
    stages_of,
    started,
    while_it_runs,
)
from tests.harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datafusion import SessionContext

pytestmark = [
    # It must not be imported here: it reads its environment when it is, once.
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    # Ray lets its own processes go without having waited for them.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

STATEMENTS = (
    QUICK,
    "SELECT count(*) AS n FROM t",
    "SELECT k, v FROM t WHERE v % 1000 = 7 ORDER BY v",
    "SELECT t.k, n FROM t JOIN u ON t.k = u.k WHERE v < 50 ORDER BY v",
    "SELECT count(*) AS n FROM t AS a JOIN t AS b ON a.v = b.v + 1",
    "SELECT count(DISTINCT k) AS n FROM t",
    "SELECT k, row_number() OVER (PARTITION BY k ORDER BY v) AS r FROM t WHERE v < 60 ORDER BY v",
    "SELECT k FROM t EXCEPT SELECT k FROM u ORDER BY k",
    "SELECT k, sum(v) AS s FROM t WHERE v < -1 GROUP BY k",
    "SELECT k, count(*) AS n FROM t WHERE v > (SELECT avg(v) FROM t) GROUP BY ROLLUP (k) ORDER BY k",
    "SELECT u.k, count(v) AS n FROM u LEFT JOIN t ON u.k = t.k AND v < 9 GROUP BY u.k ORDER BY u.k",
    "SELECT n, v FROM (SELECT n FROM u ORDER BY n LIMIT 2) CROSS JOIN (SELECT max(v) AS v FROM t) ORDER BY n",
)


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayWorkers]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.workers, "HEAD_SECONDS", 3.0)
        patch.setattr(engine.workers, "LOOK_SECONDS", 0.3)
        made = new_workers(make_settings(tmp_path_factory.mktemp("home")))
        assert isinstance(made, RayWorkers)
        started(made)
        yield made
        asyncio.run(made.aclose())


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> SessionContext:
    return make_tables(tmp_path_factory.mktemp("tables"))


def children(name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if name in process.name() or name in " ".join(process.cmdline()[:1]):
                found.append(process)
        except psutil.Error:
            continue
    return found


def actors() -> list[psutil.Process]:
    return children("ray::QueryWorker")


def kill(processes: list[psutil.Process]) -> None:
    assert processes
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("rung", [Rung.PARTIAL_FINAL, Rung.FULL_SHUFFLE])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_workers_give_the_rows_of_one_process(
    context: SessionContext, workers: RayWorkers, rung: Rung, statement: str
) -> None:
    source = source_of(context, workers, statement, rung)
    assert asyncio.run(read(source)) == context.sql(statement).to_pylist()
    assert source.fell_back == ""


def test_the_figures_are_those_of_the_workers(context: SessionContext, workers: RayWorkers) -> None:
    began: list[int] = []
    gathered = asyncio.run(workers.run(stages_of(context, QUICK), began.append))
    pids = {figure.worker.rpartition(":")[2] for figure in gathered.figures}
    assert pids == {str(process.pid) for process in actors()}
    assert began == [len(pids)]
    assert sum(figure.rows for figure in gathered.figures) >= 14


def test_statements_at_once_do_not_mix(context: SessionContext, workers: RayWorkers) -> None:
    async def all_of_them() -> list[list[dict[str, Any]]]:
        return await asyncio.gather(*(read(source_of(context, workers, text)) for text in STATEMENTS))

    assert asyncio.run(all_of_them()) == [context.sql(text).to_pylist() for text in STATEMENTS]


@pytest.mark.parametrize("count", [1, 2], ids=["one", "all"])
def test_workers_killed_in_mid_query_change_no_answer(context: SessionContext, workers: RayWorkers, count: int) -> None:
    started(workers)
    statement = SLOW.format(count)
    killer = while_it_runs(workers, lambda: kill(actors()[:count]), actors())
    assert asyncio.run(read(source_of(context, workers, statement))) == context.sql(statement).to_pylist()
    killer.join()
    started(workers)
    is_as_in_one_process(context, workers)


def test_a_frozen_worker_is_done_without(
    context: SessionContext, workers: RayWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process has not ended, so Ray waits for it."""
    monkeypatch.setattr(engine.workers, "SILENT_SECONDS", 2.0)
    started(workers)
    frozen, _ = actors()
    os.kill(frozen.pid, signal.SIGSTOP)
    began = time.monotonic()
    assert asyncio.run(read(source_of(context, workers, QUICK))) == context.sql(QUICK).to_pylist()
    assert time.monotonic() - began < 20.0
    eventually(lambda: frozen.pid not in {process.pid for process in actors()}, "it is killed", 30.0)
    started(workers)
    is_as_in_one_process(context, workers)


def test_the_head_killed_in_mid_query_changes_no_answer_and_comes_back(
    context: SessionContext, workers: RayWorkers
) -> None:
    started(workers)
    session = workers._session
    statement = SLOW.format(3)
    killer = while_it_runs(workers, lambda: kill(children("gcs_server")), actors())
    assert asyncio.run(read(source_of(context, workers, statement))) == context.sql(statement).to_pylist()
    killer.join()
    assert asyncio.run(read(source_of(context, workers, QUICK))) == context.sql(QUICK).to_pylist()
    eventually(lambda: workers._session is not session, "the head is given up", START_SECONDS)
    started(workers)
    is_as_in_one_process(context, workers)


def test_a_statement_that_is_dropped_frees_its_workers(context: SessionContext, workers: RayWorkers) -> None:
    """Whatever it takes: its tasks are cancelled, and what cannot be cancelled ends with its process."""
    started(workers)

    async def main() -> None:
        reading = asyncio.ensure_future(read(source_of(context, workers, ENDLESS)))
        await asyncio.to_thread(lambda: while_it_runs(workers, lambda: None, actors()).join())
        began = time.monotonic()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert reading.cancelled()
        assert time.monotonic() - began < 5.0

    asyncio.run(main())
    started(workers)
    is_as_in_one_process(context, workers)
    eventually(lambda: all(p.cpu_percent(0.2) < 20 for p in actors()), "nothing works for nobody")


def test_a_task_that_fails_says_why(context: SessionContext, workers: RayWorkers) -> None:
    stages = stages_of(context, "SELECT k, sum(1 / (v - v)) AS s FROM t GROUP BY k")
    with pytest.raises(TaskFailed, match=r"StatementFailed: .*ivide by zero"):
        asyncio.run(workers.run(stages))
    started(workers)


def test_stages_that_exchange_too_much_are_stopped(
    context: SessionContext, workers: RayWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_shuffle_bytes_max", 1_000)
    with pytest.raises(TaskFailed, match="shuffle_bytes_max"):
        asyncio.run(workers.run(stages_of(context, "SELECT k, v FROM t WHERE v > 3")))


def test_nothing_of_ray_listens_beyond_this_machine(workers: RayWorkers) -> None:
    started(workers)
    mine = [psutil.Process(), *psutil.Process().children(recursive=True)]
    addresses = [c.laddr.ip for p in mine for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert addresses
    assert set(addresses) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_nobody_else_reaches_the_sockets_of_ray(workers: RayWorkers) -> None:
    """Whoever may write where they are can put another in the place of one: workers believe what comes through it."""
    started(workers)
    sockets = {
        Path(str(connection.laddr)).parent
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
        for connection in process.net_connections("unix")
        if "session_" in str(connection.laddr)
    }
    assert sockets
    for folder in sockets:
        modes = [stat.S_IMODE(above.stat().st_mode) for above in folder.parents]
        assert 0o700 in modes


@pytest.mark.parametrize("length", [8, 40])
def test_a_session_has_a_folder_that_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """Below the system's folder for temporary files, unless the paths of sockets would be too long there."""
    system = Path("/tmp", secrets.token_hex(8))
    system = system.with_name(system.name[:length].ljust(length, "x"))
    system.mkdir()
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(tempfile, "tempdir", str(system))
    try:
        head = RayHead(make_settings(tmp_path))
        first, second = (Path(head.prepare()["_temp_dir"]).parent for _ in range(2))
        assert first != second
        assert second.parent == (system if length < 10 else Path("/tmp"))
        assert (first.exists(), stat.S_IMODE(second.stat().st_mode)) == (False, 0o700)
        shutil.rmtree(second)
    finally:
        shutil.rmtree(system)


def test_the_token_is_in_the_data_folder_and_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    head = RayHead(make_settings(tmp_path, token_file=""))
    head.prepare()
    token = tmp_path / "ray-token"
    first = token.read_text()
    assert len(first) == 64
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    head.prepare()
    assert token.read_text() == first
    assert [path.name for path in tmp_path.iterdir()] == ["ray-token"]


def test_a_token_that_could_not_be_written_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty file would be taken for one for ever."""

    def fails(bytes: int) -> str:
        raise OSError(f"no {bytes} bytes")

    monkeypatch.setattr(secrets, "token_hex", fails)
    with pytest.raises(OSError, match="no 32 bytes"):
        write_token(tmp_path / "token")
    assert not (tmp_path / "token").exists()


# -- without a cluster -----------------------------------------------------------------------------------


def test_a_head_that_is_not_there_is_not_waited_for(context: SessionContext, tmp_path: Path) -> None:
    made = new_workers(make_settings(tmp_path, f"127.0.0.1:{free_port()}"))
    assert isinstance(made, RayWorkers)
    assert made.slots() == 0
    eventually(lambda: "does not answer" in made.reason(), "the keeper has tried")
    with pytest.raises(WorkersLost, match="does not answer"):
        asyncio.run(made.run(stages_of(context, QUICK)))
    asyncio.run(made.aclose())
    assert made.slots() == 0


def test_nothing_is_started_before_somebody_asks(tmp_path: Path) -> None:
    made = new_workers(make_settings(tmp_path))
    assert isinstance(made, RayWorkers)
    assert made._keeper is None
    asyncio.run(made.aclose())


@pytest.mark.parametrize(("answers", "moves", "is_lost"), [(0, 0, True), (1, 0, False), (0, 1, False), (1, 1, False)])
def test_a_worker_that_answers_or_finishes_tasks_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, answers: bool, moves: bool, is_lost: bool
) -> None:
    now, lost = 100.0, list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def ask() -> SimpleNamespace:
        future = Future[None]()
        if answers:
            future.set_result(None)
        return SimpleNamespace(future=lambda: future)

    def actor() -> _Actor:
        return _Actor(SimpleNamespace(hello=SimpleNamespace(remote=ask)), 1)

    run = SimpleNamespace(given={actor(), actor()}, moved_at=now, lose=lost.append)
    other = SimpleNamespace(given={_Actor(run.given.copy().pop().handle, 2)}, moved_at=now + 99, lose=lost.append)
    session: Any = SimpleNamespace(running={id(run): run, id(other): other}.values())
    for _ in range(8):
        _give_up_silent(session)
        assert not lost
        now += SILENT_SECONDS / 8
        run.moved_at = now if moves else run.moved_at
    _give_up_silent(session)
    assert bool(lost) == is_lost
    assert len(lost) <= 1


def test_a_port_without_a_ray_head_costs_no_query(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        head = RayHead(make_settings(tmp_path, f"127.0.0.1:{listening.getsockname()[1]}"))
        assert head.is_reachable()
    assert not head.is_reachable()


def test_a_worker_of_another_build_serves_nothing(context: SessionContext) -> None:
    own = this_build()
    for change in {"folder": "/elsewhere"}, {"digest": "0"}, {"datafusion": "54"}:
        worker = QueryWorker(WorkerSetup(dataclasses.replace(own, **change), 2**26, owns_process=False))
        task = stages_of(context, QUICK).tasks(0)[0]
        with pytest.raises(ForeignWorker):
            asyncio.run(worker.run(task, []))
        assert asyncio.run(worker.hello()) == (os.getpid(), own)


def test_what_a_task_hands_on_is_bounded_while_it_is_made(context: SessionContext) -> None:
    """It is kept in memory until the task is done."""
    task = stages_of(context, "SELECT v FROM t WHERE v >= 0").tasks(0)[0]

    def run(output_bytes_max: int) -> int:
        setup = WorkerSetup(this_build(), 2**26, output_bytes_max, batch_rows=100, owns_process=False)
        figures, _ = asyncio.run(QueryWorker(setup).run(task, []))
        assert isinstance(figures, TaskFigures)
        return figures.bytes

    size = run(2**20)
    assert run(size) == size
    with pytest.raises(CannotBeCut, match=f"more than {size // 2} bytes .ray.shuffle_bytes_max"):
        run(size // 2)


def test_workers_are_told_the_limits_of_the_settings(tmp_path: Path) -> None:
    setup = worker_setup(make_settings(tmp_path, worker_memory=2**27, shuffle_bytes_max=2**21))
    assert (setup.memory_bytes, setup.output_bytes_max, setup.spill_bytes_max) == (2**27, 2**21, 10 * 2**30)


def test_a_task_that_would_hand_on_terabytes_ends_at_once(context: SessionContext) -> None:
    stages = stages_of(context, "SELECT v FROM t UNION ALL SELECT value FROM range(0, 1000000000000)")
    task = stages.tasks(0)[-1]
    setup = WorkerSetup(this_build(), 2**26, 2**20, owns_process=False)
    with pytest.raises(CannotBeCut, match="hands on more"):
        asyncio.run(QueryWorker(setup).run(task, []))


def test_a_runaway_is_told_by_its_cpu_and_by_whom_it_works_for() -> None:
    cpu, active = [0.0], [True]
    watch = Runaway(lambda: active[0], lambda: cpu[0])  # it looks three times

    def looks(*seconds: float) -> list[bool]:
        found = []
        for used in seconds:
            cpu[0] += used
            found.append(watch.look())
        return found

    assert looks(1, 1, 1, 1) == [False] * 4
    active[0] = False
    assert looks(1, 1, 0.1, 1, 1) == [False] * 5
    assert looks(1) == [True]


def test_a_worker_of_short_tasks_is_no_runaway(context: SessionContext) -> None:
    """It computes all the time, and at no look a task is under way."""
    worker = QueryWorker(WorkerSetup(this_build(), 2**26, owns_process=False))
    cpu = itertools.count()
    watch = Runaway(worker._has_served, lambda: float(next(cpu)))
    task = stages_of(context, QUICK).tasks(0)[0]
    for _ in range(6):
        asyncio.run(worker.run(task, []))
        assert not watch.look()
    assert [watch.look() for _ in range(3)] == [False, False, True]


def test_a_runaway_ends_itself() -> None:
    program = (
        "from engine.worker import QueryWorker, WorkerSetup, this_build\n"
        "worker = QueryWorker(WorkerSetup(this_build(), 2**26))\n"
        "while True: pass\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == RUNAWAY_EXIT
    assert "works for nobody" in ended.stderr


def test_every_rung_has_options() -> None:
    assert set(OPTIONS) == set(Rung)
