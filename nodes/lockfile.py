"""The lock file: one process on one data folder (LOG L12).

`flock` on ``<data>/runnel.lock``: the kernel lets go when the process ends, however it ends, so a file left
behind means nothing. The file holds the holder's pid, for the message only. Driven by `nodes.node`.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, ClassVar, Final, Self

from nodes.exitcodes import ExitCode, NodeError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

LOCK_NAME: Final = "runnel.lock"
PID_BYTES_MAX: Final = 32


class DataFolderLocked(NodeError):
    """Another process holds the data folder. ``pid`` is None if it has not written it yet."""

    code: ClassVar[str] = "data_locked"
    retriable: ClassVar[bool] = True
    exit_code: ClassVar[ExitCode] = ExitCode.TRY_LATER

    def __init__(self, folder: Path, pid: int | None) -> None:
        holder = f"process {pid}" if pid else "another process"
        super().__init__(f"{folder} is in use by {holder}; stop it first, or give another folder with --data")
        self.folder = folder
        self.pid = pid


class LockFile:
    """Holds ``folder`` for this process while entered. Creates the folder; raises DataFolderLocked, OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / LOCK_NAME
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            pid = _pid(descriptor)
            os.close(descriptor)
            raise DataFolderLocked(self.folder, pid) from None
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go. The file stays: removing it could take it from under the next holder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, PID_BYTES_MAX, 0).strip()
    return int(text) if text.isdigit() else None
