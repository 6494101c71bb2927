"""The FileCache: bounded, fetched once, right after damage and restart, and never in the way (LOG L16, L20)."""

from __future__ import annotations

import errno
import os
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from storage import filecache
from storage.errors import ObjectMissing
from storage.filecache import FileCache, Lease
from storage.schema import DataFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from storage.objects import ObjectStore

SIZE = 1000
SECONDS_MAX = 20.0


class Store:
    """Objects by path; counts reads, which wait while it is ``shut``."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.reads: list[str] = []
        self.open = threading.Event()
        self.open.set()

    def put(self, number: int, size: int = SIZE) -> DataFile:
        path = f"data/1/2/3/7-{number:032x}.parquet"
        self.objects[path] = bytes([number % 251]) * (size - 4) + b"PAR1"
        return datafile(path, size)

    def get_range(self, path: str, start: int, length: int) -> bytes:
        self.reads.append(path)
        assert self.open.wait(SECONDS_MAX)
        if path not in self.objects:
            raise ObjectMissing(path)
        return self.objects[path][start : start + length]


def datafile(path: str, size: int) -> DataFile:
    return DataFile(path, 1, 0, 0, 0, 0, 0, 0, 0, 1, size, 1)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def make(tmp_path: Path, store: Store) -> Iterator[Callable[..., FileCache]]:
    """Opens a cache in the same folder each time, as after a restart."""
    made: list[FileCache] = []

    def make(bytes_max: int = 100 * SIZE) -> FileCache:
        for cache in made:
            cache.close()
        made.append(FileCache(tmp_path / "cache", bytes_max, lambda: cast("ObjectStore", store)))
        return made[-1]

    yield make
    store.open.set()
    for cache in made:
        cache.close()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "cache"))


def use(cache: FileCache, *files: DataFile) -> int:
    """As a statement that reads these files does: how many it found here at once."""
    lease = Lease(cache)
    found = len(lease.hold(files))
    lease.bring(files)
    lease.release()
    return found


def content(folder: Path, lease: Lease, file: DataFile) -> bytes:
    (name,) = lease.hold([file]).values()
    return (folder / "cache" / name).read_bytes()


def test_what_a_statement_lacks_is_here_for_it_and_for_the_next(
    make: Callable[..., FileCache], store: Store, tmp_path: Path
) -> None:
    cache, files = make(), [store.put(i) for i in range(3)]
    lease = Lease(cache)
    assert lease.hold(files) == {}
    assert lease.bring(files)
    assert all(content(tmp_path, lease, file) == store.objects[file.path] for file in files)
    lease.release()
    assert use(cache, *files) == 3
    assert len(store.reads) == 3
    found = cache.counters
    assert (found.files, found.bytes, found.hits, found.misses) == (3, 3 * SIZE, 3, 3)
    assert (found.fetched, found.fetched_bytes, found.evicted, found.damaged) == (3, 3 * SIZE, 0, 0)


def test_many_who_want_one_file_fetch_it_once(make: Callable[..., FileCache], store: Store) -> None:
    cache, file = make(), store.put(1)
    store.open.clear()
    coming = [cache.fetch(file, is_waited) for is_waited in (True, True, False, True)]
    assert len(set(map(id, coming))) == 1
    assert coming[0] is not None
    store.open.set()
    coming[0].result(SECONDS_MAX)
    assert store.reads == [file.path]
    assert use(cache, file) == 1


def test_large_files_come_in_pieces(
    make: Callable[..., FileCache], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filecache, "PIECE_BYTES", 300)
    cache, file = make(), store.put(1)
    lease = Lease(cache)
    assert lease.bring([file])
    assert content(tmp_path, lease, file) == store.objects[file.path]
    assert len(store.reads) == 4


def test_the_least_recently_used_go_and_the_limit_holds(
    make: Callable[..., FileCache], store: Store, tmp_path: Path
) -> None:
    cache, files = make(4 * SIZE), [store.put(i) for i in range(6)]
    for file in files[:4]:
        use(cache, file)
    use(cache, files[0])
    for file in files[4:]:
        use(cache, file)
        assert sum(item.stat().st_size for item in (tmp_path / "cache").iterdir()) <= 4 * SIZE
    assert [bool(Lease(cache).hold([file])) for file in files] == [True, False, False, True, True, True]
    assert cache.counters.evicted == 2


def test_a_file_in_use_stays(make: Callable[..., FileCache], store: Store, tmp_path: Path) -> None:
    cache, files = make(8 * SIZE), [store.put(i) for i in range(16)]
    running, other = Lease(cache), Lease(cache)
    assert running.bring(files[:2])
    assert other.bring(files[:1])
    other.release()
    for file in files[2:]:
        use(cache, file)
    assert content(tmp_path, running, files[0]) == store.objects[files[0].path]
    assert len(running.hold(files[:2])) == 2
    running.release()
    running.release()
    for file in files[2:12]:
        use(cache, file)
    assert not Lease(cache).hold(files[:2])


def test_what_a_plan_does_not_read_is_let_go(make: Callable[..., FileCache], store: Store) -> None:
    cache, files = make(4 * SIZE), [store.put(i) for i in range(5)]
    for file in files[:4]:
        use(cache, file)
    lease = Lease(cache)
    assert len(lease.hold(files)) == 4
    lease.keep([file.path for file in files[1:4]])
    use(cache, files[4])
    assert len(lease.hold(files)) == 4
    assert not Lease(cache).hold(files[:1])


def test_nothing_goes_if_that_would_not_make_room(make: Callable[..., FileCache], store: Store) -> None:
    cache, files, large = make(8 * SIZE), [store.put(i) for i in range(8)], store.put(9, 2 * SIZE)
    running = Lease(cache)
    for file in files:
        running.bring([file])
    assert not Lease(cache).bring([large])
    assert len(running.hold(files)) == 8
    assert (cache.counters.evicted, cache.counters.refused) == (0, 1)


def test_a_restart_finds_the_files_reads_them_through_and_sweeps_the_rest(
    make: Callable[..., FileCache], store: Store, tmp_path: Path
) -> None:
    files = [store.put(i) for i in range(3)]
    use(make(), *files)
    whole = names(tmp_path)
    for stray in (filecache.TEMPORARY + "0", "notes.txt", "a.parquet"):
        (tmp_path / "cache" / stray).write_bytes(b"left by a process that died")
    cache = make()
    assert names(tmp_path) == whole
    assert (cache.counters.files, cache.counters.bytes) == (3, 3 * SIZE)
    lease = Lease(cache)
    assert lease.hold(files) == {}, "used before it was read through"
    assert lease.bring(files)
    assert len(lease.hold(files)) == 3
    assert len(store.reads) == 3, "fetched although it was here"


def test_a_restart_with_a_lower_limit_keeps_what_was_used_last(
    make: Callable[..., FileCache], store: Store, tmp_path: Path
) -> None:
    files = [store.put(i) for i in range(4)]
    cache = make()
    use(cache, *files)
    for entry in cache._entries.values():  # all of them last used long ago, at one time
        entry.touched = 0.0
        os.utime(tmp_path / "cache" / entry.name, ns=(10**18, entry.modified_ns))
    use(cache, files[0])
    use(cache, files[2])
    assert make(2 * SIZE).counters.files == 2
    kept = [name.partition(".")[0].replace(",", "/") for name in names(tmp_path)]
    assert kept == [files[i].path.removesuffix(".parquet") for i in (0, 2)]


@pytest.mark.parametrize("harm", ["a bit", "truncated", "longer", "empty", "gone"])
def test_what_a_restart_finds_damaged_is_fetched_again(
    make: Callable[..., FileCache], store: Store, tmp_path: Path, harm: str
) -> None:
    file = store.put(5)
    use(make(), file)
    damage(tmp_path, harm)
    cache = make()
    lease = Lease(cache)
    assert lease.bring([file])
    assert content(tmp_path, lease, file) == store.objects[file.path]
    assert len(store.reads) == 2
    assert cache.counters.damaged == (harm != "gone")


def damage(folder: Path, harm: str) -> None:
    (name,) = names(folder)
    path = folder / "cache" / name
    data = bytearray(path.read_bytes())
    if harm == "a bit":
        data[SIZE // 2] ^= 4
        path.write_bytes(data)
    elif harm == "gone":
        path.unlink()
    else:
        path.write_bytes({"truncated": bytes(data[:-1]), "longer": bytes(data) + b"PAR1", "empty": b""}[harm])


@pytest.mark.parametrize("harm", ["truncated", "longer", "empty", "gone"])
def test_what_is_damaged_under_a_running_process_is_seen_before_its_answer_counts(
    make: Callable[..., FileCache], store: Store, tmp_path: Path, harm: str
) -> None:
    cache, file = make(), store.put(5)
    lease = Lease(cache)
    assert lease.bring([file])
    assert lease.lost() == []
    damage(tmp_path, harm)
    assert lease.lost() == [file.path]
    lease.release()
    again = Lease(cache)
    assert again.hold([file]) == {}
    assert again.bring([file])
    assert content(tmp_path, again, file) == store.objects[file.path]
    assert cache.counters.damaged == 1


def test_after_a_doubt_files_are_read_through_again(
    make: Callable[..., FileCache], store: Store, tmp_path: Path
) -> None:
    cache, files = make(), [store.put(5)]
    lease = Lease(cache)
    assert not lease.doubt()
    assert lease.bring(files)
    damage(tmp_path, "a bit")
    assert len(Lease(cache).hold(files)) == 1, "of the size that it had"
    assert lease.doubt()
    lease.release()
    assert lease.is_doubted
    assert Lease(cache).hold(files) == {}
    assert Lease(cache).bring(files)
    assert (cache.counters.damaged, cache.counters.fetched) == (1, 2)


def test_a_file_of_another_size_than_the_checkpoint_says_is_not_used(
    make: Callable[..., FileCache], store: Store
) -> None:
    cache, file = make(), store.put(5)
    use(cache, file)
    assert Lease(cache).hold([datafile(file.path, SIZE - 1)]) == {}


@pytest.mark.parametrize("harm", ["short", "long", "no Parquet", "missing"])
def test_what_is_no_datafile_is_not_kept(
    make: Callable[..., FileCache], store: Store, tmp_path: Path, harm: str
) -> None:
    file = store.put(1)
    data = store.objects.pop(file.path)
    changed = {"short": data[1:], "long": data + b"PAR1", "no Parquet": data[:-1] + b"2"}
    store.objects |= {file.path: changed[harm]} if harm in changed else {}
    cache = make()
    assert not Lease(cache).bring([file])
    assert names(tmp_path) == []
    assert (cache.counters.refused, cache.counters.bytes, cache._used_bytes) == (1, 0, 0)


def test_a_statement_that_reads_much_brings_nothing_and_uses_what_is_here(
    make: Callable[..., FileCache], store: Store
) -> None:
    cache, files = make(10 * SIZE), [store.put(i) for i in range(20)]
    for file in files[:5]:
        use(cache, file)
    assert use(cache, *files) == 5
    assert len(store.reads) == 5
    cache = make(10 * SIZE)
    big = Lease(cache)
    big.bring(files)
    assert len(big.hold(files)) == 5, "what a former process left is read through for it, too"
    assert len(store.reads) == 5


def test_what_is_used_again_and_again_survives_scans(make: Callable[..., FileCache], store: Store) -> None:
    """A statement may bring in a quarter of the limit, and a larger one nothing: what others use stays."""
    cache, hot = make(20 * SIZE), [store.put(i) for i in range(8)]
    for begin in range(100, 1000, 50):
        assert [use(cache, file) for file in hot] == [begin > 100] * 8
        use(cache, *(store.put(begin + i) for i in range(5)))
        use(cache, *(store.put(begin + i) for i in range(40)))


def test_much_is_fetched_behind_the_statement(
    make: Callable[..., FileCache], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filecache, "WAITED_BYTES_MAX", 2 * SIZE)
    cache, files = make(), [store.put(i) for i in range(3)]
    store.open.clear()
    with monkeypatch.context() as patched:
        patched.delattr(filecache, "wait")
        assert not Lease(cache).bring(files), "it must not wait for this"
    coming = [cache.fetch(file, False) for file in files]
    store.open.set()
    for future in coming:
        assert future is not None
        future.result(SECONDS_MAX)
    assert use(cache, *files) == 3


def test_a_store_that_hangs_holds_no_statement_up_for_long(
    make: Callable[..., FileCache], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filecache, "WAIT_SECONDS_MAX", 0.05)
    cache, file = make(), store.put(1)
    store.open.clear()
    assert not Lease(cache).bring([file])


def test_what_waits_to_be_fetched_is_bounded(
    make: Callable[..., FileCache], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filecache, "COMING_MAX", 3)
    cache, files = make(), [store.put(i) for i in range(5)]
    store.open.clear()
    assert [cache.fetch(file, False) is not None for file in files] == [True, True, True, False, False]


def test_small_files_are_bounded_too(
    make: Callable[..., FileCache], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filecache, "FILES_MAX", 4)
    cache = make()
    for i in range(8):
        use(cache, store.put(i))
    assert cache.counters.files == 4
    monkeypatch.setattr(filecache, "FILES_MAX", 3)
    assert make().counters.files == 3


def test_a_disk_that_is_nearly_full_is_left_alone(
    make: Callable[..., FileCache], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, first, second = make(), store.put(1), store.put(2)
    use(cache, first)
    full = SimpleNamespace(f_bavail=5, f_blocks=100, f_frsize=SIZE)
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    assert not Lease(cache).bring([second])
    assert len(names(tmp_path)) == 1
    full.f_bavail = 7
    assert Lease(cache).bring([second])


def test_a_write_that_finds_no_room_is_passed_by(
    make: Callable[..., FileCache], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, file = make(), store.put(1)

    def rename(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", rename)
        assert not Lease(cache).bring([file])
    assert names(tmp_path) == []
    assert cache._used_bytes == 0
    assert Lease(cache).bring([file])


def test_a_folder_that_cannot_be_made_means_no_cache(store: Store, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    cache = FileCache(tmp_path / "cache", 100 * SIZE, lambda: cast("ObjectStore", store))
    assert use(cache, store.put(1)) == 0
    assert store.reads == []
    cache.close()


def test_nothing_is_begun_after_the_close(make: Callable[..., FileCache], store: Store) -> None:
    cache, files = make(), [store.put(i) for i in range(40)]
    store.open.clear()
    coming = [cache.fetch(file, False) for file in files]
    cache.close()
    store.open.set()
    assert cache.fetch(store.put(99), True) is None
    assert coming[-1] is not None
    assert coming[-1].cancelled()


def test_without_a_cache_a_lease_holds_nothing(store: Store) -> None:
    lease, file = Lease(), store.put(1)
    assert lease.hold([file]) == {}
    assert not lease.bring([file])
    assert lease.lost() == []
    assert not lease.doubt()
    lease.release()
