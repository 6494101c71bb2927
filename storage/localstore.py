"""The object store on a local disk, or on a shared volume that is mounted like one (LOG L34).

Driven through `storage.objects.open_store`. An object is written into a file without a name, fsynced,
given its name by ``linkat``, which fails if the name is taken, and its folder is fsynced. Measured for
4 KB on ext4 against a named temporary file: 0.29 ms and 126 us of CPU instead of 0.41 ms and 195 us;
and a crash leaves nothing behind. Where the file system has no ``O_TMPFILE`` (NFS, some overlays) a named
temporary file in ``.tmp`` takes its place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
import urllib.parse
import uuid
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from storage.errors import FsyncFailed, ObjectMissing, StoreFull, StoreUnavailable, StoreUnsuitable
from storage.objects import (
    Buffers,
    CreateOutcome,
    Listed,
    Listing,
    check_folder,
    check_path,
    check_range,
    check_start,
    is_object_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TEMPORARY_FOLDER: Final = ".tmp"
TEMPORARY_AGE_SECONDS_MAX: Final = 3600.0
"""Where locks do not work, a temporary file this old has no writer any more."""
FOLDERS_OPEN_MAX: Final = 256
BUFFERS_PER_WRITE_MAX: Final = 512  # writev takes IOV_MAX, 1024 on Linux
FILE_MODE: Final = 0o666  # less the umask: who may read the files at rest is the operator's choice

_IS_FOLDER: Final = -1
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_LINK_REFUSED: Final = _FULL | _ABSENT | {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EROFS, errno.EMLINK}
"""linkat checks these before it writes a name; after any other error the name may stand (LOG L6)."""


def open_local(root: Path) -> LocalStore:
    """Open (and make) the store in a folder; temporary files of dead writers are swept (LOG L34).

    Raises StoreUnsuitable if the folder cannot hold a store.
    """
    root = root.absolute()
    try:
        _make_root(root)
        refuse_cached_nfs(root.resolve(), Path("/proc/self/mountinfo").read_text())
        if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "not writable")
        store = LocalStore(root, os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        store.sweep_temporary()
    except OSError as error:
        raise StoreUnsuitable(f"{root}: {error.strerror}; a store needs a folder it may write to") from error
    return store


def _make_root(root: Path) -> None:
    """Make the folder and those above it durable, also if a process died between mkdir and fsync."""
    first_made = next((p for p in [*reversed(root.parents), root] if not p.exists()), root)
    root.mkdir(parents=True, exist_ok=True)
    for parent in root.parents:
        with contextlib.suppress(PermissionError):  # not ours to open: then it was not ours to make
            fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        if parent == first_made.parent:
            return


def refuse_cached_nfs(root: Path, mountinfo: str) -> None:
    """Raise StoreUnsuitable if ``root`` is on NFS with attribute caching (LOG L34).

    ``mountinfo`` is the text of /proc/self/mountinfo (proc_pid_mountinfo(5)); later lines cover earlier.
    """
    covering: list[str] = []
    depth = 0
    for line in mountinfo.splitlines():
        place, _, kind = line.partition(" - ")
        mounted_on = Path(place.split(" ")[4].replace("\\040", " "))
        if root.is_relative_to(mounted_on) and len(mounted_on.parts) >= depth:
            depth, covering = len(mounted_on.parts), kind.split(" ")
    if covering and covering[0].startswith("nfs") and "noac" not in covering[-1].split(","):
        raise StoreUnsuitable(f"{root} is on NFS with attribute caching: mount it with the option noac")


class _Folder:
    """An open folder and how many creates are using it."""

    __slots__ = ("fd", "kept", "users")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 0
        self.kept = True


class _Folders:
    """Open folders by path, at most `FOLDERS_OPEN_MAX` of them idle; made and made durable on first use."""

    def __init__(self, root_fd: int, fsync: Callable[[int, str], None]) -> None:
        self._root_fd = root_fd
        self._fsync = fsync
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Folder] = OrderedDict()

    @contextlib.contextmanager
    def use(self, path: str) -> Iterator[int]:
        """A descriptor of the folder, valid inside the block. Raises OSError, FsyncFailed."""
        if not path:
            yield self._root_fd
            return
        folder = self._acquire(path)
        try:
            yield folder.fd
        finally:
            self._release(folder)

    def forget(self) -> None:
        """Open everything anew: a folder was removed under us."""
        with self._lock:
            for folder in self._open.values():
                self._drop(folder)
            self._open.clear()

    def _acquire(self, path: str) -> _Folder:
        with self._lock:
            folder = self._open.get(path)
            if folder is not None:
                folder.users += 1
                self._open.move_to_end(path)
                return folder
        fd = self._make(path)
        with self._lock:
            folder = self._open.setdefault(path, _Folder(fd))
            folder.users += 1
            if folder.fd != fd:  # another thread was faster
                os.close(fd)
            self._evict()
            return folder

    def _make(self, path: str) -> int:
        """Make one folder. Its parent is fsynced even if it stood: its maker may have died before that (L34)."""
        parent, _, name = path.rpartition("/")
        with self.use(parent) as parent_fd:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=parent_fd)
            self._fsync(parent_fd, parent)
            return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent_fd)

    def _release(self, folder: _Folder) -> None:
        with self._lock:
            folder.users -= 1
            if not folder.kept and not folder.users:
                os.close(folder.fd)

    def _evict(self) -> None:
        while len(self._open) > FOLDERS_OPEN_MAX:
            self._drop(self._open.popitem(last=False)[1])

    @staticmethod
    def _drop(folder: _Folder) -> None:
        folder.kept = False
        if not folder.users:
            os.close(folder.fd)


class LocalStore:
    """Objects as files below one folder of one file system."""

    def __init__(self, root: Path, root_fd: int) -> None:
        """Take over ``root_fd``, a descriptor of ``root``: reads and writes stay in the same folder
        even if another one is mounted or moved over its path."""
        self.url: str = "file://" + urllib.parse.quote(str(root))
        self._root = root
        self._root_fd = root_fd
        self._closed = False
        self._fsync_failed = ""
        self._folders = _Folders(root_fd, self._fsync)
        self._unnamed_files = _has_unnamed_files(root_fd)
        weakref.finalize(self, os.close, root_fd)  # not in close(): another thread may still be reading

    def create(self, path: str, data: Buffers) -> CreateOutcome:
        self._ensure_usable()
        folder, _, name = check_path(path).rpartition("/")
        buffers = [data] if isinstance(data, bytes) else data
        try:
            try:
                return self._create_in(folder, name, buffers)
            except (FileNotFoundError, PermissionError):
                # The folder (EPERM on ext4) or a temporary file was removed under us: nothing stands.
                self._folders.forget()
                return self._create_in(folder, name, buffers)
        except OSError as error:
            raise self._refusal(error, path) from error

    def settle(self, path: str) -> None:
        self._ensure_usable()
        folder, _, _ = check_path(path).rpartition("/")
        try:
            with self._folders.use(folder) as folder_fd:
                self._fsync(folder_fd, folder)  # L6: our earlier try may have stopped before its own fsync
        except OSError as error:
            raise self._refusal(error, path) from error

    def get(self, path: str) -> bytes:
        with self._opened(path) as (fd, size):
            return _read_all(fd, 0, size)

    def get_range(self, path: str, start: int, length: int) -> bytes:
        check_range(start, length)
        with self._opened(path) as (fd, size):
            return _read_all(fd, start, max(0, min(length, size - start)))

    def exists(self, path: str) -> bool:
        self._ensure_usable()
        try:
            found = os.stat(check_path(path), dir_fd=self._root_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in _ABSENT:
                return False
            raise self._refusal(error, path) from error
        return stat.S_ISREG(found.st_mode)

    def list(self, folder: str, start: str = "") -> Listing:
        self._ensure_usable()
        return sorted(
            (found for found in self._scan(check_folder(folder), check_start(start)) if found.size != _IS_FOLDER),
            key=_by_name,
        )

    def list_all(self, folder: str) -> Listing:
        self._ensure_usable()
        check_folder(folder)
        objects: Listing = []
        waiting = [""]
        while waiting:
            below = waiting.pop()
            for found in self._scan("/".join(filter(None, (folder, below))), ""):
                name = f"{below}/{found.name}" if below else found.name
                if found.size == _IS_FOLDER:
                    waiting.append(name)
                else:
                    objects.append(Listed(name, found.size))
        return sorted(objects, key=_by_name)

    def delete(self, path: str) -> None:
        """Not fsynced: what a power loss brings back is found by the next listing (LOG L19)."""
        self._ensure_usable()
        try:
            os.unlink(check_path(path), dir_fd=self._root_fd)
        except OSError as error:
            if error.errno not in _ABSENT | {errno.EISDIR}:
                raise self._refusal(error, path) from error

    def clock_ms(self) -> int:
        self._ensure_usable()
        temporary = self._unnamed(self._root_fd) if self._unnamed_files else self._named()
        try:
            with temporary as (fd, _):
                return os.fstat(fd).st_mtime_ns // 1_000_000  # L36: on a shared volume, its server's clock
        except OSError as error:
            raise self._refusal(error, "a temporary file") from error

    def local_path(self, path: str) -> Path | None:
        return self._root / check_path(path)

    def close(self) -> None:
        self._closed = True
        self._folders.forget()

    def sweep_temporary(self) -> None:
        """Remove temporary files whose writer is dead (LOG L34). Raises OSError."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root / TEMPORARY_FOLDER) as entries:
            for entry in entries:
                if _is_abandoned(entry.path):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(entry.path)

    # -- writing --

    def _create_in(self, folder: str, name: str, buffers: Sequence[bytes | memoryview]) -> CreateOutcome:
        """L34, in its order: write, fsync, link, fsync the folder. OSError means that there is no link."""
        with self._folders.use(folder) as folder_fd:
            with self._unnamed(folder_fd) if self._unnamed_files else self._named() as (fd, source):
                _write_all(fd, buffers)
                self._fsync_content(fd, name)
                outcome = _link(source, name, folder_fd)
            if outcome is CreateOutcome.CREATED:
                self._fsync(folder_fd, folder)  # L4: only now is the name durable
            return outcome

    @contextlib.contextmanager
    def _unnamed(self, folder_fd: int) -> Iterator[tuple[int, _Source]]:
        """A file without a name in that folder: descriptor, and what linkat can name it by (open(2), O_TMPFILE)."""
        fd = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, FILE_MODE, dir_fd=folder_fd)
        try:
            yield fd, _Source(f"/proc/self/fd/{fd}", None)
        finally:
            with contextlib.suppress(OSError):  # it was fsynced, or is dropped
                os.close(fd)

    @contextlib.contextmanager
    def _named(self) -> Iterator[tuple[int, _Source]]:
        """A temporary file in ``.tmp``, locked as long as its writer lives."""
        with self._folders.use(TEMPORARY_FOLDER) as folder_fd:
            name = uuid.uuid4().hex
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE, dir_fd=folder_fd)
            try:
                with contextlib.suppress(OSError):  # without locks the sweep goes by age
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield fd, _Source(name, folder_fd)
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=folder_fd)
                with contextlib.suppress(OSError):
                    os.close(fd)

    def _fsync_content(self, fd: int, name: str) -> None:
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno in _FULL:  # network file systems say so only here; the file has no name and is dropped
                raise
            raise self._fsync_failure(error, name) from error

    def _fsync(self, fd: int, folder: str) -> None:
        try:
            os.fsync(fd)
        except OSError as error:
            raise self._fsync_failure(error, folder or "the root") from error

    def _fsync_failure(self, error: OSError, what: str) -> FsyncFailed:
        """Refuse all that follows: the kernel reports a lost page once, and then calls it clean (L34)."""
        self._fsync_failed = f"{self.url}: fsync of {what} failed: {error.strerror}; what the disk holds is unknown"
        return FsyncFailed(self._fsync_failed)

    # -- reading --

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[tuple[int, int]]:
        """An object's descriptor and size."""
        self._ensure_usable()
        try:
            fd = os.open(check_path(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root_fd)
            try:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode):
                    raise ObjectMissing(f"{self.url}: no object {path}")
                yield fd, found.st_size
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in _ABSENT:
                raise ObjectMissing(f"{self.url}: no object {path}") from error
            raise self._refusal(error, path) from error

    def _scan(self, folder: str, start: str) -> Iterator[Listed]:
        """Objects and folders (`_IS_FOLDER`) in the order of the disk; names that no object can have are left out."""
        try:
            fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root_fd)
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        if entry.name >= start and is_object_name(entry.name):
                            yield from _listed(entry)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise self._refusal(error, folder) from error

    # -- errors --

    def _ensure_usable(self) -> None:
        if self._fsync_failed:
            raise FsyncFailed(self._fsync_failed)
        if self._closed:
            raise StoreUnavailable(f"{self.url}: this store is closed")

    def _refusal(self, error: OSError, path: str) -> StoreFull | StoreUnavailable:
        if error.errno in _FULL:
            return StoreFull(f"{self.url}: no room for {path}: {error.strerror}")
        return StoreUnavailable(f"{self.url}: {path}: {error.strerror}")


