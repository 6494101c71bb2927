"""SWIM's machine rule by rule: what one member does with what it is told."""

from __future__ import annotations

import random
from typing import TypeVar

import pytest

from cluster.broadcasts import Broadcasts
from cluster.errors import ClusterMisconfigured, MalformedMessage
from cluster.members import Kind, Member, MemberMeta, MemberState
from cluster.messages import (
    MEMBERS_MAX,
    PACKET_OVERHEAD_BYTES,
    Ack,
    Alive,
    Dead,
    Entry,
    Nack,
    NameIsTaken,
    PacketMessage,
    Ping,
    PingRequest,
    PushPull,
    Suspect,
    decode_packet,
    encode_message,
    encode_meta,
    encode_packet,
)
from cluster.swim import PROBES_MAX, RELAYS_MAX, TOMBSTONES_MAX, Swim, SwimConfig
from cluster.swimeffects import (
    Effect,
    Exchange,
    LeaveSent,
    MemberChanged,
    MemberDead,
    MemberJoined,
    MemberLeft,
    NameTaken,
    PacketsBlocked,
    PingStream,
    SendPacket,
)
from cluster.swimstate import Suspicion

META = MemberMeta(Kind.INGEST)
BYTES = encode_meta(META)
CONFIG = SwimConfig()
ME = "10.0.0.100:7000"
E = TypeVar("E", bound=Effect)
M = TypeVar("M", bound=PacketMessage)


def address(name: str) -> str:
    return f"10.0.0.{int(name[1:]) + 1}:7000"


def alive(name: str, incarnation: int = 1, meta: bytes = BYTES) -> Alive:
    return Alive(name, address(name), incarnation, meta)


class Machine(Swim):
    """The machine, its clock, and everything it asked for."""

    def __init__(self, *others: str, config: SwimConfig = CONFIG) -> None:
        super().__init__("me", ME, META, config, random.Random(7), 0.0)
        self.now = 0.0
        self.seen: list[Effect] = []
        self.tell(*map(alive, others))
        self.collect()

    def tell(self, *messages: PacketMessage, source: str = "10.0.0.1:7000") -> None:
        self.receive(encode_packet(map(encode_message, messages)), source, self.now)

    def collect(self) -> list[Effect]:
        effects = self.take()
        self.seen += effects
        return effects

    def go(self, seconds: float) -> list[Effect]:
        """Let time pass as a prompt driver does; what was asked for meanwhile."""
        end, start = self.now + seconds, len(self.seen)
        while self.wake_at <= end:
            self.now = self.wake_at
            self.tick(self.now)
            self.collect()
        self.now = end
        self.collect()
        return self.seen[start:]

    def to_probe(self) -> tuple[str, Ping]:
        """Up to the next direct ping: to which address, and what."""
        while True:
            for effect in self.go(max(0.0, self.wake_at - self.now)):
                if isinstance(effect, SendPacket):
                    for message in decode_packet(effect.data):
                        if isinstance(message, Ping):
                            return effect.address, message

    def state_of(self, name: str) -> MemberState:
        return self.members()[name].state


def said(effects: list[Effect], kind: type[M]) -> list[tuple[str, M]]:
    """Messages of a kind in packets, with where they go."""
    packets = [effect for effect in effects if isinstance(effect, SendPacket)]
    return [(p.address, m) for p in packets for m in decode_packet(p.data) if isinstance(m, kind)]


