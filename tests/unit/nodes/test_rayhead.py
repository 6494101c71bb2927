"""What the settings say about Ray, and what becomes of it; Ray itself is not needed."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import pytest

from nodes.rayhead import RayHead, merges_on_ray, new_workers, worker_setup
from nodes.settings import SettingsError, load

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back afterwards what `prepare` sets."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_without_an_address_there_are_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: pytest.fail("nobody wants Ray"))
    assert new_workers(load(environment={}).settings) is None


def test_an_address_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'runnel\[ray\]'"):
        new_workers(load(flags={"ray.address": "local"}, environment={}).settings)


@pytest.mark.parametrize("address", ["somewhere", "host:0", "host:99999", ":6379"])
def test_an_address_is_local_or_a_port(address: str) -> None:
    with pytest.raises(SettingsError, match=r"ray\.address"):
        load(flags={"ray.address": address}, environment={})


def test_a_head_elsewhere_gets_no_token_and_no_ray_of_ours(tmp_path: Path) -> None:
    flags = {"ray.address": "10.0.0.9:6379", "data.dir": str(tmp_path)}
    head = RayHead(load(flags=flags, environment={}).settings)
    assert head.prepare() == {"address": "10.0.0.9:6379"}
    assert not list(tmp_path.iterdir())
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "ray-token")
    assert head.label == "10.0.0.9:6379"


def test_ray_of_our_own_stays_on_loopback(tmp_path: Path) -> None:
    flags = {
        "ray.address": "local",
        "data.dir": str(tmp_path),
        "ray.workers": "3",
        "ray.token_file": str(tmp_path / "t"),
    }
    options = RayHead(load(flags=flags, environment={}).settings).prepare()
    assert (options["address"], options["num_cpus"], options["include_dashboard"]) == ("local", 3, False)
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert len((tmp_path / "t").read_text()) == 64


def test_workers_reach_the_same_store() -> None:
    flags = {"store.url": "s3://bucket/prefix", "store.s3_endpoint": "http://127.0.0.1:9", "ray.address": "local"}
    setup = worker_setup(load(flags=flags, environment={}).settings)
    assert setup.bucket == "bucket"
    assert setup.s3 is not None
    assert setup.s3.allow_http
    local = worker_setup(load(flags={"data.dir": "/d"}, environment={}).settings)
    assert local.bucket is None
    assert local.s3 is None


@pytest.mark.parametrize(
    ("address", "on_ray", "merges"),
    [
        ("", "auto", False), ("", "on", False), ("local", "auto", False), ("local", "on", True),
        ("10.0.0.9:6379", "auto", True), ("10.0.0.9:6379", "on", True), ("10.0.0.9:6379", "off", False),
    ],
)  # fmt: skip
def test_a_clusters_workers_merge_files_unless_told_otherwise(address: str, on_ray: str, merges: bool) -> None:
    flags = {"ray.address": address, "compaction.on_ray": on_ray}
    assert merges_on_ray(load(flags=flags, environment={}).settings) is merges
