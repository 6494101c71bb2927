"""What this process may use of the machine: memory and CPUs, as its cgroup allows.

Reads /proc and /sys/fs/cgroup; driven by `nodes.settings` for the defaults that say "auto".
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

MEMORY_UNKNOWN_BYTES: Final = 2 * 2**30
"""Assumed where /proc/meminfo cannot be read."""
CGROUP_V1_UNLIMITED_BYTES: Final = 2**60
"""cgroup v1 writes a huge number for "no limit"."""


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """The most memory this process can ever have: the smaller of the machine's and its cgroups' limits."""
    limits = [_meminfo_bytes(root, "MemTotal:"), *_cgroup_limits_bytes(root)]
    return min(limits)


def memory_free_bytes(root: Path = Path("/")) -> int:
    """What can still be had without anything being killed; pages that only cache files do not count as used."""
    free = [_meminfo_bytes(root, "MemAvailable:")]
    free += [_free_bytes(folder, "memory.max", "anon ") for folder in _cgroup_folders(root)]
    free += [_free_bytes(folder, "memory.limit_in_bytes", "total_rss ") for folder in _memory_folders_v1(root)]
    return min(free)


def cpus_allowed(root: Path = Path("/")) -> int:
    """How many CPUs this process may keep busy: its affinity, and the cgroup's quota rounded up."""
    allowed = len(os.sched_getaffinity(0))
    for folder in _cgroup_folders(root):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            allowed = min(allowed, math.ceil(int(quota) / int(period)))
    return max(1, allowed)


def _meminfo_bytes(root: Path, name: str) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return MEMORY_UNKNOWN_BYTES


def _free_bytes(folder: Path, limit: str, used: str) -> int:
    """A cgroup's limit without what its processes hold; very much if it has none."""
    most = _text(folder / limit)
    held = [line for line in _text(folder / "memory.stat").splitlines() if line.startswith(used)]
    if not most.isdigit() or not held:
        return CGROUP_V1_UNLIMITED_BYTES
    return max(0, int(most) - int(held[0].split()[1]))


def _cgroup_limits_bytes(root: Path) -> list[int]:
    limits = [_text(folder / "memory.max") for folder in _cgroup_folders(root)]
    limits += [_text(folder / "memory.limit_in_bytes") for folder in _memory_folders_v1(root)]
    return [int(limit) for limit in limits if limit.isdigit() and int(limit) < CGROUP_V1_UNLIMITED_BYTES]


def _cgroup_folders(root: Path) -> list[Path]:
    """Our cgroup v2 folder and those above it: each of them may hold a limit."""
    return _folders(root, root / "sys/fs/cgroup", "0::")


def _memory_folders_v1(root: Path) -> list[Path]:
    """The same for version 1; in a container, whose root is our cgroup, the ones below it do not exist."""
    return _folders(root, root / "sys/fs/cgroup/memory", ":memory:")


def _folders(root: Path, top: Path, mark: str) -> list[Path]:
    for line in _text(root / "proc/self/cgroup").splitlines():
        if mark in line:
            parts = [part for part in line.partition(mark)[2].split("/") if part not in ("", "..")]
            return [top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return [top]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
