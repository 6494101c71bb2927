"""Three real voters on loopback, in this process or each in its own (``python -m`` this module), for `test_raft`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.placement import Placement, PlacementVersion, encode_placement
from cluster.raft import Raft, RaftConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

SECRET = b"a secret of the test, 32 bytes.."
WAIT_SECONDS = 15.0


def free_voters(names: str = "abc") -> dict[str, str]:
    """Names with addresses that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return {name: f"127.0.0.1:{sock.getsockname()[1]}" for name, sock in zip(names, sockets, strict=True)}


def config_of(name: str, voters: Mapping[str, str], folder: Path, secret: bytes = SECRET) -> RaftConfig:
    host, _, port = voters[name].rpartition(":")
    return RaftConfig(name, (host, int(port)), voters, folder / name, (secret,))


def placement(epoch: int, number: int) -> bytes:
    return encode_placement(Placement(PlacementVersion(epoch, number), "a", {1: "a", 2: "b"}))


async def until(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> float:
    """Poll; the seconds that it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, "it did not come to pass"
        await asyncio.sleep(0.005)
    return time.monotonic() - begun


class Voter:
    """A Raft and what it told."""

    def __init__(self, config: RaftConfig) -> None:
        self.name = config.name
        self.applied: list[bytes] = []
        self.leaders: list[str | None] = []
        self.raft = Raft(config, self.applied.append, self.leaders.append)


class Trio:
    """Voters by name. `leader` waits for one that all agree on."""

    def __init__(self, folder: Path, voters: Mapping[str, str]) -> None:
        self.folder = folder
        self.addresses = voters
        self.voters: dict[str, Voter] = {}

    async def start(self, name: str) -> Voter:
        voter = Voter(config_of(name, self.addresses, self.folder))
        await voter.raft.start()
        self.voters[name] = voter
        return voter

    async def stop(self, name: str) -> None:
        await self.voters.pop(name).raft.stop()

    async def leader(self) -> Voter:
        await until(lambda: self._agreed() is not None)
        found = self._agreed()
        assert found is not None
        return found

    def _agreed(self) -> Voter | None:
        names = {voter.raft.leader for voter in self.voters.values()}
        name = names.pop() if len(names) == 1 else None
        return self.voters.get(name or "")

    def followers(self, leader: Voter) -> list[Voter]:
        return [voter for voter in self.voters.values() if voter is not leader]

    async def all_have(self, state: bytes) -> None:
        await until(lambda: all(voter.raft.state == state for voter in self.voters.values()))


@contextlib.asynccontextmanager
async def trio(folder: Path, voters: Mapping[str, str] | None = None, start: str = "abc") -> AsyncIterator[Trio]:
    running = Trio(folder, free_voters() if voters is None else voters)
    try:
        for name in start:
            await running.start(name)
        yield running
    finally:
        for name in tuple(running.voters):
            await running.stop(name)


async def _main(name: str, voters: dict[str, str], folder: str) -> None:
    """Say each leader, as a line, until killed."""

    def say(leader: str | None) -> None:
        print(leader or "-", flush=True)

    raft = Raft(config_of(name, voters, Path(folder)), lambda _: None, say)
    await raft.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]))
