"""Free ports that stay ours: below the range that the kernel hands out, above Ray's, and never the same twice.

Each of pytest's workers has every so-many-th port: one that is free when it is chosen is listened on seconds later.
"""

from __future__ import annotations

import os
import random
import socket
from typing import Final

WORKERS: Final = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS: Final = range(20_000, 32_000)[WORKER % WORKERS :: WORKERS]
TRIES_MAX: Final = 2_000

_taken: set[int] = set()
_random: Final = random.SystemRandom()


class NoFreePort(RuntimeError):
    """Nothing free was found in `PORTS`."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nobody listens, by TCP or UDP. A node that is started again finds it free again."""
    for _ in range(TRIES_MAX):
        port = _random.choice(PORTS)
        if port not in _taken and _is_free(host, port):
            _taken.add(port)
            return port
    raise NoFreePort(f"no free port on {host} in {PORTS}")


def _is_free(host: str, port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True
