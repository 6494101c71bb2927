"""Where to find a first member: the seeds from the settings, and the peers that were known before a restart.

Driven by `cluster.gossiploop`. Name servers and disks may hang: each blocking call runs in a daemon thread of its own
(`Errands`) with a time limit, and so can hold up neither the start nor the end of a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from cluster.messages import check_address, join_address, split_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

T = TypeVar("T")

SEEDS_MAX: Final = 32
ERRANDS_MAX: Final = 2 * SEEDS_MAX
RESOLVE_SECONDS: Final = 3.0
FILE_SECONDS: Final = 2.0
ADDRESSES_OF_A_NAME_MAX: Final = 16
PEERS_MAX: Final = 256
PEERS_FILE_BYTES_MAX: Final = 64 * 1024

log = structlog.get_logger(__name__)


class Errands:
    """Runs blocking calls for one event loop, at most `ERRANDS_MAX` at once, those that hang included."""

    def __init__(self) -> None:
        self._busy = 0

    async def run(self, seconds: float, function: Callable[..., T], *arguments: Any) -> T:
        """What ``function`` returns or raises; TimeoutError after ``seconds`` or when too many calls hang."""
        if self._busy >= ERRANDS_MAX:
            raise TimeoutError("too many calls hang")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def finish(settle: Callable[[Any], None], value: Any) -> None:
            self._busy -= 1
            if not future.done():
                settle(value)

        def work() -> None:
            try:
                outcome: tuple[Callable[[Any], None], Any] = future.set_result, function(*arguments)
            except Exception as error:  # noqa: BLE001 - it is the caller's
                outcome = future.set_exception, error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(finish, *outcome)

        self._busy += 1
        threading.Thread(target=work, name="gossip-errand", daemon=True).start()
        async with asyncio.timeout(seconds):
            return await future


def is_literal(host: str) -> bool:
    """Whether ``host`` is an address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))[:ADDRESSES_OF_A_NAME_MAX]


async def resolve(errands: Errands, host: str, port: int) -> list[str]:
    """The address literals of a host, IPv4 and IPv6 as the system orders them. Raises OSError (TimeoutError too)."""
    if is_literal(host):
        return [host]
    return await errands.run(RESOLVE_SECONDS, _look_up, host, port)


async def resolve_seed(errands: Errands, seed: str) -> list[str]:
    """HOST:PORT with literals: where the seed is now, which may be nowhere."""
    host, port = split_address(seed)
    try:
        return [join_address(found, port) for found in await resolve(errands, host, port)]
    except (OSError, UnicodeError) as error:  # UnicodeError: no host name could look like this
        log.debug("seed_without_address", seed=seed, error=str(error))
        return []


def own_address(towards: Iterable[str]) -> str:
    """The address of this machine that others may reach: the one from which it would send to the first seed."""
    for target in (*towards, "192.0.2.1:9"):
        host, port = split_address(target)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))  # sends nothing
            return str(probe.getsockname()[0])
    return "127.0.0.1"


# -- the peers file --------------------------------------------------------------------------------------


def read_peers(path: Path) -> list[str]:
    """Addresses of members before the restart. A file that is missing or not ours counts as empty."""
    try:
        if path.stat().st_size > PEERS_FILE_BYTES_MAX:
            raise ValueError("too long")
        found = json.loads(path.read_bytes())
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise ValueError("not a list of addresses")
        for item in found:
            check_address(item)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        log.warning("peers_file_ignored", path=str(path), error=str(error))
        return []
    return found[:PEERS_MAX]


def write_peers(path: Path, addresses: Sequence[str]) -> None:
    """Atomically; not synced, as it is only a hint. Raises OSError."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(list(addresses)[:PEERS_MAX]))
    os.replace(draft, path)
