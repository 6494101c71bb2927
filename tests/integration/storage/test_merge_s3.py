"""Merging files of an object store that is not a disk: fetched whole or by ranges, in this process and in another."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from nodes.mergeprocess import MergeProcess
from storage.errors import ObjectMissing
from storage.merge import MergeJob, merge_files, names_wanted
from storage.objects import open_store
from storage.rangereader import RangeReader
from storage.schema import DataFile, TailBatch
from storage.store import data_path
from tests.harness.s3server import S3Server, moto_server
from tests.harness.stores import MemoryStore
from tests.harness.tables import make_rows, make_table, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from storage.objects import ObjectStore

TABLE = make_table()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


def job(store: ObjectStore) -> MergeJob:
    made: list[DataFile] = []
    for number in range(3):
        batch = TailBatch(number * 50, make_rows(range(number, number + 50), ["a"] * 50, number * 50))
        made.append(write_file(store, TABLE, 1, 2, 1, [batch]))
    return MergeJob(TABLE, tuple(made), tuple(data_path(1, 1, 1, 2) for _ in range(names_wanted(made))))


@pytest.mark.parametrize("whole_bytes", [0, 2**20])
def test_files_are_fetched_whole_or_by_ranges(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    monkeypatch.setattr("storage.merge.WHOLE_BYTES_MAX", whole_bytes)
    store = open_store(s3.new_store(), s3.options)
    wanted = job(store)
    (file,) = merge_files(store, wanted, tmp_path)
    assert file.rows == 52
    assert len(store.get(file.path)) == file.bytes
    store.delete(wanted.files[0].path)
    with pytest.raises(ObjectMissing):
        merge_files(store, wanted, tmp_path)
    store.close()


def test_the_process_reaches_the_store_by_itself(s3: S3Server, tmp_path: Path) -> None:
    url = s3.new_store()
    store = open_store(url, s3.options)

    async def main() -> None:
        process = MergeProcess(url, s3.options, tmp_path / "scratch", 2**22)
        (file,) = (await process.merge(job(store), 1.0)).files
        assert store.exists(file.path)
        await process.aclose()

    asyncio.run(main())
    store.close()


def test_a_range_reader_is_a_file() -> None:
    store = MemoryStore()
    store.create("a", b"0123456789")
    reader = RangeReader(store, "a", 10)
    assert (reader.readable(), reader.seekable(), reader.writable()) == (True, True, False)
    assert reader.read(3) == b"012"
    assert reader.seek(-2, 2) == 8
    assert (reader.read(), reader.read(), reader.tell()) == (b"89", b"", 10)
    assert reader.seek(4) == 4
    assert reader.seek(1, 1) == 5
    assert reader.readall() == b"56789"
    assert reader.seek(20) == 20
    assert reader.read(1) == b""
