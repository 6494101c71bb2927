"""The local store: the order of its system calls, failed fsyncs, full disks, dead writers (LOG L34, L6)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from storage import localstore
from storage.errors import FsyncFailed, ObjectMissing, StoreFull, StoreUnavailable, StoreUnsuitable
from storage.localstore import LocalStore, open_local, refuse_cached_nfs
from storage.objects import CreateOutcome, Listed, prove_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT_OF_PROJECT = Path(__file__).parents[3]
LOG_OBJECT = "logs/1/00000000000000000001"


@pytest.fixture(params=["unnamed", "named"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalStore]:
    """Both ways to write: O_TMPFILE, and a named temporary file where that is missing."""
    store = open_local(tmp_path / "store")
    if request.param == "unnamed" and not store._unnamed_files:
        pytest.skip("this file system has no O_TMPFILE")
    store._unnamed_files = request.param == "unnamed"
    yield store
    store.close()


def _root(store: LocalStore) -> Path:
    return Path(store.url.removeprefix("file://"))


def _path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _trace(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[str]:
    """What the store asks of the disk from now on, in order."""
    calls: list[str] = []

    def named(fd: int) -> str:
        path = _path_of(fd)
        is_folder = os.path.isdir(f"/proc/self/fd/{fd}")
        return (os.path.relpath(path, root) if path.startswith(str(root)) else path) if is_folder else "content"

    def spy(name: str, describe: Callable[..., str]) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(f"{name} {describe(*args, **kwargs)}")
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    spy("writev", lambda fd, buffers: named(fd))
    spy("fsync", lambda fd: named(fd))
    spy("link", lambda source, name, **kwargs: f"{named(kwargs['dst_dir_fd'])}/{name}")
    spy("mkdir", lambda name, *mode, dir_fd=None: f"{named(dir_fd) if dir_fd else ''}/{name}")
    return calls


def test_a_create_is_write_fsync_link_fsync_folder(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """L34, L4: the content is durable before it has a name, and the name before CREATED is said."""
    store.create(LOG_OBJECT, b"warm")
    calls = _trace(monkeypatch, _root(store))
    assert store.create("logs/1/00000000000000000002", [b"head", b"body"]) is CreateOutcome.CREATED
    assert calls == ["writev content", "fsync content", "link logs/1/00000000000000000002", "fsync logs/1"]


def test_new_folders_are_durable_before_what_is_in_them(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("warm", b"")
    calls = _trace(monkeypatch, _root(store))
    store.create("data/1/x", b"")
    assert [call for call in calls if "content" not in call] == [
        "mkdir ./data",
        "fsync .",
        "mkdir data/1",
        "fsync data",
        "link data/1/x",
        "fsync data/1",
    ]


def test_folders_of_a_writer_that_died_are_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """L34: they stand, but whether their maker lived to fsync them is unknown."""
    root = tmp_path / "store"
    (root / "logs/1").mkdir(parents=True)
    store = open_local(root)
    calls = _trace(monkeypatch, root)
    store.create(LOG_OBJECT, b"")
    assert {"fsync .", "fsync logs", "fsync logs/1"} <= set(calls)
    calls.clear()
    store.create("logs/1/00000000000000000002", b"")
    assert [call for call in calls if call.startswith(("mkdir", "fsync "))] == ["fsync content", "fsync logs/1"]


def test_the_root_is_made_durable_in_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _trace(monkeypatch, tmp_path)
    open_local(tmp_path / "a/b/store").close()
    assert [call for call in calls if call.startswith("fsync")] == ["fsync a/b", "fsync a", "fsync ."]
    calls.clear()
    open_local(tmp_path / "a/b/store").close()
    assert "fsync a/b" in calls


def test_settle_fsyncs_the_folder(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """L6: an earlier try of ours may have linked and then died; EXISTS alone fsyncs nothing."""
    store.create(LOG_OBJECT, b"mine")
    calls = _trace(monkeypatch, _root(store))
    assert store.create(LOG_OBJECT, b"mine") is CreateOutcome.EXISTS
    assert "fsync logs/1" not in calls
    store.settle(LOG_OBJECT)
    assert calls[-1] == "fsync logs/1"


def _fail(
    monkeypatch: pytest.MonkeyPatch, name: str, number: int, when: Callable[[int], bool] = lambda _: True
) -> None:
    real: Callable[..., Any] = getattr(os, name)

    def call(first: Any, *args: Any, **kwargs: Any) -> Any:
        if when(first):
            raise OSError(number, os.strerror(number))
        return real(first, *args, **kwargs)

    monkeypatch.setattr(os, name, call)


def _is_folder(fd: int) -> bool:
    return os.path.isdir(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize("folder", [False, True], ids=["content", "folder"])
def test_a_failed_fsync_ends_the_store(store: LocalStore, monkeypatch: pytest.MonkeyPatch, folder: bool) -> None:
    """L34: a second fsync would succeed and say nothing; so nothing more is answered."""
    store.create("logs/1/00000000000000000000", b"")
    with monkeypatch.context() as patch:
        _fail(patch, "fsync", errno.EIO, lambda fd: _is_folder(fd) is folder)
        with pytest.raises(FsyncFailed, match="unknown"):
            store.create(LOG_OBJECT, b"x")
    assert (_root(store) / LOG_OBJECT).exists() is folder
    for use in (
        lambda: store.create("logs/1/00000000000000000002", b"x"),
        lambda: store.settle(LOG_OBJECT),
        lambda: store.get(LOG_OBJECT),
        lambda: store.get_range(LOG_OBJECT, 0, 1),
        lambda: store.exists(LOG_OBJECT),
        lambda: store.list("logs/1"),
        lambda: store.list_all(""),
        lambda: store.delete(LOG_OBJECT),
        store.clock_ms,
    ):
        with pytest.raises(FsyncFailed):
            use()


def test_a_failed_settle_ends_the_store(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create(LOG_OBJECT, b"x")
    with monkeypatch.context() as patch:
        _fail(patch, "fsync", errno.EIO)
        with pytest.raises(FsyncFailed):
            store.settle(LOG_OBJECT)
    with pytest.raises(FsyncFailed):
        store.exists(LOG_OBJECT)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["writev", "fsync", "link"])
def test_no_room_is_certain_and_passes(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """Network file systems tell of a full disk only at fsync; the file has no name yet and is dropped."""
    store.create("logs/1/00000000000000000000", b"")
    with monkeypatch.context() as patch:
        _fail(patch, call, number, lambda fd: call != "fsync" or not _is_folder(fd))
        with pytest.raises(StoreFull, match="no room"):
            store.create(LOG_OBJECT, b"x")
    assert not store.exists(LOG_OBJECT)
    assert store.create(LOG_OBJECT, b"x") is CreateOutcome.CREATED


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR])
def test_a_link_without_a_clear_answer_is_unknown(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """L6: on a shared volume the name may have been given before the answer was lost."""
    store.create("logs/1/00000000000000000000", b"")
    real = os.link

    def link(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", link)
        assert store.create(LOG_OBJECT, b"mine") is CreateOutcome.UNKNOWN
    assert store.create(LOG_OBJECT, b"mine") is CreateOutcome.EXISTS
    store.settle(LOG_OBJECT)
    assert store.get(LOG_OBJECT) == b"mine"


@pytest.mark.parametrize("call", ["open", "writev", "link"])
def test_a_refusal_before_the_link_is_certain(store: LocalStore, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    store.create("logs/1/00000000000000000000", b"")
    number = errno.EACCES if call == "link" else errno.EIO
    with monkeypatch.context() as patch:
        _fail(patch, call, number)
        with pytest.raises(StoreUnavailable):
            store.create(LOG_OBJECT, b"x")
    assert not store.exists(LOG_OBJECT)


def test_a_read_error_is_not_a_missing_object(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """L13 rests on "missing": a disk that does not answer must not look like the end of the Log."""
    store.create(LOG_OBJECT, b"x")
    uses: dict[str, Callable[[], object]] = {
        "stat": lambda: store.exists(LOG_OBJECT),
        "pread": lambda: store.get(LOG_OBJECT),
        "scandir": lambda: store.list("logs/1"),
        "unlink": lambda: store.delete(LOG_OBJECT),
    }
    for call, use in uses.items():
        with monkeypatch.context() as patch:
            _fail(patch, call, errno.EIO)
            with pytest.raises(StoreUnavailable):
                use()
    assert store.get(LOG_OBJECT) == b"x"


def test_short_writes_and_reads_are_continued(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    content = random.Random(1).randbytes(10_000)
    parts = [content[:10], b"", content[10:5000], content[5000:]]
    monkeypatch.setattr(os, "writev", lambda fd, buffers: os.write(fd, b"".join(buffers)[:777]))
    assert store.create(LOG_OBJECT, parts) is CreateOutcome.CREATED
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real(fd, min(length, 999), offset))
    assert store.get(LOG_OBJECT) == content
    assert store.get_range(LOG_OBJECT, 4000, 3000) == content[4000:7000]


def test_a_removed_folder_is_made_again(store: LocalStore) -> None:
    store.create("data/1/2/a", b"")
    (_root(store) / "data/1/2/a").unlink()
    (_root(store) / "data/1/2").rmdir()
    assert store.create("data/1/2/b", b"x") is CreateOutcome.CREATED
    assert store.get("data/1/2/b") == b"x"


def test_a_removed_root_is_not_made_again(store: LocalStore) -> None:
    """Something else would be at that path: another store, or the folder below a lost mount."""
    _remove_tree(_root(store))
    with pytest.raises(StoreUnavailable):
        store.create(LOG_OBJECT, b"x")
    assert not _root(store).exists()


def _remove_tree(root: Path) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    root.rmdir()


def test_the_store_stays_in_its_folder_when_the_path_changes(store: LocalStore, tmp_path: Path) -> None:
    store.create(LOG_OBJECT, b"x")
    _root(store).rename(tmp_path / "moved")
    open_local(_root(store)).close()
    assert store.exists(LOG_OBJECT)
    assert store.create("new/folder/b", b"") is CreateOutcome.CREATED
    assert (tmp_path / "moved/new/folder/b").exists()


def test_open_folders_are_bounded_and_given_back(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localstore, "FOLDERS_OPEN_MAX", 4)
    before = len(os.listdir("/proc/self/fd"))

    def write(number: int) -> CreateOutcome:
        return store.create(f"data/{number % 23}/{number}", str(number).encode())

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(write, range(500))) == {CreateOutcome.CREATED}
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    assert len(store.list_all("data")) == 500
    assert all(store.get(f"data/{n % 23}/{n}") == str(n).encode() for n in range(500))
    store.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_things_that_are_no_objects_do_not_show(store: LocalStore, tmp_path: Path) -> None:
    store.create("logs/1/a", b"x")
    folder = _root(store) / "logs/1"
    for name in (".tmp-7", "with space", "lost+found", "ümlaut"):
        (folder / name).write_bytes(b"")
    (folder / "link").symlink_to(folder / "a")
    (folder / "linked").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(folder / "pipe")
    assert store.list("logs/1") == [Listed("a", 1)]
    assert store.list_all("") == [Listed("logs/1/a", 1)]
    assert not store.exists("logs/1/link")
    assert not store.exists("logs/1/pipe")
    with pytest.raises((ObjectMissing, StoreUnavailable)):
        store.get("logs/1/link")


def test_an_object_deleted_during_a_listing_is_left_out(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("a/1", b"")
    store.create("a/2", b"")
    real = localstore._listed

    def listed(entry: os.DirEntry[str]) -> Iterator[Listed]:
        if entry.name == "1":
            entry.is_file()
            os.unlink(_root(store) / "a/1")
        return real(entry)

    monkeypatch.setattr(localstore, "_listed", listed)
    assert store.list("a") == [Listed("2", 0)]


# --- Full disks: a real one ---------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"no tmpfs here: {mount.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_full_disk_loses_nothing_and_passes(small_disk: Path, unnamed: bool) -> None:
    store = open_local(small_disk / "store")
    if unnamed and not store._unnamed_files:
        pytest.skip("this file system has no O_TMPFILE")
    store._unnamed_files = unnamed
    kept = 0
    with contextlib.suppress(StoreFull):
        while store.create(f"logs/1/{kept:020d}", [b"x" * 50_000, b"y" * 50_000]) is CreateOutcome.CREATED:
            kept += 1
    assert 9 <= kept <= 10
    assert [entry.size for entry in store.list("logs/1")] == [100_000] * kept
    with pytest.raises(StoreFull, match="no room"):
        store.create(f"logs/1/{kept:020d}", b"x" * 100_000)
    store.delete(f"logs/1/{0:020d}")
    assert store.create(f"logs/1/{kept:020d}", b"x" * 100_000) is CreateOutcome.CREATED
    store.close()


def test_a_disk_that_cannot_be_written_is_unsuitable(small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreUnsuitable, match="may write"):
        open_local(small_disk)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnsuitable):
        open_local(tmp_path / "file")
    with pytest.raises(StoreUnsuitable):
        open_local(tmp_path / "file/below")


def test_a_store_without_o_tmpfile_is_proved_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def open_without(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", open_without)
    store = open_local(tmp_path / "store")
    assert not store._unnamed_files
    prove_store(store)
    assert list((tmp_path / "store/.tmp").iterdir()) == []


# --- Writers that die ---------------------------------------------------------------------------------

_STUCK_WRITER = """
import os, sys, time
from pathlib import Path
from storage import localstore
store = localstore.open_local(Path(sys.argv[1]))
store._unnamed_files = False
def stuck(fd):
    print("written", flush=True)
    time.sleep(60)
