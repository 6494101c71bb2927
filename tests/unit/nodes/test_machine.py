"""What the cgroup allows, from files laid out as the kernel does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nodes.machine import MEMORY_UNKNOWN_BYTES, cpus_allowed, memory_free_bytes, memory_limit_bytes

if TYPE_CHECKING:
    from pathlib import Path


def lay(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


MEMINFO = "MemTotal:       8000000 kB\nMemFree: 1 kB"


def test_without_a_cgroup_the_machine_is_the_limit(tmp_path: Path) -> None:
    assert memory_limit_bytes(lay(tmp_path, proc__meminfo=MEMINFO)) == 8_000_000 * 1024


def test_nothing_readable(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path) == MEMORY_UNKNOWN_BYTES


@pytest.mark.parametrize(
    ("inner", "outer", "limit"), [("max", "max", 8_000_000 * 1024), ("1000000", "max", 1000000), ("max", "7", 7)]
)
def test_the_smallest_of_all_cgroups_above_counts(tmp_path: Path, inner: str, outer: str, limit: int) -> None:
    lay(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="0::/outer/inner",
        sys__fs__cgroup__outer__inner__memory_dot_max=inner,
        sys__fs__cgroup__outer__memory_dot_max=outer,
    )
    assert memory_limit_bytes(tmp_path) == limit


def test_inside_a_container_the_root_is_our_cgroup(tmp_path: Path) -> None:
    lay(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/", sys__fs__cgroup__memory_dot_max="536870912")
    assert memory_limit_bytes(tmp_path) == 536870912


@pytest.mark.parametrize(("text", "limit"), [("268435456", 268435456), ("9223372036854771712", 8_000_000 * 1024)])
def test_cgroup_version_1(tmp_path: Path, text: str, limit: int) -> None:
    lay(tmp_path, proc__meminfo=MEMINFO, sys__fs__cgroup__memory__memory_dot_limit_in_bytes=text)
    assert memory_limit_bytes(tmp_path) == limit


@pytest.mark.parametrize(("inner", "limit"), [("268435456", 268435456), ("9223372036854771712", 536870912)])
def test_a_nested_cgroup_of_version_1(tmp_path: Path, inner: str, limit: int) -> None:
    lay(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="4:memory:/outer/inner\n3:cpuset:/\n0::/",
        sys__fs__cgroup__memory__outer__inner__memory_dot_limit_in_bytes=inner,
        sys__fs__cgroup__memory__outer__memory_dot_limit_in_bytes="536870912",
    )
    assert memory_limit_bytes(tmp_path) == limit


@pytest.mark.parametrize(("text", "cpus"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None)])
def test_cpu_quota(tmp_path: Path, text: str, cpus: int | None) -> None:
    allowed = cpus_allowed(lay(tmp_path, sys__fs__cgroup__cpu_dot_max=text))
    assert allowed == (cpus or cpus_allowed(tmp_path / "nothing"))
    assert allowed >= 1


def test_this_machine() -> None:
    assert memory_limit_bytes() > 2**20


def test_free_memory_is_the_least_of_the_machine_and_its_cgroups(tmp_path: Path) -> None:
    meminfo = "MemTotal: 8000 kB\nMemAvailable: 4000 kB"
    assert memory_free_bytes(lay(tmp_path, proc__meminfo=meminfo)) == 4_000 * 1024
    folder = "sys__fs__cgroup__own__memory_dot_"
    lay(tmp_path, proc__self__cgroup="0::/own", **{folder + "max": "2000000", folder + "stat": "anon 500000\nfile 900"})
    assert memory_free_bytes(tmp_path) == 1_500_000, "pages of files are given back when they are needed"
    lay(tmp_path, **{folder + "stat": "anon 2500000"})
    assert memory_free_bytes(tmp_path) == 0
    lay(tmp_path, **{folder + "max": "max"})
    assert memory_free_bytes(tmp_path) == 4_000 * 1024


def test_free_memory_in_a_cgroup_of_version_1(tmp_path: Path) -> None:
    folder = "sys__fs__cgroup__memory__memory_dot_"
    lay(tmp_path, proc__meminfo="MemAvailable: 8000000 kB", **{folder + "limit_in_bytes": "900"})
    lay(tmp_path, **{folder + "stat": "rss 7\ntotal_rss 100"})
    assert memory_free_bytes(tmp_path) == 800
