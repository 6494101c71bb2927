"""SWIM in whole clusters, in virtual time: what must hold for every seed (notes of the papers: see `cluster.swim`).

Each property has its own range of seeds, several hundred together; the machine under test is the real one.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from cluster.members import Kind, MemberMeta, MemberState
from cluster.swimconfig import FAST, SwimConfig
from tests.sim.swimcluster import VirtualCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULTS = SwimConfig()


def sizes(seed: int) -> int:
    return 2 + seed % 6


def crash_bound_seconds(size: int, config: SwimConfig) -> float:
    """Two rounds of the round robin until somebody probes it, one probe, a full suspicion, and the gossip."""
    suspicion = config.suspicion_min(size) * (config.suspicion_max_timeout_mult if config.confirmations(size) else 1)
    return (2 * size + 1) * config.probe_interval + suspicion + 2.0


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_a_crash_is_known_everywhere_in_time(loss: float) -> None:
    took: list[float] = []
    for seed in range(60):
        cluster = VirtualCluster(seed, sizes(seed), loss=loss).formed(8.0)
        assert cluster.run(60.0, cluster.agree), seed  # a join that some missed comes with the next push/pull
        victim = cluster.rng.choice(list(cluster.nodes))
        crashed_at = cluster.now
        cluster.crash(victim)
        known = cluster.run(
            crash_bound_seconds(sizes(seed), DEFAULTS),
            lambda c=cluster, v=victim: c.state_of(v) == {MemberState.DEAD},  # type: ignore[misc]
        )
        assert known, seed
        took.append(cluster.now - crashed_at)
        assert {who for _, _, who in cluster.deaths} == {victim}, seed
    assert sorted(took)[len(took) // 2] < 8.0


def test_thirty_members_know_a_crash_within_thirteen_seconds() -> None:
    for seed in range(4):
        cluster = VirtualCluster(seed, 30).formed(3.0)
        assert cluster.agree()
        cluster.crash("n7")
        assert cluster.run(13.0, lambda c=cluster: c.state_of("n7") == {MemberState.DEAD}), seed  # type: ignore[misc]


def test_nobody_is_buried_alive_when_a_tenth_of_the_packets_is_lost() -> None:
    """A live member may be suspected, and refutes in time."""
    suspicions = 0
    for seed in range(100):
        cluster = VirtualCluster(seed, sizes(seed), loss=0.1).formed(60.0)
        assert not cluster.deaths, seed
        assert cluster.agree() or cluster.run(20.0, cluster.agree), seed
        suspicions += sum(node.machine.counters.suspicions for node in cluster.up())
    assert suspicions < 100


def test_a_lossy_network_without_streams_still_refutes() -> None:
    """At 20 % loss members are suspected all the time, and their refutations come in time (but for bad luck)."""
    suspicions = refutations = buried = 0
    for seed in range(25):
        cluster = VirtualCluster(seed, 5, loss=0.2)
        cluster.ping_stream = lambda node, effect: None  # type: ignore[method-assign]
        cluster.formed(60.0)
        buried += bool(cluster.deaths)
        suspicions += sum(node.machine.counters.suspicions for node in cluster.up())
        refutations += sum(node.machine.counters.refutations for node in cluster.up())
    assert suspicions > 500
    assert refutations > 100
    assert buried <= 1


def test_a_leave_is_seen_as_one() -> None:
    for seed in range(60):
        cluster = VirtualCluster(seed, sizes(seed), loss=0.1 * (seed % 2)).formed(8.0)
        assert cluster.run(60.0, cluster.agree), seed
        leaver = cluster.rng.choice(list(cluster.nodes))
        cluster.leave(leaver)
        node = cluster.nodes[leaver]
        assert cluster.run(3.0, lambda n=node: n.left), seed  # type: ignore[misc]
        cluster.crash(leaver)
        assert cluster.run(35.0, lambda c=cluster, n=leaver: c.state_of(n) == {MemberState.LEFT}), seed  # type: ignore[misc]
        cluster.run(20.0)
        assert cluster.state_of(leaver) == {MemberState.LEFT}, seed
        assert not cluster.deaths, seed


def test_views_converge_after_a_fault_heals() -> None:
    for seed in range(50):
        cluster = VirtualCluster(seed, 3 + seed % 5).formed(8.0)
        names = list(cluster.nodes)
        cluster.rng.shuffle(names)
        middle = cluster.rng.randint(1, len(names) - 1)
        cluster.cut(names[:middle], names[middle:])
        cluster.run(cluster.rng.uniform(5.0, 120.0))
        cluster.cut()
        assert cluster.run(150.0, cluster.agree), seed
        cluster.run(30.0)
        assert cluster.agree(), seed


def test_a_member_returns_under_its_name_whatever_it_remembers() -> None:
    """At once or when it is long dead, at its old address or, once it is dead, at another."""
    for seed in range(50):
        cluster = VirtualCluster(seed, 3 + seed % 4).formed(8.0)
        cluster.nodes["n1"].machine.set_meta(MemberMeta(Kind.QUERY), cluster.now)  # its incarnation is greater now
        cluster.run(3.0)
        cluster.crash("n1")
        moves = bool(seed % 2)
        cluster.run(cluster.rng.uniform(0.1, 40.0) + 60.0 * moves)
        node = cluster.boot("n1", "10.0.9.9:7000" if moves else None, load=float(seed))
        cluster.join("n1")
        assert cluster.run(60.0, cluster.agree), seed
        assert not node.refused


def test_a_second_member_of_a_live_name_is_refused_and_changes_nothing() -> None:
    for seed in range(20):
        cluster = VirtualCluster(seed, 4).formed(8.0)
        first = cluster.nodes["n1"]
        second = cluster.boot("n1", "10.0.9.9:7000")
        cluster.nodes["n1"], cluster.nodes["second"] = first, second
        cluster.join("second", f"n{seed % 4}")
        cluster.run(5.0)
        assert second.refused, seed
        assert second.machine.live == 1
        second.is_up = False
        assert cluster.agree()


def test_short_pauses_do_not_kill_and_long_ones_are_forgiven() -> None:
    """A paused process sees its timers late, and must not bury the others when it wakes."""
    for seed in range(40):
        cluster = VirtualCluster(seed, 3 + seed % 5).formed(8.0)
        paused = cluster.rng.choice(list(cluster.nodes))
        seconds = 2.5 if seed % 2 else cluster.rng.uniform(10.0, 40.0)
        cluster.pause(paused, seconds)
        cluster.run(seconds)
        assert cluster.run(100.0, cluster.agree), seed
        assert {who for _, _, who in cluster.deaths} <= ({paused} if seconds > 3.0 else set()), seed


def trouble(cluster: VirtualCluster, seconds: float) -> Iterator[str]:
    """Let random things happen for a while."""
    rng, end = random.Random(cluster.rng.getrandbits(64)), cluster.now + seconds
    while cluster.now < end:
        cluster.run(rng.expovariate(0.3))
        name = rng.choice(list(cluster.nodes))
        node = cluster.nodes[name]
        kind = rng.choice(["crash", "boot", "pause", "cut", "heal", "meta", "suspect"])
        yield f"{cluster.now:.2f} {kind} {name}"
        if kind == "crash" and len(cluster.up()) > 2:
            cluster.crash(name)
        elif kind == "boot" and not node.is_up:
            cluster.boot(name, load=rng.random())
            cluster.join(name, rng.choice(list(cluster.nodes)))
        elif kind == "pause":
            cluster.pause(name, rng.expovariate(0.3))
        elif kind == "cut":
            names = list(cluster.nodes)
            rng.shuffle(names)
            cluster.cut(names[: len(names) // 2], names[len(names) // 2 :])
        elif kind == "heal":
            cluster.cut()
        elif kind == "meta":
            node.machine.set_meta(MemberMeta(Kind.GATEWAY, load=rng.random()), cluster.now)
        elif node.is_up:
            node.machine.suspect_now(rng.choice(list(cluster.nodes)), cluster.now)


def check_notices(cluster: VirtualCluster, seed: int) -> None:
    """Notices alone give the same picture as the view itself."""
    for node in cluster.up():
        view = {name: m for name, m in node.machine.members().items() if name != node.machine.name}
        assert {name: (m.state, m.meta) for name, m in view.items()} == {
            name: (m.state, m.meta) for name, m in node.told.items()
        }, seed


def test_whatever_happens_views_converge_when_it_ends() -> None:
    for seed in range(60):
        cluster = VirtualCluster(seed, 4 + seed % 4, loss=0.05 * (seed % 3)).formed(8.0)
        story = list(trouble(cluster, 60.0))
        cluster.cut()
        cluster.loss = 0.0
        for name, node in list(cluster.nodes.items()):
            if not node.is_up:
                cluster.boot(name)
            cluster.nodes[name].paused_until = min(cluster.nodes[name].paused_until, cluster.now)
        for name in cluster.nodes:
            seed_name = "n1" if name == "n0" else "n0"
            cluster.join(name, seed_name)  # as the driver does for a member that is alone
        assert cluster.run(200.0, cluster.agree), (seed, story)
        cluster.run(5.0)
        check_notices(cluster, seed)


def test_the_same_seed_gives_the_same_run() -> None:
    def run() -> tuple[int, list[tuple[float, str, str]]]:
        cluster = VirtualCluster(5, 6, FAST, loss=0.2).formed(2.0)
        cluster.crash("n3")
        cluster.run(10.0)
        return cluster.packets, cluster.deaths

    assert run() == run()
