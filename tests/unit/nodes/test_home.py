"""A node that may use Ray lives in its data folder, and its relative paths go on meaning what they meant."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nodes.home import at_home
from nodes.settings import load

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

RELATIVE = {
    "data.dir": "data",
    "store.url": "rows",
    "cluster.secret_file": "secret",
    "tls.ca": "ca.pem",
    "tls.cert": "cert.pem",
    "tls.key": "key.pem",
    "ray.token_file": "token",
}


def test_relative_paths_are_settled_and_the_process_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load(flags={**RELATIVE, "ray.address": "local"}, environment={})
    settled = at_home(loaded.settings)
    assert os.getcwd() == str(tmp_path / "data")
    for name, text in RELATIVE.items():
        section, _, key = name.partition(".")
        assert getattr(getattr(settled, section), key) == str(tmp_path / text), name
    assert settled.data_dir == tmp_path / "data"
    assert settled.store_url == str(tmp_path / "rows")


def test_urls_and_what_is_empty_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = {"data.dir": str(tmp_path), "store.url": "s3://bucket/prefix", "ray.address": "10.0.0.9:6379"}
    settled = at_home(load(flags=flags, environment={}).settings)
    assert settled.store.url == "s3://bucket/prefix"
    assert settled.tls.ca == settled.cluster.secret_file == settled.ray.token_file == ""


def test_without_ray_nothing_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load(flags={"data.dir": "data"}, environment={}).settings
    assert at_home(settings) is settings
    assert os.getcwd() == str(tmp_path)
    assert not (tmp_path / "data").exists()
