"""Folders of one process each: none stays of a process that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

from engine.ownfolder import own_folder
from engine.worker import QueryWorker, WorkerSetup, this_build
from tests.harness.node import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PREFIX = "own-"
HOLDS = """
import sys
from pathlib import Path
from engine.ownfolder import own_folder
folder = own_folder(Path(sys.argv[1]), "own-")
(folder / "spilled").write_bytes(b"rows")
print(folder, flush=True)
sys.stdin.read()
"""


def process_with_folder(parent: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(parent)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_killed_process_leaves_its_folder_to_the_next_and_a_living_one_keeps_its_own(tmp_path: Path) -> None:
    living, its = process_with_folder(tmp_path)
    dead, left = process_with_folder(tmp_path)
    dead.kill()
    dead.communicate()
    assert os.listdir(left) == ["spilled"]
    own = own_folder(tmp_path, PREFIX)
    assert {str(path) for path in tmp_path.iterdir()} == {its, str(own)}
    assert os.listdir(its) == ["spilled"]
    living.communicate("")
    assert list(tmp_path.iterdir()) == [own], "it ended by itself"


def test_what_only_looks_like_a_folder_of_a_worker_stays(tmp_path: Path) -> None:
    """The parent may be /tmp, where anybody may put a link."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "precious")
    (tmp_path / f"{PREFIX}file").touch()
    own_folder(tmp_path, PREFIX)
    assert (tmp_path / "precious" / "file").exists()
    assert (tmp_path / f"{PREFIX}link").is_symlink()
    assert (tmp_path / f"{PREFIX}file").exists()


def test_a_folder_that_was_taken_for_one_that_was_left_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = tempfile.mkdtemp, []

    def mkdtemp(**options: str) -> str:
        made.append(real(**options))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    assert str(own_folder(tmp_path, PREFIX)) == made[1]


def test_a_worker_spills_into_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, str] = {}
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(os, "putenv", told.__setitem__)
    QueryWorker(WorkerSetup(this_build(), 2**26, owns_process=False))
    assert [told["TMPDIR"]] == [str(path) for path in tmp_path.iterdir()]
