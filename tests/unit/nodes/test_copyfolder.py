"""No name leads out of the folder for COPY, whatever lies in it; a file appears whole or not at all."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from engine.errors import InvalidStatement
from nodes.copyfolder import NewFile, open_old
from storage.errors import StoreFull

if TYPE_CHECKING:
    from pathlib import Path

OUTSIDE = (
    "../secret.csv",
    "sub/../../secret.csv",
    "/etc/passwd",
    "//etc/passwd",
    "",
    ".",
    "..",
    ".hidden.csv",
    "sub/.hidden.csv",
    "sub//x.csv",
    "a\0b.csv",
    "a b.csv",
    "link/secret.csv",
    "link.csv",
    "sub/up/secret.csv",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with links out of it, beside a file that nobody may reach."""
    (tmp_path / "secret.csv").write_text("secret")
    made = tmp_path / "copy"
    (made / "sub").mkdir(parents=True)
    (made / "link").symlink_to(tmp_path)
    (made / "link.csv").symlink_to(tmp_path / "secret.csv")
    (made / "sub" / "up").symlink_to("../..")
    return made


@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_outside_is_read_or_written(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidStatement, match="COPY: "):
        open_old(folder, name)
    with pytest.raises(InvalidStatement, match="COPY: "):
        NewFile(folder, name)
    assert (tmp_path / "secret.csv").read_text() == "secret"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "secret.csv"]


def test_a_file_appears_when_it_is_kept(folder: Path) -> None:
    new = NewFile(folder, "sub/a.csv")
    assert new.write(b"1,2\n") == 4
    assert not (folder / "sub" / "a.csv").exists()
    new.keep()
    new.close()
    with open_old(folder, "sub/a.csv") as opened:
        assert opened.read() == b"1,2\n"
    assert sorted(os.listdir(folder / "sub")) == ["a.csv", "up"]


def test_what_is_not_kept_leaves_nothing(folder: Path) -> None:
    new = NewFile(folder, "sub/a.csv")
    new.write(b"half")
    new.close()
    assert os.listdir(folder / "sub") == ["up"]


def test_a_file_that_is_there_is_never_replaced(folder: Path) -> None:
    (folder / "a.csv").write_text("mine")
    with pytest.raises(InvalidStatement, match="is there already"):
        NewFile(folder, "a.csv")
    first, second = NewFile(folder, "b.csv"), NewFile(folder, "b.csv")
    first.keep()
    with pytest.raises(InvalidStatement, match="File exists"):
        second.keep()
    first.close()
    second.close()
    assert (folder / "a.csv").read_text() == "mine"


def test_only_plain_files_are_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe.csv")
    for name in ("pipe.csv", "sub"):
        with pytest.raises(InvalidStatement, match="is no file"):
            open_old(folder, name)
    with pytest.raises(InvalidStatement, match="No such file"):
        open_old(folder, "none.csv")
    with pytest.raises(InvalidStatement, match="No such file"):
        open_old(folder.parent / "gone", "none.csv")


def test_a_full_disk_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = NewFile(folder, "a.csv")

    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(StoreFull, match="no space left"):
            new.keep()
    new.close()
    assert not (folder / "a.csv").exists()
