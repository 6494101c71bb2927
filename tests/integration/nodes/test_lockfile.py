"""The lock file against real processes (LOG L12)."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nodes.lockfile import LOCK_NAME, DataFolderLocked, LockFile
from tests.integration.nodes.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys, pathlib
from nodes.lockfile import LockFile
with LockFile(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_other_process_is_named(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        with pytest.raises(DataFolderLocked, match=f"process {other.pid};") as caught, LockFile(tmp_path):
            pass
        assert (caught.value.pid, caught.value.folder) == (other.pid, tmp_path)
        other.kill()


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        other.kill()
        other.wait()
        assert (tmp_path / LOCK_NAME).exists()
        with LockFile(tmp_path) as lock:
            assert lock.path.read_text() == f"{os.getpid()}\n"


def test_the_folder_is_made_and_the_lock_can_be_taken_again(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        with LockFile(folder):
            assert (folder / LOCK_NAME).read_text() == f"{os.getpid()}\n"


def test_one_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with LockFile(tmp_path), pytest.raises(DataFolderLocked), LockFile(tmp_path):
        pass


def test_children_do_not_keep_it(tmp_path: Path) -> None:
    program = "print(flush=True); input()"
    with LockFile(tmp_path):
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False
        )
        assert child.stdout is not None
        child.stdout.readline()  # its exec is over: until then the kernel may not have closed what it inherited
    try:
        with LockFile(tmp_path):
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()
        assert child.stdin is not None
        child.stdin.close()
        child.stdout.close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), LockFile(tmp_path / "file" / "data"):
        pass
