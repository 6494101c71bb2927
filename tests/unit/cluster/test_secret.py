"""The cluster's secret comes from a private file and never shows."""

from __future__ import annotations

import os
import stat
import traceback
from typing import TYPE_CHECKING

import pytest

from cluster.errors import ClusterMisconfigured
from cluster.secret import SECRET_BYTES_MIN, ClusterSecret, make_secret, read_secret

if TYPE_CHECKING:
    from pathlib import Path

FIRST = b"a" * SECRET_BYTES_MIN
SECOND = b"b" * SECRET_BYTES_MIN


def written(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_new_one_is_private_long_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    made = make_secret(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(made.primary) >= SECRET_BYTES_MIN
    assert read_secret(path) == made
    assert make_secret(tmp_path / "other") != made
    with pytest.raises(ClusterMisconfigured, match="rotate"):
        make_secret(path)
    assert read_secret(path) == made


def test_several_lines_are_a_rotation(tmp_path: Path) -> None:
    path = written(tmp_path / "secret", b"  " + SECOND + b" \r\n\n" + FIRST + b"\n" + SECOND + b"\n")
    assert read_secret(path) == ClusterSecret((SECOND, FIRST))
    assert read_secret(path).primary == SECOND


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_private_modes(tmp_path: Path, mode: int) -> None:
    assert read_secret(written(tmp_path / "secret", FIRST, mode)).primary == FIRST


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o700, 0o601])
def test_other_modes_are_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ClusterMisconfigured, match="chmod 600"):
        read_secret(written(tmp_path / "secret", FIRST, mode))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"short-but-secret", "line 1 .* shorter than 32"),
        (FIRST + b"\nshort-but-secret\n", "line 2 .* shorter than 32"),
        (b"\n".join(bytes([65 + i]) * 40 for i in range(9)), "9 lines"),
        (b"x" * 70_000, "larger"),
    ],
)
def test_what_is_no_secret(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(ClusterMisconfigured, match=reason) as caught:
        read_secret(written(tmp_path / "secret", data))
    shown = "".join(traceback.format_exception(caught.value))
    assert "short-but-secret" not in shown
    assert "AAAA" not in shown


def test_another_users_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "secret", FIRST)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        assert read_secret(path).primary == FIRST  # root's files may be read
        if os.getuid() != 0:
            return
        os.chown(path, 12345, -1)
    with pytest.raises(ClusterMisconfigured, match="belongs to user"):
        read_secret(path)


def test_no_file_and_no_plain_file(tmp_path: Path) -> None:
    with pytest.raises(ClusterMisconfigured, match="No such file"):
        read_secret(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ClusterMisconfigured, match="not a file"):
        read_secret(tmp_path / "pipe")
    with pytest.raises(ClusterMisconfigured, match="cannot write"):
        make_secret(tmp_path / "missing" / "secret")


def test_it_never_prints(tmp_path: Path) -> None:
    secret = read_secret(written(tmp_path / "secret", FIRST))
    assert "aaa" not in f"{secret!r} {secret}"
