"""Real voters over real sockets: one leader, one newest Placement, and nothing for who does not know the secret."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import pickle
import signal
import socket
import struct
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.errors import ClusterMisconfigured, MalformedMessage, PeerUnavailable
from cluster.raft import Raft
from cluster.raftfiles import ASIDE, DUMP, JOURNAL, META
from cluster.raftwire import Seal
from tests.integration.cluster import voters
from tests.integration.cluster.voters import SECRET, Trio, Voter, config_of, free_voters, placement, trio, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

ROOT = Path(__file__).resolve().parents[3]
PROPOSE_SECONDS = 5.0


def run(story: Coroutine[None, None, None]) -> None:
    asyncio.run(story)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def proposed(those: Trio, voter: Voter, command: bytes) -> None:
    assert await voter.raft.propose(command, PROPOSE_SECONDS)
    assert voter.raft.state == command
    await those.all_have(command)


# ---- life -------------------------------------------------------------------------------------------------------


def test_one_leads_and_all_hear_what_anybody_proposes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with trio(tmp_path) as those:
            leader = await those.leader()
            assert [v.name for v in those.voters.values() if v.raft.is_leader] == [leader.name]
            await proposed(those, leader, placement(1, 1))
            for number, follower in enumerate(those.followers(leader), 2):
                await proposed(those, follower, placement(1, number))
            newest = placement(1, 3)
            await until(lambda: all(v.applied[-1] == newest for v in those.voters.values()))
            assert those.voters["a"].leaders[-1] == leader.name

    run(story())
    assert warnings_of(caplog) == []


def test_the_greater_version_stays_whatever_comes_later(tmp_path: Path) -> None:
    async def story() -> None:
        async with trio(tmp_path) as those:
            leader = await those.leader()
            await proposed(those, leader, placement(5, 1))
            assert await leader.raft.propose(placement(4, 9), PROPOSE_SECONDS)
            assert await leader.raft.propose(placement(5, 2), PROPOSE_SECONDS)
            await those.all_have(placement(5, 2))
            assert all(placement(4, 9) not in v.applied for v in those.voters.values())

    run(story())


def test_after_the_leader_another_leads_and_keeps_the_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with trio(tmp_path) as those:
            first = await those.leader()
            await proposed(those, first, placement(1, 1))
            await those.stop(first.name)
            assert not first.raft.is_leader or first.name not in those.voters
            second = await those.leader()
            assert second.name != first.name
            await proposed(those, second, placement(2, 1))
            back = await those.start(first.name)
            await until(lambda: back.raft.state == placement(2, 1))
            assert (await those.leader()).name == second.name

    run(story())
    assert warnings_of(caplog) == []


def test_state_survives_a_stop_of_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        addresses = free_voters()
        async with trio(tmp_path, addresses) as those:
            await proposed(those, await those.leader(), placement(3, 7))
        async with trio(tmp_path, addresses) as those:
            await those.leader()
            await those.all_have(placement(3, 7))
            await until(lambda: all(v.applied == [placement(3, 7)] for v in those.voters.values()))

    run(story())
    assert warnings_of(caplog) == []


# pysyncobj leaves the file that it sends to the garbage collector
@pytest.mark.filterwarnings("ignore:.*raft.state:pytest.PytestUnraisableExceptionWarning")
def test_the_log_is_compacted_and_a_late_voter_gets_the_snapshot(tmp_path: Path) -> None:
    async def story() -> None:
        addresses = free_voters()
        async with trio(tmp_path, addresses, start="ab") as those:
            leader = await those.leader()
            for number in range(1, 40):
                assert await leader.raft.propose(placement(1, number), PROPOSE_SECONDS)
            for voter in those.voters.values():
                assert voter.raft._voter is not None
                voter.raft._voter.forceLogCompaction()
            await until(lambda: all((tmp_path / name / DUMP).exists() for name in "ab"))
            await proposed(those, leader, placement(1, 40))
            late = await those.start("c")
            await until(lambda: late.raft.state == placement(1, 40))
            assert await late.raft.propose(placement(1, 41), PROPOSE_SECONDS)
        async with trio(tmp_path, addresses) as those:
            await those.leader()
            await those.all_have(placement(1, 41))

    run(story())


def test_one_voter_alone_leads_itself(tmp_path: Path) -> None:
    async def story() -> None:
        async with trio(tmp_path, free_voters("a"), start="a") as those:
            leader = await those.leader()
            await proposed(those, leader, placement(1, 1))

    run(story())


def test_without_a_majority_nothing_is_applied(tmp_path: Path) -> None:
    async def story() -> None:
        async with trio(tmp_path) as those:
            leader = await those.leader()
            for follower in those.followers(leader):
                await those.stop(follower.name)
            with pytest.raises(PeerUnavailable):
                await leader.raft.propose(placement(1, 1), 0.5)
            assert leader.raft.state == b""
            await until(lambda: not leader.raft.is_leader)
            assert leader.leaders[-1] is None
            with pytest.raises(PeerUnavailable):
                await leader.raft.propose(placement(1, 2), 0.5)

    run(story())


def test_stop_may_be_called_again_and_ends_what_waits(tmp_path: Path) -> None:
    async def story() -> None:
        async with trio(tmp_path) as those:
            leader = await those.leader()
            for follower in those.followers(leader):
                await those.stop(follower.name)
            waiting = asyncio.create_task(leader.raft.propose(placement(1, 1), 60.0))
            await asyncio.sleep(0.1)
            await leader.raft.stop()
            await leader.raft.stop()
            with pytest.raises(PeerUnavailable):
                await waiting
            with pytest.raises(PeerUnavailable):
                await leader.raft.propose(placement(1, 1), 1.0)
        never = Raft(config_of("a", free_voters(), tmp_path), lambda _: None, lambda _: None)
        await never.stop()

    run(story())


def test_only_a_placement_is_proposed(tmp_path: Path) -> None:
    async def story() -> None:
        async with trio(tmp_path, free_voters("a"), start="a") as those:
            leader = await those.leader()
            with pytest.raises(MalformedMessage):
                await leader.raft.propose(b"no Placement", 1.0)
            with pytest.raises(MalformedMessage):
                await leader.raft.propose(bytes(2 << 20), 1.0)

    run(story())


def test_an_address_in_use_is_named(tmp_path: Path) -> None:
    async def story() -> None:
        addresses = free_voters()
        host, _, port = addresses["a"].rpartition(":")
        with socket.create_server((host, int(port))):
            voter = Voter(config_of("a", addresses, tmp_path))
            with pytest.raises(ClusterMisconfigured, match=port):
                await voter.raft.start()
            await voter.raft.stop()

    run(story())


def test_a_callback_that_raises_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("no")

    async def story() -> None:
        raft = Raft(config_of("a", free_voters("a"), tmp_path), refuse, refuse)
        await raft.start()
        await until(lambda: raft.is_leader)
        assert await raft.propose(placement(1, 1), PROPOSE_SECONDS)
        assert await raft.propose(placement(1, 2), PROPOSE_SECONDS)
        await raft.stop()

    run(story())
    assert "nobody could be told" in caplog.text


# ---- killed -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def processes(
    folder: Path, addresses: dict[str, str]
) -> AsyncIterator[tuple[dict[str, asyncio.subprocess.Process], dict[str, list[str]]]]:
    """Each voter in a process of its own, and the leaders that it named."""
    said: dict[str, list[str]] = {name: [] for name in addresses}
    children: dict[str, asyncio.subprocess.Process] = {}

    async def listen(name: str) -> None:
        stdout = children[name].stdout
        assert stdout is not None
        async for line in stdout:
            said[name].append(line.decode().strip())

    async with asyncio.TaskGroup() as group:
        try:
            for name in addresses:
                children[name] = await asyncio.create_subprocess_exec(
                    *(
                        sys.executable,
                        "-m",
                        voters.__name__,
                        name,
                        json.dumps(addresses),
                        str(folder),
                    ),
                    stdout=asyncio.subprocess.PIPE,
                    cwd=ROOT,
                )
                group.create_task(listen(name))
            yield children, said
        finally:
            for child in children.values():
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()


def _named(said: dict[str, list[str]]) -> str | None:
    """Whom all name."""
    names = {lines[-1] if lines else "-" for lines in said.values()}
    return names.pop() if len(names) == 1 and names != {"-"} else None


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_leader_that_is_killed_or_stopped_is_replaced(tmp_path: Path, how: signal.Signals) -> None:
    """A killed leader's port refuses, which is faster than the time-out that a stopped one needs."""

    async def story() -> None:
        async with processes(tmp_path, free_voters()) as (children, said):
            await until(lambda: _named(said) is not None)
            leader = _named(said)
            assert leader is not None
            children[leader].send_signal(how)
            others = [lines for name, lines in said.items() if name != leader]
            took = await until(lambda: all(lines[-1] not in ("-", leader) for lines in others))
            print(f"{how.name}: another leader after {took:.2f} s")
            assert took < 5.0

    run(story())


