"""Changed files are noticed and taken when they fit together, and not before."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from cluster.certificates import make_certificates
from cluster.errors import ClusterMisconfigured
from cluster.tlsfiles import CHECK_SECONDS, TlsFiles, TlsSource, channel_credentials, load

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def tick(self) -> None:
        self.now += CHECK_SECONDS


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    return make_certificates(tmp_path / "one")


@pytest.fixture
def others(tmp_path: Path) -> TlsFiles:
    return make_certificates(tmp_path / "two")


def copy(source: TlsFiles, target: TlsFiles, *parts: str) -> None:
    for part in parts:
        shutil.copyfile(getattr(source, part), getattr(target, part))


def test_a_change_is_noticed_at_the_next_look(files: TlsFiles, others: TlsFiles) -> None:
    clock = Clock()
    source = TlsSource(files, clock=clock)
    assert source.current() == (0, load(files))
    copy(others, files, "ca", "cert", "key")
    clock.now += CHECK_SECONDS / 2
    assert source.current()[0] == 0
    clock.tick()
    assert source.current() == (1, load(others))
    clock.tick()
    assert source.current()[0] == 1


def test_files_that_do_not_fit_are_not_taken(files: TlsFiles, others: TlsFiles) -> None:
    clock = Clock()
    refused: list[ClusterMisconfigured] = []
    source = TlsSource(files, clock=clock, on_refused=refused.append)
    before = source.current()
    copy(others, files, "cert")
    for _ in range(3):
        clock.tick()
        assert source.current() == before
    assert [str(error) for error in refused] == [f"{files.key} is not the key of {files.cert}"]
    copy(others, files, "key")
    clock.tick()
    assert source.current()[0] == 1


def test_a_missing_file_leaves_what_was(files: TlsFiles) -> None:
    clock = Clock()
    source = TlsSource(files, clock=clock)
    key = files.key.read_bytes()
    files.key.unlink()
    clock.tick()
    assert source.current()[0] == 0
    files.key.write_bytes(key)
    clock.tick()
    assert source.current()[0] == 0, "the same content is no new generation"


@pytest.mark.parametrize("part", ["ca", "cert", "key"])
def test_what_cannot_be_used_at_the_start(files: TlsFiles, part: str) -> None:
    path: Path = getattr(files, part)
    secret = b"-----BEGIN PRIVATE KEY-----\nU0VDUkVU\n-----END PRIVATE KEY-----\n"
    path.write_bytes(secret)
    with pytest.raises(ClusterMisconfigured) as caught:
        TlsSource(files)
    assert str(path) in str(caught.value)
    assert "U0VDUkVU" not in str(caught.value)
    path.unlink()
    with pytest.raises(ClusterMisconfigured, match="cannot read"):
        TlsSource(files)


def test_nothing_prints_a_key(files: TlsFiles) -> None:
    material = load(files)
    assert "PRIVATE" not in repr(material)
    assert "CERTIFICATE" not in repr(material)


def test_credentials_are_made(files: TlsFiles) -> None:
    assert channel_credentials(load(files)) is not None
    assert TlsSource(files).server_credentials() is not None
