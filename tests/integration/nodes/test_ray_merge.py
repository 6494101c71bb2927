"""Merges on a real Ray worker: names, priority, and its end: killed or frozen in mid-merge, given up, not there."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
from typing import TYPE_CHECKING

import psutil
import pytest

import nodes.raymerge
from engine.workers import RayWorkers
from nodes.compaction import Compactor
from nodes.mergeprocess import MergeFailed
from nodes.mergeworker import NICENESS, Answer, Setup
from nodes.rayhead import new_workers
from nodes.raymerge import RayMerger
from storage.errors import StorageError
from storage.merge import MergeJob, merge_files, names_wanted
from storage.objects import open_store
from storage.schema import TailBatch
from storage.store import data_path, open_identity
from tests.harness.raydriver import START_SECONDS, make_settings
from tests.harness.storagenode import Ledger, check_node
from tests.harness.tables import make_rows, make_table, write_file
from tests.harness.waiting import until
from tests.integration.storage.test_two_owners import owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from storage.bundlemerge import BundleJob
    from storage.objects import ObjectStore
    from storage.schema import DataFile

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    # Ray lets its own processes go without having waited for them.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

TABLE = make_table()
READ_BYTES = 2**18
ASLEEP = 1e-6
"""A share of a core at which a merge sleeps for hours after its first step."""


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayWorkers]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.workers.LOOK_SECONDS", 0.3)
        made = new_workers(make_settings(tmp_path_factory.mktemp("home")))
        assert isinstance(made, RayWorkers)
        yield made
        asyncio.run(made.aclose())


class Here:
    """The node's own merges, in a thread and whatever the share."""

    def __init__(self, store: ObjectStore, scratch: Path) -> None:
        self._store, self._scratch = store, scratch
        self._closed = False

    async def merge(self, job: MergeJob | BundleJob, share: float) -> Answer:
        assert isinstance(job, MergeJob)
        if self._closed:
            raise MergeFailed("this node is stopping")
        try:
            return Answer(0.0, await asyncio.to_thread(merge_files, self._store, job, self._scratch))
        except StorageError as error:
            raise MergeFailed(type(error).__name__) from error

    async def rest(self) -> None:
        """Nothing is held."""

    async def aclose(self) -> None:
        self._closed = True


class Place:
    """A store, and who merges in it."""

    def __init__(self, folder: Path, workers: RayWorkers) -> None:
        self.folder = folder
        self.store = open_store(str(folder / "store"))
        open_identity(self.store)
        self.workers = workers
        self.merger = RayMerger(workers, Setup(self.store.url, None, ""), READ_BYTES, Here(self.store, folder))

    def job(self, rows: int = 50) -> MergeJob:
        return job(self.store, rows)

    async def there(self) -> None:
        """Ray is; the first merge asks for it."""
        await self.merger.merge(self.job(), 1.0)
        await until(lambda: self.workers._session is not None, START_SECONDS)

    async def asleep(self, rows: int = 3_000) -> tuple[MergeJob, asyncio.Future[Answer], psutil.Process]:
        """A merge that is under way on a Ray worker and would take hours."""
        await self.merger.rest()  # or the last merge's thread would be taken for this one's
        await until(lambda: not actors())
        wanted = self.job(rows)
        merging = asyncio.ensure_future(self.merger.merge(wanted, ASLEEP))
        await until(lambda: any(is_nice(process) for process in actors()), START_SECONDS)
        (worker,) = actors()
        return wanted, merging, worker


def job(store: ObjectStore, rows: int) -> MergeJob:
    made: list[DataFile] = []
    for number in range(3):
        batch = TailBatch(number * rows, make_rows(range(number, number + rows), ["a"] * rows, number * rows))
        made.append(write_file(store, TABLE, 1, 2, 1, [batch]))
    return MergeJob(TABLE, tuple(made), tuple(data_path(1, 1, 1, 2) for _ in range(names_wanted(made))))


