"""A whole cluster of `Swim` machines under one seeded scheduler with virtual time.

The network loses and delays packets, and can be cut; members crash, pause, restart and leave. Packets and streams go
through the real codecs. `tests.sim.test_swim` states what must hold, `tests.sim.swim_figures` measures.
"""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.members import Kind, Member, MemberMeta, MemberState
from cluster.messages import NameIsTaken, PushPull, decode_stream, encode_stream
from cluster.swim import PROBES_MAX, RELAYS_MAX, Swim, SwimConfig
from cluster.swimeffects import (
    Effect,
    Exchange,
    LeaveSent,
    MemberChanged,
    MemberDead,
    MemberJoined,
    MemberLeft,
    NameTaken,
    PingStream,
    SendPacket,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

STREAM_LATENCY = 0.002
CHANGES = (MemberJoined, MemberChanged, MemberDead, MemberLeft)


@dataclass
class Node:
    """A machine and what it runs on. ``told`` is what its notices alone say of others."""

    machine: Swim
    is_up: bool = True
    paused_until: float = 0.0
    armed: float = -1.0
    left: bool = False
    refused: bool = False
    told: dict[str, Member] = field(default_factory=dict)


class VirtualCluster:
    """Members are called n0, n1, ... and live at 10.0.0.1:7000, ..."""

    def __init__(self, seed: int, size: int, config: SwimConfig | None = None, *, loss: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.config = SwimConfig() if config is None else config
        self.loss = loss
        self.latency = (0.0005, 0.0035)
        self.now = 0.0
        self.groups: dict[str, int] = {}  # while the network is cut: who can reach whom
        self.deaths: list[tuple[float, str, str]] = []  # when, who believes it, of whom
        self.packets = 0
        self.nodes: dict[str, Node] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        for index in range(size):
            self.boot(f"n{index}")

    # -- what a test does ---------------------------------------------------------------------------------

    def boot(self, name: str, address: str | None = None, *, load: float = 0.0) -> Node:
        """Start a member, or start it again: it knows nothing, not even how often it lived before."""
        where = address or f"10.0.0.{int(name[1:]) + 1}:7000"
        rng = random.Random(self.rng.getrandbits(64))
        machine = Swim(name, where, MemberMeta(Kind.INGEST, load=load), self.config, rng, self.now)
        node = self.nodes[name] = Node(machine)
        self.pump(node)
        return node

    def join(self, name: str, seed: str = "n0") -> None:
        self.exchange(self.nodes[name], self.nodes[seed].machine.address)

    def formed(self, seconds: float = 5.0) -> VirtualCluster:
        """All join n0 within a second, and get to know each other."""
        for name in list(self.nodes)[1:]:
            self.later(self.rng.random(), lambda name=name: self.join(name))  # type: ignore[misc]
        self.run(seconds)
        return self

    def crash(self, name: str) -> None:
        self.nodes[name].is_up = False

    def pause(self, name: str, seconds: float) -> None:
        self.nodes[name].paused_until = self.now + seconds

    def leave(self, name: str) -> None:
        node = self.nodes[name]
        node.machine.leave(self.now)
        self.pump(node)

    def cut(self, *groups: Iterable[str]) -> None:
        """Only members of the same group reach each other; no arguments heal the network."""
        self.groups = {name: number for number, names in enumerate(groups) for name in names}

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time go by; whether ``until`` came true meanwhile."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            at, _, call = heapq.heappop(self._events)
            self.now = max(self.now, at)
            call()
            if until is not None and until():
                return True
        self.now = end
        return until is not None and until()

    # -- what a test sees ---------------------------------------------------------------------------------

    def up(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.is_up]

    def state_of(self, name: str) -> set[MemberState | None]:
        """What the others that are up believe of a member."""
        views = (n.machine.members().get(name) for n in self.up() if n.machine.name != name)
        return {None if member is None else member.state for member in views}

    def agree(self) -> bool:
        """Everybody who is up knows everybody who is up as alive, with the newest incarnation and meta."""
        newest = {node.machine.name: node.machine.member for node in self.up()}
        return all(
            node.machine.live == len(newest)
            and all(node.machine.members().get(name) == member for name, member in newest.items())
            for node in self.up()
        )

    # -- how it goes --------------------------------------------------------------------------------------

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), call))

    def reaches(self, one: Node, other: Node) -> bool:
        if not (one.is_up and other.is_up):
            return False
        return self.groups.get(one.machine.name, 0) == self.groups.get(other.machine.name, 0)

    def at(self, address: str) -> Node | None:
        return next((n for n in self.nodes.values() if n.machine.address == address and n.is_up), None)

    def when_running(self, node: Node, call: Callable[[], None]) -> None:
        """Now, or when its pause ends: what arrives meanwhile waits in its sockets."""
        if not node.is_up:
            return
        if node.paused_until > self.now:
            self.later(node.paused_until - self.now + self.rng.random() * 1e-4, lambda: self.when_running(node, call))
        else:
            call()

    def pump(self, node: Node) -> None:
        machine = node.machine
        for effect in machine.take():
            self.perform(node, effect)
        self.check(node)
        if node.armed <= self.now or machine.wake_at < node.armed:
            node.armed = machine.wake_at
            self.later(max(0.0, machine.wake_at - self.now), lambda: self.when_running(node, lambda: self.wake(node)))

    def wake(self, node: Node) -> None:
        if node.machine.wake_at <= self.now:
            node.machine.tick(self.now)
        node.armed = min(node.armed, self.now)
        self.pump(node)

    def perform(self, node: Node, effect: Effect) -> None:
        if isinstance(effect, SendPacket):
            self.send(node, effect)
        elif isinstance(effect, Exchange):
            self.exchange(node, effect.address)
        elif isinstance(effect, PingStream):
            self.ping_stream(node, effect)
        elif isinstance(effect, CHANGES):
            node.told[effect.member.name] = effect.member
            if isinstance(effect, MemberDead):
                self.deaths.append((self.now, node.machine.name, effect.member.name))
        elif isinstance(effect, LeaveSent):
            node.left = True
        elif isinstance(effect, NameTaken):
            node.refused = node.refused or effect.claimant != effect.holder

    def check(self, node: Node) -> None:
        """What must always hold of a machine."""
        machine = node.machine
        assert 0 <= machine.awareness < self.config.awareness_max
        assert len(machine._probes) <= PROBES_MAX
        assert len(machine._relays) <= RELAYS_MAX
        assert len(machine._broadcasts) <= len(machine._peers) + 1
        assert len(machine._timers) < 100 + 8 * len(machine._peers)

    def send(self, node: Node, effect: SendPacket) -> None:
        self.packets += 1
        assert len(effect.data) <= self.config.packet_bytes_max - 29
        target = self.at(effect.address)
        if target is None or not self.reaches(node, target) or self.rng.random() < self.loss:
            return
        source = node.machine.address

        def arrive() -> None:
            target.machine.receive(effect.data, source, self.now)
            self.pump(target)

        self.later(self.rng.uniform(*self.latency), lambda: self.when_running(target, arrive))

    def exchange(self, node: Node, address: str) -> None:
        target = self.at(address)
        if target is None or not self.reaches(node, target):
            return
        question = encode_stream(node.machine.state(int(self.now * 1000)))

        def ask() -> None:
            asked = decode_stream(question)
            assert isinstance(asked, PushPull)
            answer = encode_stream(target.machine.answer(asked, int(self.now * 1000), self.now))
            self.pump(target)
            if self.reaches(node, target):
                self.later(STREAM_LATENCY, lambda: self.when_running(node, lambda: answered(answer)))

        def answered(data: bytes) -> None:
            answer = decode_stream(data)
            if isinstance(answer, PushPull):
                node.machine.merge(answer, self.now)
            node.refused = isinstance(answer, NameIsTaken)
            self.pump(node)

        self.later(STREAM_LATENCY, lambda: self.when_running(target, ask))

    def ping_stream(self, node: Node, effect: PingStream) -> None:
        target = self.at(effect.address)
        if target is None or not self.reaches(node, target) or target.machine.name != effect.name:
            return

        def pong() -> None:
            if self.reaches(node, target):
                self.later(
                    STREAM_LATENCY, lambda: self.when_running(node, lambda: node.machine.stream_acked(effect.sequence))
                )

        self.later(STREAM_LATENCY, lambda: self.when_running(target, pong))