# ---- strangers --------------------------------------------------------------------------------------------------


class _Boom:
    """A pickle that would make a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def framed(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def attacks(marker: Path, addresses: dict[str, str]) -> dict[str, bytes]:
    boom = pickle.dumps(_Boom(marker))
    other_secret = Seal("b", addresses, (b"x" * 32,))
    ours = Seal("b", addresses, (SECRET,))
    vote = {"type": "request_vote", "term": 99, "last_log_index": 9, "last_log_term": 9}
    return {
        "garbage": bytes(range(256)) * 64,
        "pickle": framed(boom),
        "pysyncobj's own frame": framed(zlib.compress(boom)),
        "wrong secret": framed(other_secret.seal(b"", 1, bytes(32))),
        "a pickle, wrong secret": framed(other_secret._fernet.encrypt(zlib.compress(boom))),
        "a pickle, right secret": framed(ours._fernet.encrypt(zlib.compress(boom))),
        "endless frame": struct.pack("<I", 0x7FFFFFFF) + bytes(1 << 20),
        "negative frame": struct.pack("<i", -1) + bytes(100),
        "empty frame": framed(b""),
        "short key": framed(ours.seal(b"", 1, b"key")),
        "not the first frame": framed(ours.seal(b"", 2, bytes(32))),
        "no hello": framed(ours.seal(b"", 1, "readonly")),
        "a message first": framed(ours.seal(b"", 1, vote)),
    }


async def is_hung_up(address: str, data: bytes) -> bool:
    """Send it; whether the other side hangs up without a word."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return await reader.read(1) == b""
        except ConnectionError:
            return True
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


