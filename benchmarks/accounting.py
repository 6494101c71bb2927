"""What a server has cost, read from /proc, and the arithmetic over many measurements.

Driven by `benchmarks.servers` and the loads. CPU is utime + stime of the server, of its living children and of
the dead ones that it has waited for (cutime + cstime); the client's own CPU is never in it.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PROC = Path("/proc")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory in bytes: now, and at its highest since the process started."""

    now_bytes: int
    peak_bytes: int


def cpu_ticks(stat: str) -> int:
    """utime + stime + cutime + cstime out of a ``/proc/PID/stat`` line (proc_pid_stat(5), fields 14 to 17).

    The name in field 2 may hold blanks and brackets, so fields are counted from the last ``)``.
    """
    fields = stat.rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15])


def cpu_seconds(pid: int, proc: Path = PROC) -> float:
    """CPU seconds of ``pid`` and everything below it; what has just died counts as soon as it is waited for."""
    return sum(_ticks(each, proc) for each in tree(pid, proc)) / TICKS_PER_SECOND


def memory(pid: int, proc: Path = PROC) -> Memory:
    """Resident memory of ``pid`` and everything below it; the peaks of several processes are added up."""
    now = peak = 0
    for each in tree(pid, proc):
        values = status_bytes(_read(proc / str(each) / "status"))
        now += values.get("VmRSS", 0)
        peak += values.get("VmHWM", 0)
    return Memory(now, peak)


def status_bytes(status: str) -> dict[str, int]:
    """The sizes in a ``/proc/PID/status`` text, ``{"VmRSS": bytes, ...}``."""
    lines = (line.split() for line in status.splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) == 3 and words[2] == "kB"}


def tree(pid: int, proc: Path = PROC) -> list[int]:
    """``pid`` and its living descendants."""
    found = [pid]
    for parent in found:
        for task in sorted((proc / str(parent) / "task").glob("*")):
            found.extend(int(child) for child in _read(task / "children").split())
    return found


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that at least ``share`` (0..1) of the values do not exceed."""
    if not sorted_values:
        raise ValueError("no values")
    rank = math.ceil(share * len(sorted_values))
    return sorted_values[max(rank, 1) - 1]


def median(values: Iterable[float]) -> float:
    """The middle value; the mean of the middle two for an even number."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def per_million(cpu: float, lines: int) -> float:
    """CPU seconds per million lines."""
    return cpu * 1e6 / lines


def _ticks(pid: int, proc: Path) -> int:
    stat = _read(proc / str(pid) / "stat")
    return cpu_ticks(stat) if stat else 0


def _read(path: Path) -> str:
    """A /proc file, empty when its process has gone in the meantime."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
