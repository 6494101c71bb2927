"""The process that merges: real merges, errors, and its end: when told, in mid-merge, and when its node is killed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from nodes.mergeprocess import BOOT, ROOT, MergeFailed, MergeProcess
from storage.merge import MergeJob, names_wanted
from storage.objects import open_store
from storage.schema import TailBatch
from storage.store import data_path
from tests.harness.tables import make_rows, make_table, write_file
from tests.harness.waiting import eventually, until

if TYPE_CHECKING:
    from pathlib import Path

    from storage.objects import ObjectStore
    from storage.schema import DataFile

TABLE = make_table()
READ_BYTES = 4 * 2**20


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "store"))


def job(store: ObjectStore, rows: int = 50, files: int = 3) -> MergeJob:
    made: list[DataFile] = []
    for number in range(files):
        batch = TailBatch(number * rows, make_rows(range(number, number + rows), ["a"] * rows, number * rows))
        made.append(write_file(store, TABLE, 1, 2, 1, [batch]))
    names = tuple(data_path(1, 1, 1, 2) for _ in range(names_wanted(made)))
    return MergeJob(TABLE, tuple(made), names)


def process_at(tmp_path: Path) -> MergeProcess:
    return MergeProcess(str(tmp_path / "store"), None, tmp_path / "scratch", READ_BYTES)


def child() -> psutil.Process:
    (found,) = psutil.Process().children()
    return found


def test_merges_and_errors(store: ObjectStore, tmp_path: Path) -> None:
    async def main() -> None:
        process = process_at(tmp_path)
        wanted = job(store)
        answer = await process.merge(wanted, 1.0)
        (file,) = answer.files
        assert (file.path, file.rows) == (wanted.names[0], 52)
        assert store.exists(file.path)
        assert answer.cpu_seconds > 0
        first = child()
        assert first.nice() == 19
        broken = job(store)
        store.delete(broken.files[1].path)
        with pytest.raises(MergeFailed, match="ObjectMissing") as caught:
            await process.merge(broken, 1.0)
        assert caught.value.passing
        damaged = job(store)
        (tmp_path / "store" / damaged.files[1].path).write_bytes(b"no Parquet")
        with pytest.raises(MergeFailed, match="CorruptObject") as caught:
            await process.merge(damaged, 1.0)
        assert not caught.value.passing
        assert (await process.merge(job(store), 1.0)).files
        await process.rest()
        assert not first.is_running()
        assert (await process.merge(job(store), 1.0)).files, "it is started again when there is work"
        await process.aclose()
        await process.aclose()
        assert psutil.Process().children() == []
        with pytest.raises(MergeFailed, match="stopping"):
            await process.merge(job(store), 1.0)

    asyncio.run(main())


def test_a_process_that_dies_fails_its_merge_and_is_replaced(store: ObjectStore, tmp_path: Path) -> None:
    async def main() -> None:
        process = process_at(tmp_path)
        await process.merge(job(store), 1.0)
        child().send_signal(signal.SIGTERM)  # meant for the node's whole group: it goes on
        child().send_signal(signal.SIGINT)
        await process.merge(job(store), 1.0)
        dead = child()
        dead.kill()
        with pytest.raises(MergeFailed, match="ended"):
            await process.merge(job(store), 1.0)
        assert (await process.merge(job(store), 1.0)).files
        await process.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_the_end_in_mid_merge(store: ObjectStore, tmp_path: Path, how: str) -> None:
    """At a share this small it sleeps for hours after its first step."""

    async def main() -> None:
        process = process_at(tmp_path)
        merging = asyncio.ensure_future(process.merge(job(store, 20_000), 1e-6))
        await until(lambda: len(psutil.Process().children()) == 1)
        worker = child()
        if how == "cancelled":
            merging.cancel()
            with pytest.raises(asyncio.CancelledError):
                await merging
            await process.rest()
        else:
            await process.aclose()
            with pytest.raises(MergeFailed):
                await merging
        assert not worker.is_running()
        assert list((tmp_path / "scratch").iterdir()) == []
        await process.aclose()

    asyncio.run(main())


def test_the_end_while_its_process_starts(store: ObjectStore, tmp_path: Path) -> None:
    async def main() -> None:
        process = process_at(tmp_path)
        merging = asyncio.ensure_future(process.merge(job(store, 20_000), 1e-6))
        await asyncio.sleep(0)  # it waits for its process now
        await process.aclose()
        with pytest.raises(MergeFailed, match="stopping"):
            await merging
        assert psutil.Process().children() == []

    asyncio.run(main())


def test_it_ends_when_its_input_does(tmp_path: Path) -> None:
    """As it does when the node is killed, whatever it is at."""
    worker: Any = subprocess.Popen(
        [sys.executable, "-P", "-c", BOOT, str(ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    )
    worker.stdin.close()
    eventually(lambda: worker.poll() is not None, "the worker has ended")
    assert worker.returncode == 0
    worker.stdout.close()


def test_a_folder_beside_the_users_shell_is_not_taken_for_ours(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap" / "storage").mkdir(parents=True)
    (tmp_path / "trap" / "storage" / "__init__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path / "trap")

    async def main() -> None:
        process = process_at(tmp_path)
        assert (await process.merge(job(store), 1.0)).files
        await process.aclose()

    asyncio.run(main())