WAIT_SECONDS = 10.0


def test_without_the_secret_nothing_happens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    marker = tmp_path / "loaded"

    async def story() -> None:
        async with trio(tmp_path) as those:
            leader = await those.leader()
            told = list(leader.leaders)
            for what, data in attacks(marker, dict(those.addresses)).items():
                for address in those.addresses.values():
                    assert await is_hung_up(address, data), what
            assert leader.leaders == told, "it still leads"
            await proposed(those, leader, placement(1, 1))

    run(story())
    assert not marker.exists()
    assert warnings_of(caplog) == []


def test_a_crowd_that_says_nothing_keeps_no_voter_out(tmp_path: Path) -> None:
    async def story() -> None:
        async with trio(tmp_path) as those:
            leader = await those.leader()
            host, _, port = leader.raft._config.voters[leader.name].rpartition(":")
            with contextlib.ExitStack() as stack:
                for _ in range(100):
                    stack.enter_context(socket.create_connection((host, int(port))))
                name = those.followers(leader)[0].name
                await those.stop(name)
                back = await those.start(name)
                assert (await those.leader()).name == back.raft.leader
                voter = leader.raft._voter
                assert voter is not None
                await until(lambda: len(voter._SyncObj__transport._strangers) == 0)

    run(story())


@pytest.mark.parametrize("what", ["secret", "list"])
def test_a_voter_with_another_secret_or_list_is_kept_out(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.raft.SILENCE_SECONDS", 1.0)

    async def story() -> None:
        addresses = free_voters()
        async with trio(tmp_path, addresses, start="ab") as those:
            leader = await those.leader()
            told = list(leader.leaders)
            if what == "secret":
                odd = Voter(config_of("c", addresses, tmp_path, b"another"))
            else:
                odd = Voter(config_of("c", {**addresses, "a": addresses["b"], "b": addresses["a"]}, tmp_path))
            await odd.raft.start()
            await until(lambda: "no voter answers" in caplog.text)
            await until(lambda: what == "secret" or caplog.text.count("voter 'c' has another voter list") == 2)
            await proposed(those, leader, placement(1, 1))
            assert odd.raft.leader is None
            assert odd.raft.state == b""
            assert leader.leaders == told
            await odd.raft.stop()

    run(story())
    said = warnings_of(caplog)
    assert said.count("no voter answers: not up, or wrong secret, or another voter list") == 1
    if what == "list":
        assert said.count("voter 'c' has another voter list; refused") == 2, "each of the others names it, once"


# ---- files ------------------------------------------------------------------------------------------------------


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    spoilt = {"empty": b"", "garbage": bytes(range(256)) * 20, "cut": data[: min(len(data) * 2 // 3, 60)]}
    if how == "boom":
        spoilt["boom"] = pickle.dumps(_Boom(path.parent / "loaded"))
    path.write_bytes(spoilt[how])


@pytest.mark.parametrize("how", ["empty", "garbage", "cut", "boom"])
@pytest.mark.parametrize("name", [JOURNAL, META, DUMP])
def test_a_spoilt_file_is_set_aside_and_the_leader_sends_the_state(
    tmp_path: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with trio(tmp_path) as those:
            await proposed(those, await those.leader(), placement(1, 1))
            follower = those.followers(await those.leader())[0]
            if name == DUMP:
                assert follower.raft._voter is not None
                follower.raft._voter.forceLogCompaction()
                await until((tmp_path / follower.name / DUMP).exists)
            await those.stop(follower.name)
            spoil(tmp_path / follower.name / name, how)
            back = await those.start(follower.name)
            await until(lambda: back.raft.state == placement(1, 1))
            assert (tmp_path / follower.name / ASIDE / name).exists()
            assert not (tmp_path / follower.name / "loaded").exists()

    run(story())
    assert [line for line in warnings_of(caplog) if "set aside" in line]


def test_a_state_that_fails_again_and_again_is_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.raft.TICK_SECONDS", 0.01)

    async def story() -> None:
        async with trio(tmp_path) as those:
            leader = await those.leader()
            await proposed(those, leader, placement(1, 1))
            sick = those.followers(leader)[0]
            ill = sick.raft._voter
            assert ill is not None
            monkeypatch.setattr(ill, "_checkCommandsToApply", lambda: 1 / 0)
            await until(lambda: sick.raft._voter is not ill)
            await proposed(those, leader, placement(1, 2))

    run(story())
    assert "20 ticks failed" in caplog.text