def of(effects: list[Effect], kind: type[E]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


# -- probing ---------------------------------------------------------------------------------------------


def test_a_ping_is_acknowledged_by_the_member_it_is_for() -> None:
    machine = Machine()
    machine.tell(Ping(5, "me"), Ping(6, "other"), source="10.0.0.9:1")
    assert said(machine.collect(), Ack) == [("10.0.0.9:1", Ack(5))]


def test_each_member_is_probed_once_a_round() -> None:
    machine = Machine("n0", "n1", "n2", "n3")
    for _ in range(4):  # the first is the one that the members came into
        targets = []
        for _ in range(4):
            where, ping = machine.to_probe()
            machine.tell(Ack(ping.sequence), source=where)
            targets.append(ping.target)
        assert len(set(targets)) == 4
    assert machine.counters.probes_failed == 0


def test_a_silent_member_is_asked_for_by_others_and_by_stream_then_suspected() -> None:
    machine = Machine("n0", "n1", "n2", "n3", "n4")
    where, ping = machine.to_probe()
    effects = machine.go(CONFIG.probe_timeout)
    asked = said(effects, PingRequest)
    assert len({to for to, _ in asked}) == CONFIG.indirect_checks
    assert where not in {to for to, _ in asked}
    assert {m for _, m in asked} == {PingRequest(ping.sequence, ping.target, where)}
    assert of(effects, PingStream) == [PingStream(where, ping.target, ping.sequence)]
    assert machine.state_of(ping.target) is MemberState.ALIVE
    effects = machine.go(CONFIG.probe_interval - CONFIG.probe_timeout)
    assert machine.state_of(ping.target) is MemberState.SUSPECT
    assert of(effects, MemberChanged) == [MemberChanged(machine.members()[ping.target])]
    assert machine.counters.probes_failed == 1


def test_an_indirect_answer_saves_the_member() -> None:
    machine = Machine("n0", "n1")
    _, ping = machine.to_probe()
    machine.go(CONFIG.probe_timeout + 0.1)
    machine.tell(Ack(ping.sequence))
    machine.go(0.4)
    assert machine.counters.probes_failed == 0
    assert machine.state_of(ping.target) is MemberState.ALIVE


def test_an_answer_by_stream_saves_the_member_and_tells_of_the_network() -> None:
    machine = Machine("n0")
    _, ping = machine.to_probe()
    machine.go(CONFIG.probe_timeout)
    machine.stream_acked(ping.sequence)
    machine.stream_acked(12345)
    effects = machine.go(0.5)
    assert of(effects, PacketsBlocked) == [PacketsBlocked(machine.members()["n0"])]
    assert machine.state_of("n0") is MemberState.ALIVE


def test_a_relay_passes_the_answer_on_or_says_that_there_is_none() -> None:
    machine = Machine()
    machine.tell(PingRequest(77, "n8", address("n8")), source="10.0.0.9:1")
    [(where, ping)] = said(machine.collect(), Ping)
    assert (where, ping.target) == (address("n8"), "n8")
    assert ping.sequence != 77
    effects = machine.go(CONFIG.probe_timeout * 0.8)
    assert said(effects, Nack) == [("10.0.0.9:1", Nack(77))]
    machine.tell(Ack(ping.sequence), source=where)  # late, but it counts
    assert said(machine.collect(), Ack) == [("10.0.0.9:1", Ack(77))]
    machine.tell(Ack(ping.sequence), source=where)
    assert not machine.collect()


def test_relays_are_bounded_and_forgotten() -> None:
    machine = Machine()
    for number in range(RELAYS_MAX + 10):
        machine.tell(PingRequest(number, "n8", address("n8")))
    assert len(said(machine.collect(), Ping)) == RELAYS_MAX
    machine.go(CONFIG.probe_timeout)
    assert not machine._relays


def test_a_failed_rpc_has_the_member_probed_at_once() -> None:
    machine = Machine(*(f"n{i}" for i in range(100)))
    machine.suspect_now("n3", machine.now)
    machine.suspect_now("n3", machine.now)
    machine.suspect_now("nobody", machine.now)
    assert [m.target for _, m in said(machine.collect(), Ping)] == ["n3"]
    for index in range(100):
        machine.suspect_now(f"n{index}", machine.now)
    assert len(machine._probes) == PROBES_MAX
    machine.go(CONFIG.probe_interval)
    assert machine.state_of("n3") is MemberState.SUSPECT


# -- Lifeguard -------------------------------------------------------------------------------------------


def test_missing_nacks_make_the_member_doubt_itself_and_take_its_time() -> None:
    machine = Machine(*(f"n{i}" for i in range(9)))
    machine.to_probe()
    machine.go(CONFIG.probe_interval)
    assert machine.awareness == CONFIG.indirect_checks
    _, ping = machine.to_probe()
    machine.go(3.9)  # the deadline is (1 + 3) intervals now
    assert machine.counters.probes_failed == 1
    assert machine.state_of(ping.target) is MemberState.ALIVE
    machine.go(0.2)
    assert machine.counters.probes_failed == 2
    assert machine.awareness == 6
    machine.to_probe()
    machine.go(7.0)
    assert machine.awareness == CONFIG.awareness_max - 1


def test_nacks_show_that_it_is_the_other_who_is_unwell() -> None:
    machine = Machine("n0", "n1", "n2", "n3")
    _, ping = machine.to_probe()
    machine.go(CONFIG.probe_timeout)
    machine.tell(*[Nack(ping.sequence)] * 5)
    machine.go(CONFIG.probe_interval)
    assert machine.counters.probes_failed == 1
    assert machine.awareness == 0


def test_a_prompt_answer_restores_confidence() -> None:
    machine = Machine("n0")
    machine.awareness = 2
    for expected in (1, 0, 0):
        where, ping = machine.to_probe()
        machine.tell(Ack(ping.sequence), source=where)
        assert machine.awareness == expected


def test_a_suspect_is_told_so_with_its_ping() -> None:
    machine = Machine("n0")
    machine.tell(Suspect("n0", 1, "n9"))
    machine.collect()
    machine._broadcasts.forget("n0")
    machine.suspect_now("n0", machine.now)
    [packet] = of(machine.collect(), SendPacket)
    first, second = decode_packet(packet.data)
    assert first == Suspect("n0", 1, "me")  # before the ping, so that the answer brings the refutation
    assert isinstance(second, Ping)


def test_a_suspicion_shrinks_with_each_independent_accuser() -> None:
    suspicion = Suspicion(10.0, 4.0, 24.0, 2, {"a"})
    assert suspicion.ends_at == 34.0
    assert not suspicion.confirm("a")
    assert suspicion.confirm("b")
    assert 14.0 < suspicion.ends_at < 34.0
    assert suspicion.confirm("c")
    assert suspicion.ends_at == 14.0
    assert not suspicion.confirm("d")
    assert len(suspicion.accusers) == 3
    assert Suspicion(10.0, 4.0, 24.0, 0, {"a"}).ends_at == 14.0


@pytest.mark.parametrize(("accusers", "seconds"), [(1, 24.0), (2, 11.4), (3, 4.0)])
def test_how_long_a_suspect_has(accusers: int, seconds: float) -> None:
    machine = Machine("n0", "n1", "n2", "n3")
    machine._timers = [timer for timer in machine._timers if timer[2] == machine._reap]
    for index in range(accusers):
        machine.tell(Suspect("n0", 1, f"a{index}"))
    machine.go(seconds - 0.1)
    assert machine.state_of("n0") is MemberState.SUSPECT
    effects = machine.go(0.2)
    assert [notice.member.name for notice in of(effects, MemberDead)] == ["n0"]
    assert machine.live == 4


def test_few_members_do_not_wait_for_confirmations() -> None:
    assert CONFIG.confirmations(3) == 0
    assert CONFIG.confirmations(4) == 2
    assert CONFIG.suspicion_min(3) == 4.0
    assert CONFIG.suspicion_min(100) == 8.0
    assert [CONFIG.transmissions(n) for n in (1, 9, 10, 99, 100)] == [4, 4, 8, 8, 12]
    assert CONFIG.push_pull_scaled(32) == 30.0
    assert CONFIG.push_pull_scaled(33) == 60.0
    assert CONFIG.push_pull_scaled(65) == 90.0


def test_who_slept_does_not_condemn_others_when_it_wakes() -> None:
    machine = Machine("n0")
    machine.to_probe()
    machine.go(CONFIG.probe_interval)
    assert machine.state_of("n0") is MemberState.SUSPECT
    machine.now += 60.0
    machine.tick(machine.now)
    assert machine.counters.stalls == 1
    assert machine.state_of("n0") is MemberState.SUSPECT
    machine.tell(alive("n0", 2))
    machine.go(0.3)
    assert machine.state_of("n0") is MemberState.ALIVE


# -- claims and incarnations -----------------------------------------------------------------------------


def test_a_member_joins_changes_dies_and_returns() -> None:
    machine = Machine()
    machine.tell(alive("n0"))
    assert of(machine.collect(), MemberJoined)
    machine.tell(alive("n0"))
    assert not machine.collect()
    machine.tell(alive("n0", 2, encode_meta(MemberMeta(Kind.QUERY))))
    [changed] = of(machine.collect(), MemberChanged)
    assert changed.member == Member("n0", address("n0"), 2, MemberState.ALIVE, MemberMeta(Kind.QUERY))
    machine.tell(Dead("n0", 1, "n9"))
    assert not machine.collect()
    machine.tell(Dead("n0", 2, "n9"))
    assert of(machine.collect(), MemberDead)
    machine.tell(alive("n0", 2), Suspect("n0", 2, "n9"))
    assert machine.state_of("n0") is MemberState.DEAD
    machine.tell(alive("n0", 3))
    assert of(machine.collect(), MemberJoined)
    assert machine.live == 2


def test_a_dead_member_may_return_at_another_address_and_a_live_one_may_not() -> None:
    machine = Machine("n0")
    moved = Alive("n0", "10.0.9.9:7000", 2, BYTES)
    machine.tell(moved)
    assert machine.collect() == [NameTaken("n0", address("n0"), "10.0.9.9:7000")]
    machine.tell(Dead("n0", 1, "n9"), moved)
    assert machine.members()["n0"].address == "10.0.9.9:7000"
    assert machine.state_of("n0") is MemberState.ALIVE


def test_a_leave_is_not_a_death_and_wins_over_one() -> None:
    machine = Machine("n0", "n1")
    machine.tell(Dead("n0", 1, "n0"), Dead("n1", 1, "n9"))
    effects = machine.collect()
    assert [n.member.name for n in of(effects, MemberLeft)] == ["n0"]
    assert [n.member.name for n in of(effects, MemberDead)] == ["n1"]
    machine.tell(Dead("n0", 1, "n9"), Dead("n1", 1, "n1"))
    assert [n.member.name for n in of(machine.collect(), MemberLeft)] == ["n1"]
    assert machine.live == 1


def test_suspicions_of_old_and_unknown_lives_are_ignored() -> None:
    machine = Machine()
    machine.tell(alive("n0", 5), Suspect("n0", 4, "n9"), Suspect("n1", 1, "n9"), Dead("n1", 1, "n9"))
    assert machine.state_of("n0") is MemberState.ALIVE
    assert "n1" not in machine.members()
    machine.tell(Suspect("n0", 5, "n9"), alive("n0", 6))
    assert machine.state_of("n0") is MemberState.ALIVE


@pytest.mark.parametrize("accusation", [Suspect("me", 4, "n0"), Dead("me", 4, "n0"), Dead("me", 4, "me")])
def test_who_is_accused_refutes(accusation: Suspect | Dead) -> None:
    machine = Machine("n0")
    machine.tell(accusation)
    assert machine.member.incarnation == 5
    assert machine.counters.refutations == 1
    assert (address("n0"), Alive("me", ME, 5, BYTES)) in said(machine.go(0.3), Alive)


def test_a_refutation_that_did_not_arrive_is_said_again_not_raised() -> None:
    machine = Machine("n0")
    machine.tell(Suspect("me", 1, "n0"))
    machine.go(5.0)
    assert "me" not in machine._broadcasts
    machine.tell(Suspect("me", 1, "n0"), Ping(5, "me"), source=address("n0"))
    [packet] = of(machine.collect(), SendPacket)
    assert decode_packet(packet.data) == [Ack(5), Alive("me", ME, 2, BYTES)]
    assert machine.member.incarnation == 2


def test_a_former_life_is_outdone_and_another_of_the_same_name_is_told() -> None:
    machine = Machine()
    machine.tell(Alive("me", ME, 1, BYTES))
    assert machine.member.incarnation == 1
    machine.tell(Alive("me", ME, 1, encode_meta(MemberMeta(Kind.QUERY))))
    assert machine.member.incarnation == 2
    machine.tell(Alive("me", ME, 9, BYTES))
    assert machine.member.incarnation == 10
    machine.tell(Alive("me", "10.0.9.9:1", 11, BYTES))
    assert machine.collect() == [NameTaken("me", ME, "10.0.9.9:1")]


def test_a_new_meta_is_a_new_incarnation_at_most_once_in_a_while() -> None:
    machine = Machine("n0")
    metas = [MemberMeta(Kind.INGEST, load=float(load)) for load in range(1, 6)]
    machine.set_meta(metas[0], machine.now)
    machine.go(0.01)
    assert machine.member == Member("me", ME, 2, MemberState.ALIVE, metas[0])
    for meta in metas[1:]:
        machine.set_meta(meta, machine.now)
    machine.go(0.5)
    assert machine.member.meta == metas[0]
    machine.go(0.5)
    assert machine.member == Member("me", ME, 3, MemberState.ALIVE, metas[-1])
    machine.set_meta(metas[-1], machine.now)
    machine.go(2.0)
    assert machine.member.incarnation == 3
    with pytest.raises(ClusterMisconfigured):
        machine.set_meta(MemberMeta(Kind.INGEST, zone="z" * 600), machine.now)


def test_a_malformed_meta_is_refused_and_changes_nothing() -> None:
    machine = Machine("n0")
    for message in (alive("n0", 2, b"junk"), alive("n1", 1, b"junk")):
        with pytest.raises(MalformedMessage):
            machine.tell(message)
    assert machine.members()["n0"].incarnation == 1
    assert "n1" not in machine.members()
    assert not machine.collect()


# -- push and pull ---------------------------------------------------------------------------------------


def push(name: str, *entries: Entry) -> PushPull:
    return PushPull(name, address(name), 1, [Entry(name, address(name), 1, 0, BYTES), *entries])


def test_a_push_pull_brings_both_up_to_date() -> None:
    machine = Machine("n0")
    suspect, left = Entry("n2", address("n2"), 3, 1, BYTES), Entry("n0", address("n0"), 1, 3, BYTES)
    dead_unknown = Entry("n3", address("n3"), 1, 2, BYTES)
    answer = machine.answer(push("n1", suspect, left, dead_unknown), 9, machine.now)
    assert isinstance(answer, PushPull)
    assert {entry.name: entry.state for entry in answer.members} == {"me": 0, "n0": 3, "n1": 0, "n2": 1}
    assert (answer.name, answer.address, answer.sent_at_ms) == ("me", ME, 9)
    assert "n3" not in machine.members()


def test_who_is_dead_elsewhere_is_suspected_here() -> None:
    machine = Machine("n0", "n1")
    machine.merge(push("n1", Entry("n0", address("n0"), 1, 2, BYTES)), machine.now)
    assert machine.state_of("n0") is MemberState.SUSPECT


def test_a_push_pull_that_buries_us_is_answered_with_the_refutation() -> None:
    machine = Machine()
    answer = machine.answer(push("n1", Entry("me", ME, 8, 2, BYTES)), 9, machine.now)
    assert isinstance(answer, PushPull)
    assert Entry("me", ME, 9, 0, BYTES) in answer.members


def test_a_push_pull_under_the_name_of_a_live_member_is_refused() -> None:
    machine = Machine("n0")
    other = PushPull("n0", "10.0.9.9:7", 1, [Entry("n0", "10.0.9.9:7", 9, 0, BYTES), Entry("n5", ME, 1, 0, BYTES)])
    assert machine.answer(other, 9, machine.now) == NameIsTaken(address("n0"))
    assert machine.collect() == [NameTaken("n0", address("n0"), "10.0.9.9:7")]
    assert set(machine.members()) == {"me", "n0"}
    mine = PushPull("me", "10.0.9.9:7", 1, [])
    assert machine.answer(mine, 9, machine.now) == NameIsTaken(ME)
    machine.tell(Dead("n0", 1, "n9"))
    assert isinstance(machine.answer(other, 9, machine.now), PushPull)


def test_exchanges_are_with_the_living_and_now_and_then_with_the_dead() -> None:
    machine = Machine("n0", "n1")
    machine._probe_turn = lambda now: machine._after(now, 1.0, machine._probe_turn)  # type: ignore[method-assign]
    machine.tell(Dead("n1", 1, "n9"))
    machine._timers = [t for t in machine._timers if t[2] in (machine._push_pull_turn, machine._reconnect_turn)]
    effects = machine.go(900.0)
    targets = [effect.address for effect in of(effects, Exchange)]
    assert targets.count(address("n0")) == 30
    assert 5 <= targets.count(address("n1")) <= 25


# -- broadcasts ------------------------------------------------------------------------------------------


def test_broadcasts_go_least_sent_first_then_newest_and_end() -> None:
    queue = Broadcasts()
    for name in "abc":
        queue.add(name, name.encode() * 10)
    assert queue.take(20, 9, 2) == [b"c" * 10, b"b" * 10]
    assert queue.take(10, 9, 2) == [b"a" * 10]
    queue.add("b", b"B" * 10)  # newer: it counts from nothing again
    assert queue.take(100, 2, 2) == [b"B" * 10, b"c" * 10]
    assert queue.take(100, 9, 2) == [b"B" * 10, b"a" * 10]
    assert queue.take(100, 9, 2) == []
    assert len(queue) == 0


def test_what_does_not_fit_is_left_for_a_packet_with_room() -> None:
    queue = Broadcasts()
    queue.add("small", b"s" * 10)
    queue.add("large", b"L" * 100)
    assert queue.take(50, 9, 1) == [b"s" * 10]
    assert queue.take(7, 9, 1) == []
    assert queue.take(100, 9, 1) == [b"L" * 100]


def test_news_ride_on_answers_and_packets_keep_their_size() -> None:
    machine = Machine(*(f"n{i}" for i in range(200)))
    machine.tell(Ping(5, "me"))
    [packet] = of(machine.collect(), SendPacket)
    assert 1200 < len(packet.data) + PACKET_OVERHEAD_BYTES - 4 <= CONFIG.packet_bytes_max
    assert decode_packet(packet.data)[0] == Ack(5)


def test_gossip_ends_when_all_is_said() -> None:
    machine = Machine("n0", "n1")
    machine._timers = [timer for timer in machine._timers if timer[2] == machine._gossip]
    machine.tell(Suspect("n0", 1, "n9"))
    machine._timers = [timer for timer in machine._timers if timer[2] == machine._gossip]
    machine._after(machine.now, 1e9, machine._reap)
    effects = machine.go(10.0)
    assert len([m for _, m in said(effects, Suspect)]) == CONFIG.transmissions(3)
    assert not machine._gossiping


# -- leaving, bounds, and the long run -------------------------------------------------------------------


def test_a_leave_is_broadcast_and_reported_when_it_was_sent() -> None:
    machine = Machine("n0", "n1", "n2", "n3")
    machine.go(3.0)
    machine.leave(machine.now)
    machine.leave(machine.now)
    assert machine.members()["me"].state is MemberState.LEFT
    effects = machine.collect() + machine.go(2.0)
    leaves = said(effects, Dead)
    assert len([m for _, m in leaves if m == Dead("me", 1, "me")]) == CONFIG.transmissions(5)
    assert of(effects, LeaveSent)
    machine.tell(Suspect("me", 1, "n0"), Alive("me", ME, 5, BYTES))
    machine.tell(Ping(5, "me"))
    assert said(machine.collect(), Ack)
    assert machine.counters.refutations == 0
    assert not said(machine.go(5.0), Ping)


def test_who_is_alone_has_left_at_once() -> None:
    machine = Machine()
    machine.leave(machine.now)
    assert machine.collect() == [LeaveSent()]


def test_the_number_of_members_is_bounded() -> None:
    machine = Machine()
    for index in range(MEMBERS_MAX + 20):
        machine.tell(Alive(f"n{index}", "10.0.0.1:7000", 1, BYTES))
    assert len(machine.members()) == MEMBERS_MAX + 1
    assert machine.counters.refused == 20
    assert isinstance(machine.state(1), PushPull)


def test_the_dead_are_forgotten_after_a_time_and_above_a_number() -> None:
    config = SwimConfig(tombstone=100.0, probe_interval=1000.0)
    machine = Machine(config=config)
    for index in range(TOMBSTONES_MAX + 50):
        machine.tell(Alive(f"n{index}", "10.0.0.1:7000", 1, BYTES), Dead(f"n{index}", 1, "n9"))
        machine.now += 0.001
    machine.go(11.0)
    assert len(machine.members()) == TOMBSTONES_MAX + 1
    assert "n0" not in machine.members()
    machine.go(100.0)
    assert set(machine.members()) == {"me"}
    assert len(machine._broadcasts) == 0


def test_old_packets_that_are_sent_again_change_nothing_for_long() -> None:
    """What the keyring's docstring promises of replays."""
    machine = Machine("n0", "n1")
    history: list[PacketMessage] = [alive("n0", 2), Suspect("n0", 2, "n9"), alive("n0", 3), Dead("n1", 1, "n9")]
    machine.tell(*history, alive("n1", 2))
    before = machine.members()
    machine.collect()
    machine.tell(*history, Ack(1), Nack(1), Suspect("me", 0, "n9"))
    assert machine.members() == before
    assert not machine.collect()


def test_any_sequence_of_claims_keeps_the_books() -> None:
    rng, names = random.Random(3), ["me", *(f"n{index}" for index in range(6))]
    machine = Machine()
    for _ in range(5000):
        name, accuser, incarnation = rng.choice(names), rng.choice(names), rng.randint(0, 9) + int(machine.now / 20)
        where = ME if name == "me" else rng.choice([address(name), "10.0.9.9:7"])
        claims: list[PacketMessage] = [
            Alive(name, where, incarnation, BYTES),
            Suspect(name, incarnation, accuser),
            Dead(name, incarnation, accuser),
            Ping(1, name),
            PingRequest(incarnation, name, where),
            Ack(rng.choice([*machine._probes, *machine._relays, 0])),
            Nack(rng.choice([*machine._probes, 0])),
        ]
        before = {name: member.incarnation for name, member in machine.members().items()}
        machine.tell(rng.choice(claims))
        if rng.random() < 0.1:
            entry = Entry(name, where, incarnation, rng.randrange(4), BYTES)
            machine.merge(push(rng.choice(names[1:]), entry), machine.now)
        machine.go(rng.random() * 0.2)
        after = machine.members()
        assert machine.live == sum(member.is_usable for member in after.values())
        assert all(after[name].incarnation >= incarnation for name, incarnation in before.items())
        assert after["me"].state is MemberState.ALIVE