localstore.LocalStore._fsync_content = lambda self, fd, name: stuck(fd)
store.create("logs/1/00000000000000000001", b"half")
"""

_BUSY_WRITER = """
import hashlib, os, sys
from pathlib import Path
from storage import localstore
store = localstore.open_local(Path(sys.argv[1]))
store._unnamed_files = sys.argv[2] == "True"
for number in range(10**6):
    body = os.urandom(20_000)
    store.create(f"logs/1/{number:020d}", [hashlib.sha256(body).digest(), body])
    print(number, flush=True)
"""


@contextlib.contextmanager
def _writer(code: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args], cwd=ROOT_OF_PROJECT, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_temporary_files_of_dead_writers_are_swept(tmp_path: Path) -> None:
    """L34: and those of living ones are not."""
    root = tmp_path / "store"
    with _writer(_STUCK_WRITER, str(root)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        open_local(root).close()
        assert len(list((root / ".tmp").iterdir())) == 1
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(list((root / ".tmp").iterdir())) == 1
    store = open_local(root)
    assert list((root / ".tmp").iterdir()) == []
    assert store.list_all("") == []
    assert store.create(LOG_OBJECT, b"whole") is CreateOutcome.CREATED


def test_without_locks_the_sweep_goes_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store/.tmp"
    folder.mkdir(parents=True)
    (folder / "old").write_bytes(b"")
    (folder / "new").write_bytes(b"")
    long_ago = time.time() - localstore.TEMPORARY_AGE_SECONDS_MAX - 60
    os.utime(folder / "old", (long_ago, long_ago))

    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    open_local(tmp_path / "store").close()
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_a_temporary_file_swept_under_a_living_writer_costs_one_more_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where locks do not reach other hosts, a sweep may err: then there is no link, and the create starts over."""
    store = open_local(tmp_path / "store")
    store._unnamed_files = False
    swept: list[str] = []
    real = LocalStore._fsync_content

    def sweep_then_fsync(self: LocalStore, fd: int, name: str) -> None:
        if not swept:
            swept.append(_path_of(fd))
            os.unlink(swept[0])
        real(self, fd, name)

    monkeypatch.setattr(LocalStore, "_fsync_content", sweep_then_fsync)
    assert store.create(LOG_OBJECT, b"x") is CreateOutcome.CREATED
    assert swept
    assert store.get(LOG_OBJECT) == b"x"
    assert list((tmp_path / "store/.tmp").iterdir()) == []


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_killed_writer_leaves_whole_objects_only(tmp_path: Path, unnamed: bool) -> None:
    """Promise 1: what was said to be created stands whole; what was not said stands whole or not at all."""
    root = tmp_path / "store"
    with _writer(_BUSY_WRITER, str(root), str(unnamed)) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(random.Random(unnamed).randint(20, 60))]
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout if line.endswith("\n")]
    store = open_local(root)
    listed = store.list("logs/1")
    assert len(said) <= len(listed) <= len(said) + 1
    for entry in listed:
        content = store.get(f"logs/1/{entry.name}")
        assert hashlib.sha256(content[32:]).digest() == content[:32]
    assert store.list_all(".tmp"[1:]) == []
    assert not (root / ".tmp").exists() or list((root / ".tmp").iterdir()) == []


# --- NFS ----------------------------------------------------------------------------------------------

_MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:45 / /mnt/cached rw,relatime shared:9 - nfs4 server:/a rw,vers=4.2,acregmin=3,hard
31 22 0:46 / /mnt/plain rw,relatime - nfs server:/b rw,vers=3,noac,hard
32 30 0:47 / /mnt/cached/local rw - tmpfs tmpfs rw
33 22 0:48 / /mnt/with\\040space rw - nfs4 server:/c rw,vers=4.2
"""


@pytest.mark.parametrize("root", ["/mnt/cached", "/mnt/cached/store/x", "/mnt/with space/s"])
def test_nfs_with_attribute_caching_is_refused(root: str) -> None:
    """L34: one host would not see at once what another has created."""
    with pytest.raises(StoreUnsuitable, match="noac"):
        refuse_cached_nfs(Path(root), _MOUNTS)


@pytest.mark.parametrize("root", ["/", "/mnt", "/mnt/plain/store", "/mnt/cached/local/store", "/mnt/cachedish"])
def test_other_file_systems_pass(root: str) -> None:
    refuse_cached_nfs(Path(root), _MOUNTS)
