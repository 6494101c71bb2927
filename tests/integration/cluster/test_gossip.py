"""Gossip over real sockets on the loopback: each member is a thread of this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from cluster.errors import ClusterDenied, ClusterMisconfigured
from cluster.gossip import Gossip, GossipConfig
from cluster.keyring import Keyring
from cluster.members import Kind, Member, MemberMeta, MemberState
from cluster.messages import Ack, PushPull, encode_message, encode_packet, encode_stream, split_address
from cluster.swim import FAST, SwimConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
    from pathlib import Path

SECRET = b"a secret of this test"
META = MemberMeta(Kind.INGEST, {"grpc": "127.0.0.1:7001"}, zone="z1")
WAIT_SECONDS = 20.0


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def until(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.01)


def ignore(member: Member) -> None:
    """Nobody wants to know."""


class Members:
    """Makes members, and stops them all."""

    def __init__(self) -> None:
        self.all: list[Gossip] = []
        self.changes: list[Member] = []

    def make(self, name: str, join: Sequence[str] = (), **settings: Any) -> Gossip:
        given: dict[str, Any] = {"cluster": "tests", "listen": ("127.0.0.1", 0), "secrets": (SECRET,), "swim": FAST}
        gossip = Gossip(GossipConfig(name=name, join=join, **(given | settings)), META, self.changes.append)
        self.all.append(gossip)
        return gossip

    async def start(self, name: str, join: Sequence[str] = (), **settings: Any) -> Gossip:
        gossip = self.make(name, join, **settings)
        await gossip.start()
        return gossip

    async def three(self) -> tuple[Gossip, Gossip, Gossip]:
        first = await self.start("a")
        second = await self.start("b", [first.address])
        third = await self.start("c", [first.address])
        for gossip in (first, second, third):
            await until(lambda g=gossip: alive(g) == {"a", "b", "c"})  # type: ignore[misc]
        return first, second, third


@contextlib.asynccontextmanager
async def members() -> AsyncIterator[Members]:
    made = Members()
    try:
        yield made
    finally:
        await asyncio.gather(*(gossip.stop() for gossip in made.all))


def alive(gossip: Gossip) -> set[str]:
    return {name for name, member in gossip.members().items() if member.state is MemberState.ALIVE}


def state(gossip: Gossip, name: str) -> MemberState | None:
    member = gossip.members().get(name)
    return None if member is None else member.state


# -- joining, leaving, dying -----------------------------------------------------------------------------


def test_three_members_find_each_other_and_tell_their_meta() -> None:
    async def test() -> None:
        async with members() as made:
            first, _, third = await made.three()
            assert third.members()["a"].meta == META
            assert third.members()["a"].address == first.address
            assert third.members()["c"].address == third.address
            changed = MemberMeta(Kind.INGEST, zone="z1", load=7.0, revision=12)
            first.set_meta(changed)
            await until(lambda: third.members()["a"].meta == changed)
            assert any(member.name == "a" and member.meta == changed for member in made.changes)
            with pytest.raises(ClusterMisconfigured, match="at most 512"):
                first.set_meta(MemberMeta(Kind.INGEST, zone="z" * 600))
            assert "a secret" not in repr(first.config)
            assert first.counters.packets_in > 0
            assert first.counters.packets_out > 0

    run(test())


def test_a_member_that_just_ends_is_seen_dead() -> None:
    async def test() -> None:
        async with members() as made:
            first, second, third = await made.three()
            await third.stop()
            first.suspect_now("c")
            first.suspect_now("nobody")
            await until(lambda: state(first, "c") is MemberState.DEAD and state(second, "c") is MemberState.DEAD)
            assert state(first, "b") in (MemberState.ALIVE, MemberState.SUSPECT)
            assert first.counters.probes_failed + second.counters.probes_failed > 0
            assert any(member.name == "c" and member.state is MemberState.DEAD for member in made.changes)

    run(test())


def test_a_leave_is_told_before_it_returns() -> None:
    async def test() -> None:
        async with members() as made:
            first, second, third = await made.three()
            await third.leave()
            await third.stop()
            await until(lambda: state(first, "c") is MemberState.LEFT and state(second, "c") is MemberState.LEFT)

    run(test())


def test_a_member_comes_back_under_its_name_and_address() -> None:
    async def test() -> None:
        async with members() as made:
            first, second, third = await made.three()
            address = third.address
            await third.leave()
            await third.stop()
            await until(lambda: state(first, "c") is MemberState.LEFT)
            again = await made.start("c", [first.address], listen=split_address(address))
            assert again.address == address
            await until(lambda: "c" in alive(first) and "c" in alive(second) and alive(again) == {"a", "b", "c"})

    run(test())


def test_a_seed_may_come_later_than_the_member_that_joins_it() -> None:
    async def test() -> None:
        async with members() as made:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            early = await made.start("early", [f"localhost:{port}"])
            assert alive(early) == {"early"}
            seed = await made.start("seed", [f"localhost:{port}"], listen=("127.0.0.1", port))
            await until(lambda: alive(early) == alive(seed) == {"early", "seed"})

    run(test())


def test_the_peers_file_leads_back_without_seeds(tmp_path: Path) -> None:
    peers = tmp_path / "peers.json"

    async def test() -> None:
        async with members() as made:
            first = await made.start("a")
            second = await made.start("b", [first.address], peers_file=peers)
            await until(lambda: alive(first) == {"a", "b"})
            await second.stop()
            assert json.loads(peers.read_text()) == [first.address]
            await until(lambda: state(first, "b") is MemberState.DEAD)
            again = await made.start("b", peers_file=peers)  # at another port, as the old one is dead
            await until(lambda: alive(again) == alive(first) == {"a", "b"})

    run(test())


# -- who is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [{"secrets": (b"another secret",)}, {"cluster": "other"}, {"secrets": ()}])
def test_another_secret_or_cluster_stays_out(other: dict[str, Any]) -> None:
    async def test() -> None:
        async with members() as made:
            first = await made.start("a")
            with capture_logs() as lines:
                stranger = await made.start("b", [first.address], **other)
                await until(lambda: first.counters.refused > 0)
                await until(lambda: any(line["event"] == "gossip_not_understood" for line in lines))
            assert alive(first) == {"a"}
            assert alive(stranger) == {"b"}
            assert SECRET not in repr(lines).encode()

    run(test())


def test_a_new_secret_is_brought_in_without_a_gap() -> None:
    async def test() -> None:
        async with members() as made:
            first = await made.start("a", secrets=(b"new", SECRET))
            second = await made.start("b", [first.address], secrets=(SECRET, b"new"))
            await until(lambda: alive(first) == alive(second) == {"a", "b"})

    run(test())


def test_the_name_of_a_live_member_is_refused() -> None:
    async def test() -> None:
        async with members() as made:
            first, second, third = await made.three()
            with pytest.raises(ClusterDenied, match="the name b is taken"):
                await made.start("b", [first.address])
            with pytest.raises(ClusterDenied):
                await made.start("a", [first.address])
            assert third.members()["b"].address == second.address
            await until(lambda: alive(third) == {"a", "b", "c"})

    run(test())


def test_a_name_found_taken_after_the_start_is_told() -> None:
    async def test() -> None:
        async with members() as made:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            denied: list[ClusterDenied] = []
            config = GossipConfig(
                "x", "tests", ("127.0.0.1", 0), join=[f"127.0.0.1:{port}"], secrets=(SECRET,), swim=FAST
            )
            early = Gossip(config, META, ignore, on_denied=denied.append)
            made.all.append(early)
            await early.start()
            await made.start("x", listen=("127.0.0.1", port))
            await until(lambda: len(denied) == 1)

    run(test())


def test_the_name_of_a_member_that_died_unnoticed_is_waited_for() -> None:
    """As when a container comes back at another address faster than its death is known."""

    async def test() -> None:
        async with members() as made:
            first, second, third = await made.three()
            await third.stop()
            again = await made.start("c", [first.address])
            await until(lambda: alive(again) == alive(first) == alive(second) == {"a", "b", "c"})
            assert first.members()["c"].address == again.address

    run(test())


def test_a_taken_port_is_an_os_error_and_leaves_nothing_open() -> None:
    async def test() -> None:
        async with members() as made:
            first = await made.start("a")
            port = split_address(first.address)[1]
            with pytest.raises(OSError, match="in use"):
                await made.start("b", listen=("127.0.0.1", port))
            await first.stop()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:  # only the UDP port is taken
                udp.bind(("127.0.0.1", port))
                with pytest.raises(OSError, match="in use"):
                    await made.start("c", listen=("127.0.0.1", port))
            await made.start("d", listen=("127.0.0.1", port))

    run(test())


def test_without_a_secret_gossip_stays_on_the_loopback() -> None:
    async def test() -> None:
        async with members() as made:
            with pytest.raises(ClusterMisconfigured, match="loopback"):
                await made.start("a", listen=("0.0.0.0", 0), secrets=())
            with pytest.raises(ClusterMisconfigured, match="loopback"):
                await made.start("b", advertise="192.0.2.7", secrets=())
            first = await made.start("c", secrets=())
            second = await made.start("d", [first.address], secrets=())
            await until(lambda: alive(first) == alive(second) == {"c", "d"})
            wide = await made.start("e", ["127.0.0.1:1"], listen=("0.0.0.0", 0))
            assert split_address(wide.address)[0] == "127.0.0.1"
            far = await made.start("f", advertise="192.0.2.7:99")
            assert far.address == "192.0.2.7:99"

    run(test())


# -- what comes in ---------------------------------------------------------------------------------------


def test_garbage_on_the_port_harms_nobody() -> None:
    async def test() -> None:
        async with members() as made:
            first, second, _ = await made.three()
            where = split_address(first.address)
            ring = Keyring.of_cluster("tests", (SECRET,))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                for data in (b"", b"\0", b"garbage" * 100, ring.seal(b""), ring.seal(b"\1nonsense"), ring.seal(b"\1")):
                    udp.sendto(data, where)
            for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\0\0\0\5abcde", b"\0\0\0\0"):
                reader, writer = await asyncio.open_connection(*where)
                writer.write(data)
                writer.write_eof()
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                writer.close()
            await until(lambda: first.counters.refused >= 8)
            await until(lambda: alive(first) == alive(second) == {"a", "b", "c"})

    run(test())


def test_another_wire_version_is_said_once_a_minute() -> None:
    async def test() -> None:
        async with members() as made:
            first = await made.start("a")
            ring = Keyring.of_cluster("tests", (SECRET,))
            packet = bytearray(encode_packet([encode_message(Ack(1))]))
            packet[0] = 9
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, capture_logs() as lines:
                for _ in range(5):
                    udp.sendto(ring.seal(bytes(packet)), split_address(first.address))
                await until(lambda: first.counters.refused == 5)
            said = [line for line in lines if line["event"] == "gossip_other_wire_version"]
            assert [(line["log_level"], line["theirs"]) for line in said] == [("warning", 9)]

    run(test())


def test_a_clock_that_is_an_hour_off_is_said_once() -> None:
    async def test() -> None:
        async with members() as made:
            first = await made.start("a")
            ring = Keyring.of_cluster("tests", (SECRET,))
            sealed = ring.seal(encode_stream(PushPull("old", "127.0.0.1:9", 0, [])))
            with capture_logs() as lines:
                for _ in range(3):
                    reader, writer = await asyncio.open_connection(*split_address(first.address))
                    writer.write(len(sealed).to_bytes(4, "big") + sealed)
                    assert len(await reader.readexactly(4)) == 4
                    writer.close()
            assert [line["name"] for line in lines if line["event"] == "gossip_clock_skew"] == ["old"]

    run(test())


# -- its own thread --------------------------------------------------------------------------------------


def test_a_node_that_is_busy_still_answers_pings() -> None:
    async def test() -> None:
        async with members() as made:
            first, _, _ = await made.three()
            before, deadline = first.counters.packets_in, time.monotonic() + WAIT_SECONDS
            while first.counters.packets_in < before + 10:  # nothing is awaited: this loop is stuck
                assert time.monotonic() < deadline

    run(test())


def test_a_listener_that_fails_does_not_end_gossip() -> None:
    async def test() -> None:
        def fail(member: Member) -> None:
            raise RuntimeError("a defect of the listener")

        async with members() as made:
            first = Gossip(GossipConfig("a", "tests", ("127.0.0.1", 0), secrets=(SECRET,), swim=FAST), META, fail)
            made.all.append(first)
            with capture_logs() as lines:
                await first.start()
                second = await made.start("b", [first.address])
                await until(lambda: alive(first) == alive(second) == {"a", "b"})
            assert any(line["event"] == "gossip_listener_failed" for line in lines)

    run(test())


def test_a_name_that_cannot_be_resolved_holds_up_neither_start_nor_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        time.sleep(30.0)

    async def test() -> None:
        async with members() as made:
            first = await made.start("a")
            monkeypatch.setattr("cluster.seeds.socket.getaddrinfo", hang)
            began = time.monotonic()
            second = await made.start("b", ["nowhere.invalid:7000", first.address])
            assert "a" in alive(second)
            third = await made.start("c", ["nowhere.invalid:7000"])
            assert time.monotonic() - began < 8.0
            assert alive(third) == {"c"}
            began = time.monotonic()
            await asyncio.gather(second.stop(), third.stop())
            assert time.monotonic() - began < 4.0

    run(test())


def test_stop_is_idempotent_and_ends_a_start_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with members() as made:
            never = made.make("never")
            await never.leave()
            await never.stop()
            once = await made.start("once")
            await asyncio.gather(once.stop(), once.stop())
            await once.stop()
            await once.leave()
            once.set_meta(META)
            once.suspect_now("nobody")
            monkeypatch.setattr("cluster.seeds.socket.getaddrinfo", lambda *_, **__: time.sleep(5.0))
            cut = made.make("cut", ["nowhere.invalid:7000"])
            start = asyncio.ensure_future(cut.start())
            await until(lambda: cut.address != "")
            start.cancel()
            with pytest.raises(asyncio.CancelledError):
                await start
            assert cut._thread is not None
            await until(lambda: cut._thread is not None and not cut._thread.is_alive(), 3.0)

    run(test())


def test_names_and_seeds_are_checked_before_anything_is_opened() -> None:
    for name, join in (("", ()), ("a b", ()), ("a", ("no-port",)), ("a", ("h:99999",)), ("a", ("h:1",) * 33)):
        with pytest.raises(ClusterMisconfigured):
            Gossip(GossipConfig(name, "tests", ("127.0.0.1", 0), join=join), META, ignore)


def test_the_defaults_are_those_of_a_lan() -> None:
    config = SwimConfig()
    assert (config.probe_interval, config.probe_timeout, config.indirect_checks) == (1.0, 0.5, 3)
    assert (config.suspicion_mult, config.suspicion_max_timeout_mult, config.retransmit_mult) == (4, 6, 4)
    assert (config.gossip_interval, config.gossip_nodes, config.gossip_to_the_dead) == (0.2, 3, 30.0)
    assert (config.push_pull_interval, config.awareness_max, config.packet_bytes_max) == (30.0, 8, 1400)
