"""A folder of a process's own for what is worth nothing without it: what a worker's tasks spill, the session of a Ray
that was started here. Who is killed cannot remove it; then the next one on this machine does. Used by `engine.worker`
and `nodes.rayhead`.

A folder is held by a lock that goes with the process, however it ends.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path


def own_folder(parent: Path, prefix: str) -> Path:
    """A new folder in ``parent``, called ``prefix`` and something, that is this process's until it ends, and open to
    this user only. Those of processes that have ended go."""
    for folder in parent.glob(f"{prefix}*"):
        _remove_if_left(folder)
    while True:
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        if _lock(made) is not None and made.exists():  # else another worker took it for one that was left
            atexit.register(shutil.rmtree, made, ignore_errors=True)
            return made


def _remove_if_left(folder: Path) -> None:
    lock = _lock(folder) if _is_ours(folder) else None
    if lock is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _is_ours(folder: Path) -> bool:
    """Whether it is this user's, and no link to something else: the parent may be everybody's."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _lock(folder: Path) -> int | None:
    """Lock a folder; the descriptor that holds it, None if somebody else does."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
        else:
            return descriptor
    return None
