"""A folder of a worker's own for what its tasks spill. DataFusion removes spilled rows when a query ends, but a worker
may be killed in the middle of one, or end itself: then the next one on this machine removes them. Used by
`engine.worker`.

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
from typing import Final

PREFIX: Final = "runnel-worker-"


def own_folder(parent: Path) -> Path:
    """A new folder in ``parent`` that is this process's until it ends. Those of processes that have ended go."""
    for folder in parent.glob(f"{PREFIX}*"):
        _remove_if_left(folder)
    while True:
        made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
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
