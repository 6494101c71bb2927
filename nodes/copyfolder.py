"""The one folder that COPY may read and write, opened so that no name leads out of it.

A name's parts are those of an object's (`storage.objects.check_path`): none is empty, or begins with a dot. Each folder
on the way, and the file, is opened from the one before it without following a symbolic link. Blocking; driven by
`nodes.copying`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from typing import IO, TYPE_CHECKING, Final

from engine.errors import InvalidStatement
from storage.errors import InvalidName, StoreFull
from storage.objects import check_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE_MODE: Final = 0o640
_ROOT: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
"""The operator's own folder may be a link."""
_FOLDER: Final = _ROOT | os.O_NOFOLLOW
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Without waiting: a pipe of that name has no writer."""
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class NewFile:
    """A file that has its name once it is kept; until then, and if it is not, nobody sees it."""

    def __init__(self, folder: Path, name: str) -> None:
        self._name = name
        self._folder, self._last = _enter(folder, name)
        self._part = f".{uuid.uuid4().hex}.part"
        try:
            if _exists(self._folder, self._last):
                raise InvalidStatement(f"COPY: {name!r} is there already")
            with _explained(name):
                self._file: IO[bytes] = os.fdopen(os.open(self._part, _NEW, FILE_MODE, dir_fd=self._folder), "wb")
        except BaseException:
            os.close(self._folder)
            raise

    def write(self, data: bytes) -> int:
        """All of ``data``. Raises StoreFull, InvalidStatement."""
        with _explained(self._name):
            return self._file.write(data)

    def keep(self) -> None:
        """Give it its name. Raises InvalidStatement if there is one of that name by now."""
        with _explained(self._name):
            self._file.flush()
            os.fsync(self._file.fileno())
            os.link(self._part, self._last, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def close(self) -> None:
        """What was not kept is gone."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self._part, dir_fd=self._folder)
        os.close(self._folder)


def open_old(folder: Path, name: str) -> IO[bytes]:
    """A plain file, to be read. Raises InvalidStatement."""
    inside, last = _enter(folder, name)
    try:
        with _explained(name):
            handle = os.open(last, _READ, dir_fd=inside)
    finally:
        os.close(inside)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InvalidStatement(f"COPY: {name!r} is no file")
    return os.fdopen(handle, "rb")


def _enter(folder: Path, name: str) -> tuple[int, str]:
    """The folder that the file is in, open, and the file's own name."""
    try:
        *parts, last = check_path(name).split("/")
    except InvalidName as error:
        raise InvalidStatement(
            f"COPY: {name[:100]!r} cannot be the name of a file here: it is relative to query.copy_dir, of letters, "
            "digits and ._=-, and no part begins with a dot"
        ) from error
    with _explained(name):
        inside = os.open(folder, _ROOT)
    for part in parts:
        try:
            with _explained(name):
                deeper = os.open(part, _FOLDER, dir_fd=inside)
        finally:
            os.close(inside)
        inside = deeper
    return inside, last


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """The system's errors in the statement's words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"COPY: {name!r}: no space left in query.copy_dir") from error
        raise InvalidStatement(f"COPY: {name!r} in query.copy_dir: {error.strerror}") from error