@dataclass(frozen=True, slots=True)
class _Source:
    """What linkat gives a name to: a path, relative to ``folder_fd`` if that is given."""

    path: str
    folder_fd: int | None


def _link(source: _Source, name: str, folder_fd: int) -> CreateOutcome:
    """Give the file its name, exclusively (L34). Raises OSError only if it certainly did not get it."""
    try:
        os.link(
            source.path,
            name,
            src_dir_fd=source.folder_fd,
            dst_dir_fd=folder_fd,
            follow_symlinks=source.folder_fd is None,  # through /proc/self/fd to the file itself
        )
    except FileExistsError:
        return CreateOutcome.EXISTS
    except OSError as error:
        if error.errno in _LINK_REFUSED:
            raise
        return CreateOutcome.UNKNOWN  # L6
    return CreateOutcome.CREATED


def _has_unnamed_files(root_fd: int) -> bool:
    """Whether this file system can name a file that was opened with O_TMPFILE (needs /proc)."""
    probe = ".probe"
    try:
        fd = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, FILE_MODE, dir_fd=root_fd)
        try:
            with contextlib.suppress(FileExistsError):
                os.link(f"/proc/self/fd/{fd}", probe, dst_dir_fd=root_fd, follow_symlinks=True)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(probe, dir_fd=root_fd)
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno in _FULL  # it got as far as wanting room
    return True


