"""A port that refuses twice is a crash; one that accepts, or says nothing, is not."""

from __future__ import annotations

import asyncio
import socket

from nodes.reachable import Reachability
from tests.harness.waiting import until


def _port() -> tuple[socket.socket, int]:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    return listener, listener.getsockname()[1]


def test_a_port_that_closes_is_told_once_and_again_when_it_is_back() -> None:
    async def main() -> None:
        told: list[tuple[str, bool]] = []
        watcher = Reachability(lambda name, up: told.append((name, up)))
        listener, port = _port()
        listener.listen()
        watcher.watch({"a": f"127.0.0.1:{port}"})
        accepted, _ = await asyncio.get_running_loop().run_in_executor(None, listener.accept)
        listener.close()
        accepted.close()
        await until(lambda: told == [("a", False)])
        again = socket.create_server(("127.0.0.1", port))
        await until(lambda: told == [("a", False), ("a", True)])
        again.close()
        await watcher.aclose()

    asyncio.run(main())


def test_a_port_that_never_answers_a_greeting_is_no_crash() -> None:
    async def main() -> None:
        told: list[tuple[str, bool]] = []
        watcher = Reachability(lambda name, up: told.append((name, up)))
        listener, port = _port()
        listener.listen()  # nobody accepts: as when a process is paused
        other, dead = _port()
        other.close()
        watcher.watch({"paused": f"127.0.0.1:{port}", "dead": f"127.0.0.1:{dead}"})
        await until(lambda: told == [("dead", False)])
        watcher.watch({"paused": f"127.0.0.1:{port}"})
        listener.close()
        await watcher.aclose()
        assert told == [("dead", False)]

    asyncio.run(main())
