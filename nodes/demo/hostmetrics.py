"""This machine's metrics as line protocol: CPU, memory, disk, network.

`HostMetrics.lines` reads psutil (it blocks for a millisecond or two); driven once a second by `nodes.cli.demo`.
"""

from __future__ import annotations

import socket
import time
from typing import Final

import psutil

MIB: Final = 2**20


class HostMetrics:
    """Counts since the last call, so the first call only begins to count."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._host = socket.gethostname().replace(" ", "_") or "localhost"
        self._net = psutil.net_io_counters()
        self._disk = psutil.disk_io_counters()
        psutil.cpu_times_percent(percpu=True)

    def lines(self, time_seconds: float | None = None) -> bytes:
        """One point for each CPU, for memory, disk, network and load; times in ns."""
        stamp = int((time.time() if time_seconds is None else time_seconds) * 1e9)
        points = [*self._cpus(), self._memory(), self._storage(), self._network(), self._load()]
        return "".join(f"{point} {stamp}\n" for point in points).encode()

    def _cpus(self) -> list[str]:
        return [
            f"cpu,host={self._host},cpu=cpu{number} user={cpu.user},system={cpu.system},idle={cpu.idle}"
            for number, cpu in enumerate(psutil.cpu_times_percent(percpu=True))
        ]

    def _memory(self) -> str:
        memory = psutil.virtual_memory()
        used, free = memory.used // MIB, memory.available // MIB
        return f"mem,host={self._host} used_mib={used}i,available_mib={free}i,used_percent={memory.percent}"

    def _storage(self) -> str:
        usage, before, now = psutil.disk_usage(self._path), self._disk, psutil.disk_io_counters()
        self._disk = now
        read = now.read_bytes - before.read_bytes if now and before else 0
        written = now.write_bytes - before.write_bytes if now and before else 0
        numbers = f"used_percent={usage.percent},free_mib={usage.free // MIB}i"
        return f"disk,host={self._host} {numbers},read_bytes={read}i,write_bytes={written}i"

    def _network(self) -> str:
        before, now = self._net, psutil.net_io_counters()
        self._net = now
        sent, received = now.bytes_sent - before.bytes_sent, now.bytes_recv - before.bytes_recv
        return f"net,host={self._host} sent_bytes={sent}i,received_bytes={received}i"

    def _load(self) -> str:
        one, five, fifteen = psutil.getloadavg()
        return f"system,host={self._host} load1={one},load5={five},load15={fifteen}"