def _is_abandoned(path: str) -> bool:
    """Whether the writer of a temporary file is dead: it held a lock. A wrong yes costs it one more try."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return time.time() - os.fstat(fd).st_mtime > TEMPORARY_AGE_SECONDS_MAX
    else:
        return True
    finally:
        os.close(fd)


def _write_all(fd: int, buffers: Sequence[bytes | memoryview]) -> None:
    """Write every byte; one writev if the kernel takes it all."""
    pending = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
    while pending:
        written = os.writev(fd, pending[:BUFFERS_PER_WRITE_MAX])
        done = 0
        while done < len(pending) and written >= pending[done].nbytes:
            written -= pending[done].nbytes
            done += 1
        del pending[:done]
        if written:
            pending[0] = pending[0][written:]


def _read_all(fd: int, start: int, length: int) -> bytes:
    """Bytes [start, start + length), fewer only if the file ends."""
    content = os.pread(fd, length, start)
    if len(content) == length or not content:
        return content
    parts = [content]
    position = len(content)
    while position < length and (part := os.pread(fd, length - position, start + position)):
        parts.append(part)
        position += len(part)
    return b"".join(parts)


def _listed(entry: os.DirEntry[str]) -> Iterator[Listed]:
    """The entry with its size, or nothing if it was deleted meanwhile or is neither file nor folder."""
    if entry.is_dir(follow_symlinks=False):
        yield Listed(entry.name, _IS_FOLDER)
    elif entry.is_file(follow_symlinks=False):
        with contextlib.suppress(FileNotFoundError):
            yield Listed(entry.name, entry.stat(follow_symlinks=False).st_size)


def _by_name(entry: Listed) -> str:
    return entry.name
