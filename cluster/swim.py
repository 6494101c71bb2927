"""SWIM with Lifeguard as a pure machine: who is alive, by one member's belief. Messages and time in, effects out.

`Swim` holds no socket, no clock and no thread. A driver (`cluster.gossip`, or the virtual cluster in ``tests/sim``)
passes in packets, streams and ``now`` (seconds, any origin, never going back), calls `Swim.tick` at `Swim.wake_at`,
and performs what `Swim.take` returns, in order.

After Das, Gupta, Motivala: SWIM (2002); Dadgar, Phillips, Currey: Lifeguard (2017); and hashicorp/memberlist, whose
rules and defaults are taken where the papers leave room. Differences: a member that leaves stays LEFT where it was
held dead, so that views converge; dead members are remembered for a day and tried again, so that two sides of a
healed fault find each other; a machine that was stalled gives others the time that it slept through.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from cluster.broadcasts import Broadcasts
from cluster.members import Member, MemberState
from cluster.messages import (
    MEMBERS_MAX,
    PACKET_OVERHEAD_BYTES,
    STATES,
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
    decode_meta,
    decode_packet,
    encode_message,
    encode_meta,
    encode_packet,
)
from cluster.swimconfig import FAST, SwimConfig
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
from cluster.swimstate import Peer, Probe, Relay, Suspicion, SwimCounters

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from cluster.members import MemberMeta

__all__ = ["FAST", "Swim", "SwimConfig", "SwimCounters"]

PROBES_MAX: Final = 64
"""Probes under way at once: one by the round robin, the others asked for by `Swim.suspect_now`."""
RELAYS_MAX: Final = 256
"""Pings under way for others."""
TOMBSTONES_MAX: Final = 256
"""Dead and left members that are remembered, the latest."""
REAP_INTERVAL: Final = 10.0
NACK_SHARE: Final = 0.8
"""A relay says that it got no answer after this share of the time-out, so that the asker has it in time."""

_USABLE: Final = (MemberState.ALIVE, MemberState.SUSPECT)
_GONE: Final = (MemberState.DEAD, MemberState.LEFT)


_Timer: TypeAlias = "tuple[float, int, Callable[[float], None]]"


class Swim:
    """One member's view. Create it, then obey `take` and `wake_at`.

    ``incarnation`` should be greater than in former lives of the member (the driver takes the wall clock); when it
    is not, the member finds out and refutes.
    """

    def __init__(
        self,
        name: str,
        address: str,
        meta: MemberMeta,
        config: SwimConfig,
        rng: random.Random,
        now: float,
        *,
        incarnation: int = 1,
        counters: SwimCounters | None = None,
    ) -> None:
        self.name = name
        self.address = address
        self.config = config
        self.counters = SwimCounters() if counters is None else counters
        self.awareness = 0  # Lifeguard's local health: 0 is well
        self.leaving = False
        self.member = Member(name, address, incarnation, MemberState.ALIVE, meta)
        self._meta = encode_meta(meta)
        self._meta_next: MemberMeta | None = None
        self._meta_told_at = now - config.meta_interval
        self._rng = rng
        self._peers: dict[str, Peer] = {}
        self._live = 1
        self._effects: list[Effect] = []
        self._broadcasts = Broadcasts()
        self._gossiping = False
        self._timers: list[_Timer] = []
        self._timer_numbers = itertools.count()
        self._sequences = itertools.count(rng.getrandbits(61))  # so that no answer from a former life fits
        self._order: list[str] = []
        self._order_at = 0
        self._probes: dict[int, Probe] = {}
        self._turn = -1  # the sequence of the round robin's probe
        self._relays: dict[int, Relay] = {}
        self._after(now, rng.random() * config.probe_interval, self._probe_turn)
        self._after(now, rng.random() * config.push_pull_interval, self._push_pull_turn)
        self._after(now, rng.random() * config.reconnect_interval, self._reconnect_turn)
        self._after(now, REAP_INTERVAL, self._reap)

    # -- the surface for the driver ---------------------------------------------------------------------

    def take(self) -> list[Effect]:
        """Effects and notices since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    def members(self) -> dict[str, Member]:
        """Everybody who is known, dead and left ones too, and this member itself."""
        known = {name: peer.member for name, peer in self._peers.items()}
        known[self.name] = self.member
        return known

    @property
    def live(self) -> int:
        """Members that are alive or suspected, this one included."""
        return self._live

    @property
    def wake_at(self) -> float:
        """When `tick` wants to be called next."""
        return self._timers[0][0]

    def tick(self, now: float) -> None:
        """Do what is due."""
        self._forgive_stall(now)
        while self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2](now)

    def receive(self, data: bytes, source: str, now: float) -> None:
        """An opened packet from the address ``source``. Raises MalformedMessage."""
        for message in decode_packet(data):
            self._HANDLERS[type(message)](self, message, source, now)

    def state(self, sent_at_ms: int) -> PushPull:
        """Everything that is believed here: what a push/pull sends."""
        entries = [_entry(self.member, self._meta)]
        entries.extend(_entry(peer.member, peer.meta) for peer in self._peers.values())
        return PushPull(self.name, self.address, sent_at_ms, entries)

    def answer(self, asked: PushPull, sent_at_ms: int, now: float) -> PushPull | NameIsTaken:
        """Merge a push/pull that came in, and what to send back. Raises MalformedMessage.

        Merged first: the answer then holds refutations of what was said about us.
        """
        holder = self._holder(asked.name)
        if holder is not None and holder != asked.address:
            self._effects.append(NameTaken(asked.name, holder, asked.address))
            return NameIsTaken(holder)
        self.merge(asked, now)
        return self.state(sent_at_ms)

    def merge(self, theirs: PushPull, now: float) -> None:
        """Take over what another member believes. Raises MalformedMessage.

        Who is dead there is suspected here: so the living can object before anybody is buried by hearsay.
        """
        for entry in theirs.members:
            state = STATES[entry.state]
            if state in _USABLE:
                self._alive(Alive(entry.name, entry.address, entry.incarnation, entry.meta), "", now)
            if state is MemberState.LEFT:
                self._dead(Dead(entry.name, entry.incarnation, entry.name), "", now)
            elif state is not MemberState.ALIVE:
                self._suspect(Suspect(entry.name, entry.incarnation, theirs.name), "", now)

    def stream_acked(self, sequence: int) -> None:
        """The member that a `PingStream` was for has answered."""
        probe = self._probes.get(sequence)
        if probe is not None:
            probe.stream_acked = True

    def suspect_now(self, name: str, now: float) -> None:
        """Something went wrong with this member (its RPC failed): probe it at once, whosever turn it is."""
        peer = self._peers.get(name)
        if peer is None or not peer.member.is_usable or self.leaving or len(self._probes) >= PROBES_MAX:
            return
        if all(probe.name != name for probe in self._probes.values()):
            self._start_probe(peer, now)

    def set_meta(self, meta: MemberMeta, now: float) -> None:
        """Tell others a new meta, at most once in `SwimConfig.meta_interval`. Raises ClusterMisconfigured."""
        encode_meta(meta)  # too large: the caller's mistake, not the timer's
        waiting = self._meta_next is not None
        self._meta_next = meta
        if not waiting:
            self._after(now, self._meta_told_at + self.config.meta_interval - now, self._tell_meta)

    def leave(self, now: float) -> None:
        """Tell others that this member goes. It still answers pings, and reports `LeaveSent` when all is said."""
        if self.leaving:
            return
        self.leaving = True
        self.member = replace(self.member, state=MemberState.LEFT)
        self._broadcast(Dead(self.name, self.member.incarnation, self.name), now)
        self._gossip(now)

    # -- time ---------------------------------------------------------------------------------------------

    def _after(self, now: float, delay: float, call: Callable[[float], None]) -> None:
        heapq.heappush(self._timers, (now + max(0.0, delay), next(self._timer_numbers), call))

    def _forgive_stall(self, now: float) -> None:
        """This process slept through its timers: what others sent meanwhile may still wait in the socket.

        Everything is put off by what was slept, so that nobody is condemned in the first moment after it.
        """
        lag = now - self._timers[0][0]
        if lag <= self.config.probe_timeout:
            return
        self.counters.stalls += 1
        self._feel(1)
        self._timers = [(at + lag, number, call) for at, number, call in self._timers]  # still a heap
        for peer in self._peers.values():
            if peer.suspicion is not None:
                peer.suspicion.started += lag

    def _feel(self, change: int) -> None:
        self.awareness = min(self.config.awareness_max - 1, max(0, self.awareness + change))

    # -- sending --------------------------------------------------------------------------------------------

    def _send(self, address: str, *messages: PacketMessage) -> None:
        """These messages, and as many broadcasts as fit beside them."""
        parts = [encode_message(message) for message in messages]
        room = self.config.packet_bytes_max - PACKET_OVERHEAD_BYTES - sum(map(len, parts))
        parts += self._broadcasts.take(room, 255 - len(parts), self.config.transmissions(self._live))
        self._effects.append(SendPacket(address, encode_packet(parts)))

    def _broadcast(self, message: Alive | Suspect | Dead, now: float) -> None:
        self._broadcasts.add(message.name, encode_message(message))
        if not self._gossiping:
            self._gossiping = True
            self._after(now, self._rng.random() * self.config.gossip_interval, self._gossip)

    def _gossip(self, now: float) -> None:
        """Tell what is to be told to a few others. The timer runs only while there is something."""
        targets = [peer.member.address for peer in self._peers.values() if self._hears_gossip(peer, now)]
        for address in self._rng.sample(targets, min(self.config.gossip_nodes, len(targets))):
            if self._broadcasts:
                self._send(address)
        self._gossiping = bool(self._broadcasts and targets)
        if self._gossiping:
            self._after(now, self.config.gossip_interval, self._gossip)
        if self.leaving and not (targets and self.name in self._broadcasts):
            self._effects.append(LeaveSent())

    def _hears_gossip(self, peer: Peer, now: float) -> bool:
        """The newly dead too: one that lives after all learns of it, and objects."""
        state = peer.member.state
        return state in _USABLE or (
            state is MemberState.DEAD and now - peer.changed_at < self.config.gossip_to_the_dead
        )

    # -- probing ----------------------------------------------------------------------------------------------

    def _probe_turn(self, now: float) -> None:
        self._after(now, self.config.probe_interval, self._probe_turn)
        if self._turn in self._probes or self.leaving:  # an unwell member takes longer over each (Lifeguard)
            return
        peer = self._next_in_order()
        if peer is not None:
            self._turn = self._start_probe(peer, now)

    def _next_in_order(self) -> Peer | None:
        """Round robin over a shuffled list: each member's turn comes within twice the number of members."""
        for _ in range(len(self._order) + 1):
            if self._order_at >= len(self._order):
                self._order = [name for name, peer in self._peers.items() if peer.member.is_usable]
                self._rng.shuffle(self._order)
                self._order_at = 0
                if not self._order:
                    return None
            peer = self._peers.get(self._order[self._order_at])
            self._order_at += 1
            if peer is not None and peer.member.is_usable:
                return peer
        return None

    def _start_probe(self, peer: Peer, now: float) -> int:
        member, sequence = peer.member, next(self._sequences)
        self.counters.probes += 1
        self._probes[sequence] = Probe(member.name, member.address, member.incarnation)
        self._after(now, self.config.probe_timeout, functools.partial(self._probe_others, sequence))
        deadline = self.config.probe_interval * (self.awareness + 1)
        self._after(now, deadline, functools.partial(self._probe_ends, sequence))
        messages: list[PacketMessage] = [Ping(sequence, member.name)]
        if member.state is MemberState.SUSPECT:  # Lifeguard's buddy system: its answer brings the refutation along
            messages.insert(0, Suspect(member.name, member.incarnation, self.name))
        self._send(member.address, *messages)
        return sequence

    def _probe_others(self, sequence: int, now: float) -> None:
        """No answer so far: ask others to try, and try by TCP."""
        probe = self._probes.get(sequence)
        if probe is None:
            return
        probe.indirect = True
        alive = [p.member for p in self._peers.values() if p.member.state is MemberState.ALIVE]
        alive = [member for member in alive if member.name != probe.name]
        chosen = self._rng.sample(alive, min(self.config.indirect_checks, len(alive)))
        probe.nacks_wanted = len(chosen)
        for member in chosen:
            self._send(member.address, PingRequest(sequence, probe.name, probe.address))
        self._effects.append(PingStream(probe.address, probe.name, sequence))

    def _probe_ends(self, sequence: int, now: float) -> None:
        probe = self._probes.pop(sequence, None)
        if probe is None:
            return
        peer = self._peers.get(probe.name)
        if probe.stream_acked:
            if peer is not None:
                self._effects.append(PacketsBlocked(peer.member))
            return
        self.counters.probes_failed += 1
        self._feel(probe.nacks_wanted - probe.nacks if probe.nacks_wanted else 1)
        self._suspect(Suspect(probe.name, probe.incarnation, self.name), "", now)

    def _pinged(self, ping: Ping, source: str, now: float) -> None:
        if ping.target == self.name:
            self._send(source, Ack(ping.sequence))

    def _acked(self, ack: Ack, source: str, now: float) -> None:
        relay = self._relays.pop(ack.sequence, None)
        if relay is not None:
            self._send(relay.asker, Ack(relay.sequence))
        probe = self._probes.pop(ack.sequence, None)
        if probe is not None and not probe.indirect:
            self._feel(-1)

    def _nacked(self, nack: Nack, source: str, now: float) -> None:
        probe = self._probes.get(nack.sequence)
        if probe is not None:
            probe.nacks = min(probe.nacks + 1, probe.nacks_wanted)

    def _asked_to_ping(self, asked: PingRequest, source: str, now: float) -> None:
        if len(self._relays) >= RELAYS_MAX:
            return
        sequence = next(self._sequences)
        self._relays[sequence] = Relay(source, asked.sequence)
        self._after(now, self.config.probe_timeout * NACK_SHARE, functools.partial(self._relay_is_late, sequence))
        self._after(now, self.config.probe_timeout, functools.partial(self._relay_ends, sequence))
        self._send(asked.address, Ping(sequence, asked.target))

    def _relay_is_late(self, sequence: int, now: float) -> None:
        relay = self._relays.get(sequence)
        if relay is not None:
            self._send(relay.asker, Nack(relay.sequence))

    def _relay_ends(self, sequence: int, now: float) -> None:
        self._relays.pop(sequence, None)

    # -- what is said of members --------------------------------------------------------------------------------

    def _alive(self, said: Alive, source: str, now: float) -> None:
        if said.name == self.name:
            self._myself_alive(said, now)
            return
        peer = self._peers.get(said.name)
        if peer is None:
            peer = self._new_peer(said, now)
            if peer is not None:
                self._joins(peer, said, now)
        elif said.incarnation <= peer.member.incarnation:
            return  # old news
        elif said.address != peer.member.address and peer.member.is_usable:
            self._effects.append(NameTaken(said.name, peer.member.address, said.address))
        elif peer.member.is_usable:
            self._set(peer, said, now)
            self._effects.append(MemberChanged(peer.member))
        else:
            self._joins(peer, said, now)

    def _new_peer(self, said: Alive, now: float) -> Peer | None:
        """A member that is heard of for the first time; None when there are too many."""
        if len(self._peers) >= MEMBERS_MAX:
            self.counters.refused += 1
            return None
        member = Member(said.name, said.address, said.incarnation, MemberState.DEAD, decode_meta(said.meta))
        peer = self._peers[said.name] = Peer(member, said.meta, now)
        return peer

    def _joins(self, peer: Peer, said: Alive, now: float) -> None:
        """Into the rest of this round, at a place of chance: so that not all members probe it in step."""
        self._set(peer, said, now)
        self._live += 1
        if said.name not in self._order[self._order_at :]:
            self._order.insert(self._rng.randint(self._order_at, len(self._order)), said.name)
        self._effects.append(MemberJoined(peer.member))

    def _set(self, peer: Peer, said: Alive, now: float) -> None:
        meta = peer.member.meta if said.meta == peer.meta else decode_meta(said.meta)
        peer.member = Member(said.name, said.address, said.incarnation, MemberState.ALIVE, meta)
        peer.meta, peer.changed_at, peer.suspicion = said.meta, now, None
        self._broadcast(said, now)

    def _myself_alive(self, said: Alive, now: float) -> None:
        mine = self.member.incarnation
        if self.leaving or said.incarnation < mine:
            return
        if said.address != self.address:
            self._effects.append(NameTaken(self.name, self.address, said.address))
        elif said.incarnation > mine or said.meta != self._meta:  # from a former life
            self._refute(said.incarnation, now)

    def _suspect(self, said: Suspect, source: str, now: float) -> None:
        if said.name == self.name:
            self._accused(said.incarnation, now)
            return
        peer = self._peers.get(said.name)
        if peer is None or said.incarnation < peer.member.incarnation or not peer.member.is_usable:
            return
        if peer.suspicion is None:
            self._start_suspicion(peer, said, now)
        elif not peer.suspicion.confirm(said.accuser):
            return
        self._broadcast(said, now)
        assert peer.suspicion is not None
        end = functools.partial(self._suspicion_ends, said.name, peer.suspicion)
        self._after(now, peer.suspicion.ends_at - now, end)

    def _start_suspicion(self, peer: Peer, said: Suspect, now: float) -> None:
        shortest = self.config.suspicion_min(self._live)
        longest = shortest * self.config.suspicion_max_timeout_mult
        wanted = self.config.confirmations(self._live)
        peer.suspicion = Suspicion(now, shortest, longest, wanted, {said.accuser})
        peer.member = replace(peer.member, state=MemberState.SUSPECT, incarnation=said.incarnation)
        peer.changed_at = now
        self.counters.suspicions += 1
        self._effects.append(MemberChanged(peer.member))

    def _suspicion_ends(self, name: str, suspicion: Suspicion, now: float) -> None:
        peer = self._peers.get(name)
        if peer is None or peer.suspicion is not suspicion or now < suspicion.ends_at - 1e-6:
            return
        self._dead(Dead(name, peer.member.incarnation, self.name), "", now)

    def _dead(self, said: Dead, source: str, now: float) -> None:
        if said.name == self.name:
            self._accused(said.incarnation, now)
            return
        peer = self._peers.get(said.name)
        if peer is None or said.incarnation < peer.member.incarnation:
            return
        state = MemberState.LEFT if said.accuser == said.name else MemberState.DEAD
        if peer.member.state is MemberState.LEFT or peer.member.state is state:
            return
        self._live -= peer.member.is_usable
        peer.member = replace(peer.member, state=state, incarnation=said.incarnation)
        peer.changed_at, peer.suspicion = now, None
        self._broadcast(said, now)
        if state is MemberState.LEFT:
            self._effects.append(MemberLeft(peer.member))
        else:
            self.counters.deaths += 1
            self._effects.append(MemberDead(peer.member))

    def _accused(self, incarnation: int, now: float) -> None:
        if self.leaving:
            return
        if incarnation >= self.member.incarnation:
            self._feel(1)
            self._refute(incarnation, now)
        elif self.name not in self._broadcasts:  # the refutation did not get everywhere: say it again
            self._say_alive(self.member.incarnation, now)

    def _refute(self, incarnation: int, now: float) -> None:
        self.counters.refutations += 1
        self._say_alive(max(incarnation, self.member.incarnation) + 1, now)

    def _say_alive(self, incarnation: int, now: float) -> None:
        self.member = replace(self.member, incarnation=incarnation)
        self._broadcast(Alive(self.name, self.address, incarnation, self._meta), now)

    def _tell_meta(self, now: float) -> None:
        meta, self._meta_next = self._meta_next, None
        if meta is None or meta == self.member.meta or self.leaving:
            return
        self._meta_told_at = now
        self._meta = encode_meta(meta)
        self.member = replace(self.member, meta=meta)
        self._say_alive(self.member.incarnation + 1, now)

    # -- the slow rounds ------------------------------------------------------------------------------------------

    def _push_pull_turn(self, now: float) -> None:
        self._after(now, self.config.push_pull_scaled(self._live), self._push_pull_turn)
        self._exchange_with(MemberState.ALIVE)

    def _reconnect_turn(self, now: float) -> None:
        """Try a dead member again; among many live ones only some of us do."""
        self._after(now, self.config.reconnect_interval, self._reconnect_turn)
        dead = sum(peer.member.state is MemberState.DEAD for peer in self._peers.values())
        if self._rng.random() * self._live < dead:
            self._exchange_with(MemberState.DEAD)

    def _exchange_with(self, state: MemberState) -> None:
        found = [peer.member.address for peer in self._peers.values() if peer.member.state is state]
        if found and not self.leaving:
            self._effects.append(Exchange(self._rng.choice(found)))

    def _reap(self, now: float) -> None:
        """Forget who has been gone for long."""
        self._after(now, REAP_INTERVAL, self._reap)
        gone = sorted((p.changed_at, name) for name, p in self._peers.items() if p.member.state in _GONE)
        surplus = len(gone) - TOMBSTONES_MAX
        for number, (changed_at, name) in enumerate(gone):
            if number < surplus or now - changed_at > self.config.tombstone:
                del self._peers[name]
                self._broadcasts.forget(name)

    def _holder(self, name: str) -> str | None:
        """Where a live member of this name is."""
        if name == self.name:
            return None if self.leaving else self.address
        peer = self._peers.get(name)
        return peer.member.address if peer is not None and peer.member.is_usable else None

    _HANDLERS: Final[Mapping[type[PacketMessage], Callable[[Swim, Any, str, float], None]]] = {
        Ping: _pinged,
        Ack: _acked,
        Nack: _nacked,
        PingRequest: _asked_to_ping,
        Alive: _alive,
        Suspect: _suspect,
        Dead: _dead,
    }


def _entry(member: Member, meta: bytes) -> Entry:
    return Entry(member.name, member.address, member.incarnation, STATES.index(member.state), meta)
