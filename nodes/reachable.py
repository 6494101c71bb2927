"""Tells a crashed process from a slow one: its port refuses connections (DESIGN section 5).

One idle TCP connection is held to each watched node's gRPC port. When it ends, the port is tried again; refused
twice, `REFUSED_PAUSE_SECONDS` apart, means that nobody listens there any more. A wrong guess costs an epoch, never
a row. Driven by the controller, for the ingest nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

REFUSED_PAUSE_SECONDS: Final = 0.2
RETRY_SECONDS: Final = 0.5
"""The pause before a port that is refused, or unreachable, is tried again."""
CONNECT_SECONDS_MAX: Final = 1.0
REFUSALS: Final = 2


class Reachability:
    """Watches addresses by name. ``on_change(name, reachable)`` is called on the event loop, at changes only."""

    def __init__(self, on_change: Callable[[str, bool], None]) -> None:
        self._on_change = on_change
        self._watched: dict[str, tuple[str, asyncio.Task[None]]] = {}

    def watch(self, addresses: Mapping[str, str]) -> None:
        """From now on watch exactly these (name -> HOST:PORT)."""
        for name, (address, task) in list(self._watched.items()):
            if addresses.get(name) != address:
                task.cancel()
                del self._watched[name]
        for name, address in addresses.items():
            if name not in self._watched:
                self._watched[name] = (address, asyncio.create_task(self._follow(name, address)))

    async def aclose(self) -> None:
        """Stop watching."""
        tasks = [task for _, task in self._watched.values()]
        self._watched.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, name: str, address: str) -> None:
        host, _, port = address.rpartition(":")
        refused, told = 0, True

        def stands() -> None:
            nonlocal refused, told
            refused = 0
            if not told:
                told = True
                self._on_change(name, True)

        while True:
            if await _is_refused(host.strip("[]"), int(port), stands):
                refused += 1
                if refused == REFUSALS and told:
                    told = False
                    self._on_change(name, False)
            await asyncio.sleep(REFUSED_PAUSE_SECONDS if refused < REFUSALS else RETRY_SECONDS)


async def _is_refused(host: str, port: int, stands: Callable[[], None]) -> bool:
    """Connect, call ``stands``, and return when the connection has ended; True if nobody listens there."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            reader, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False  # no route, or no answer: that is for gossip to judge
    if writer.get_extra_info("sockname") == writer.get_extra_info("peername"):
        writer.close()  # TCP lets a socket meet itself on a port where nobody listens
        return True
    stands()
    try:
        with contextlib.suppress(OSError):
            while await reader.read(4096):  # the server's greeting; then nothing, until one of the two ends
                pass
    finally:
        writer.close()
    return False
