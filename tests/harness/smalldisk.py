"""A disk of a known small size: a tmpfs mounted on a folder, which somebody else's file can fill.

Driven by tests of full disks: as a node's data folder, or as the store. Needs root; `Unavailable` says so.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from pathlib import Path

MIB: Final = 2**20
UNMOUNT_SECONDS_MAX: Final = 10.0


class Unavailable(RuntimeError):
    """A tmpfs cannot be mounted here."""


class SmallDisk:
    """Mounted by ``with``; processes that use it must have ended when it is left."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder, self.size_bytes = folder, size_bytes
        self.ballast = folder / "ballast"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        options = f"size={self.size_bytes}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        made = subprocess.run(command, capture_output=True, check=False)
        if made.returncode:
            raise Unavailable(f"mounting a tmpfs needs root: {made.stderr.decode().strip()}")
        return self

    def __exit__(self, *exc: object) -> None:
        deadline = time.monotonic() + UNMOUNT_SECONDS_MAX
        while subprocess.run(["umount", str(self.folder)], capture_output=True, check=False).returncode:
            if time.monotonic() > deadline:
                subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)
                return
            time.sleep(0.05)

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Somebody else's file takes what is left."""
        with self.ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while (room := self.free_bytes - leave_bytes) > 0:
                file.write(bytes(min(MIB, max(room, 1))))

    def relieve(self) -> None:
        """The file is gone."""
        self.ballast.unlink(missing_ok=True)