def ray_processes(kind: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if f"ray::{kind}" in " ".join(process.cmdline()[:1]) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def actors() -> list[psutil.Process]:
    return ray_processes("MergeActor")


def is_nice(process: psutil.Process) -> bool:
    """Whether one of its threads merges."""
    try:
        return any(psutil.Process(thread.id).nice() == NICENESS for thread in process.threads())
    except psutil.Error:
        return False


def is_whole(store: ObjectStore, wanted: MergeJob, answer: Answer, rows: int) -> bool:
    (file,) = answer.files
    return file.path in wanted.names and file.rows == rows + 2 and store.exists(file.path)


def test_it_merges_here_until_ray_is_there_and_then_there(tmp_path: Path, workers: RayWorkers) -> None:
    async def main() -> None:
        place = Place(tmp_path, workers)
        wanted = place.job()
        first = await place.merger.merge(wanted, 1.0)
        assert not first.on_ray
        assert is_whole(place.store, wanted, first, 50)
        await until(lambda: workers._session is not None, START_SECONDS)
        for _ in range(2):
            wanted = place.job()
            answer = await place.merger.merge(wanted, 1.0)
            assert answer.on_ray
            assert is_whole(place.store, wanted, answer, 50), "under a name that the owner has given (L20)"
            assert answer.cpu_seconds > 0
        assert len(actors()) == 1
        assert ray_processes("QueryWorker") == [], "nobody asked for those"
        await place.merger.rest()
        await until(lambda: not actors())
        assert (await place.merger.merge(place.job(), 1.0)).on_ray, "it is started again when there is work"
        await place.merger.aclose()
        await place.merger.aclose()
        await until(lambda: not actors())
        with pytest.raises(MergeFailed, match="stopping"):
            await place.merger.merge(place.job(), 1.0)

    asyncio.run(main())


def killed(worker: psutil.Process) -> None:
    worker.send_signal(signal.SIGKILL)


def frozen(worker: psutil.Process) -> None:
    worker.send_signal(signal.SIGSTOP)


@pytest.mark.parametrize("end", [killed, frozen])
def test_a_worker_that_goes_in_mid_merge_is_done_without(
    tmp_path: Path, workers: RayWorkers, monkeypatch: pytest.MonkeyPatch, end: Callable[[psutil.Process], None]
) -> None:
    monkeypatch.setattr(nodes.raymerge, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(nodes.raymerge, "SILENT_SECONDS", 2.0)
    monkeypatch.setattr(nodes.raymerge, "RETRY_SECONDS", 0.0)

    async def main() -> None:
        place = Place(tmp_path, workers)
        await place.there()
        wanted, merging, worker = await place.asleep()
        end(worker)
        answer = await merging
        assert not answer.on_ray
        assert is_whole(place.store, wanted, answer, 3_000)
        await until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
        assert (await place.merger.merge(place.job(), 1.0)).on_ray, "another is started"
        await place.merger.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_the_end_in_mid_merge(tmp_path: Path, workers: RayWorkers, how: str) -> None:
    async def main() -> None:
        place = Place(tmp_path, workers)
        await place.there()
        wanted, merging, _ = await place.asleep()
        if how == "cancelled":
            merging.cancel()
            with pytest.raises(asyncio.CancelledError):
                await merging
        else:
            await place.merger.aclose()
            with pytest.raises(MergeFailed, match="stopping"):
                await merging
        await until(lambda: not actors())
        assert not any(place.store.exists(name) for name in wanted.names)
        await place.merger.aclose()

    asyncio.run(main())


def test_a_worker_that_cannot_reach_the_store_or_is_another_runnel_merges_nothing(
    tmp_path: Path, workers: RayWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        place = Place(tmp_path, workers)
        await place.there()
        await place.merger.rest()
        place.merger._setup = Setup(f"file://{tmp_path}/elsewhere", None, "")
        assert not (await place.merger.merge(place.job(), 1.0)).on_ray
        assert not (tmp_path / "elsewhere").exists()
        place.merger._setup = Setup(place.store.url, None, "")
        await place.merger.rest()
        monkeypatch.setattr(nodes.raymerge, "this_build", lambda: "another")
        assert not (await place.merger.merge(place.job(), 1.0)).on_ray
        monkeypatch.undo()
        broken = place.job()
        place.store.delete(broken.files[1].path)
        with pytest.raises(MergeFailed, match="ObjectMissing"):
            await place.merger.merge(broken, 1.0)
        await place.merger.aclose()

    asyncio.run(main())


def epoch_of(file: DataFile) -> str:
    return file.path.rpartition("/")[2].partition("-")[0]


def test_l21_a_shards_owner_commits_what_a_worker_has_made(tmp_path: Path, workers: RayWorkers) -> None:
    async def main() -> None:
        place = Place(tmp_path, workers)
        await place.there()
        node, ledger = await owner(place.store, b"a"), Ledger()
        compactor = Compactor(node.shards.values, place.merger, 0.25, lambda files: "")
        await node.ensure("t0", ledger)
        for _ in range(5):
            await node.write("t0", 3, ledger)
            await node.shards[1].checkpoint()
        (epoch,) = {epoch_of(file) for file in node.shards[1].state.all_files()}
        assert await compactor.compact() == 1
        assert (compactor.counters.on_ray, compactor.counters.merges) == (1, 1)
        (file,) = node.shards[1].state.all_files()
        assert epoch_of(file) == epoch, "its name is the owner's (L20)"
        await check_node(node, ledger)
        await place.merger.aclose()

    asyncio.run(main())
