"""What hurts the cluster in a chaos run: each fault strikes, says whether it really happened, and can be healed.

Driven by `tests.chaos.cluster_rounds`. The choice of faults and targets is seeded. A fault is in `FAULTS` by the name
that ``--faults`` takes; some need namespaces, some a store that can be hurt.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.chaos.faulty_cluster_node import fired as store_faults_fired
from tests.harness.netns import NetnsNetwork

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from tests.harness.cluster import Cluster
    from tests.harness.clusternode import ClusterNode

FAIL_OVER_SECONDS_MAX: Final = 25.0
"""How long a paused or cut node is left so, waiting for others to take its shards."""
LINGER_SECONDS: Final = 1.0
"""How much longer, so that its return is late."""
POLL_SECONDS: Final = 0.05
STORE_RATES: Final[Mapping[str, Mapping[str, float]]] = {
    "store": {
        "lost_answer": 0.03, "lost_request": 0.03, "late": 0.02, "conflict": 0.03, "unavailable": 0.03, "delay": 0.2,
        "delay_seconds": 0.05,
    },
    "store-slow": {"delay": 1.0, "delay_seconds": 0.4},
    "store-full": {"full": 1.0},
}  # fmt: skip
GROUPS: Final = {
    "kill": ("kill-owner", "kill-two", "kill-all", "kill-gateway", "kill-query"),
    "pause": ("pause-owner", "pause-query"),
    "term": ("term-ingest", "term-gateway", "term-query", "rolling"),
    "cut": ("cut-owner", "cut-in", "cut-out", "cut-query"),
    "loss": ("loss",),
    "store": tuple(STORE_RATES),
}
NEED_NAMESPACES: Final = frozenset({*GROUPS["cut"], *GROUPS["loss"]})


@dataclass(slots=True)
class Strike:
    """One fault. ``at``: monotonic seconds. ``is_fail_over``: other nodes must take shards over."""

    kind: str
    targets: tuple[str, ...]
    at: float
    is_fail_over: bool = False


@dataclass(slots=True)
class Nemesis:
    """``violations``: what a fault showed by itself, such as an exit code that is not 0."""

    cluster: Cluster
    random: random.Random
    control: Path
    reports: Path
    fired: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    strikes: list[Strike] = field(default_factory=list)
    told: Callable[[str], None] = print

    def strike(self, kind: str) -> Strike:
        """Do it, and count it if it has really happened."""
        self.told(f"  strike {kind}")
        found = FAULTS[kind](self, kind)
        self.strikes.append(found)
        return found

    def heal(self) -> None:
        """Everything runs, nothing is cut off, the store serves. A node that ended by itself is a violation."""
        self._heal_store()
        if isinstance(self.cluster.network, NetnsNetwork):
            self.cluster.network.heal()
        for node in self.cluster.nodes.values():
            node.resume()
            if not node.is_running:
                self._judge_end(node)
        self.cluster.start()

    def _judge_end(self, node: ClusterNode) -> None:
        code = node.process.poll() if node.process is not None else None
        if code not in (None, 0, -signal.SIGKILL):
            self.violations.append(f"{node.name} ended by itself with {code}: {node.tail()[-600:]}")

    def _heal_store(self) -> None:
        if self.control.exists() and self.control.read_text() != "{}":
            self.control.write_text("{}")

    # -- the faults -------------------------------------------------------------------------------------

    def _up(self, kind: str) -> list[str]:
        """Nodes of a kind that can be hurt; when an earlier fault has left none, they are started again."""
        if not self.cluster.names(kind, up=True):
            self.cluster.start(self.cluster.names(kind))
        return self.cluster.names(kind, up=True)

    def _pick(self, kind: str) -> ClusterNode:
        return self.cluster.nodes[self.random.choice(self._up(kind))]

    def _owner(self) -> ClusterNode:
        """An ingest node that owns shards, any of them as likely."""
        names = self._up("ingest")
        held = set(self.cluster.owners().values())
        return self.cluster.nodes[self.random.choice([name for name in names if name in held] or names)]

    def kill(self, kind: str) -> Strike:
        """kill -9 of one owner, of two ingest nodes, of all, of a gateway, of a query node."""
        ingest = [self.cluster.nodes[name] for name in self._up("ingest")]
        victims = {
            "kill-owner": lambda: [self._owner()],
            "kill-two": lambda: self.random.sample(ingest, min(2, len(ingest))),
            "kill-all": lambda: ingest,
            "kill-gateway": lambda: [self._pick("gateway")],
            "kill-query": lambda: [self._pick("query")],
        }[kind]()
        at = time.monotonic()
        for node in victims:
            with contextlib.suppress(ProcessLookupError):
                node.kill()
        self.fired[kind] += sum(node.process is not None and node.process.returncode == -9 for node in victims)
        return Strike(kind, tuple(node.name for node in victims), at, kind == "kill-owner")

    def pause(self, kind: str) -> Strike:
        """SIGSTOP until others own its shards (an owner) or for some seconds; SIGCONT."""
        node = self._owner() if kind == "pause-owner" else self._pick("query")
        at = time.monotonic()
        node.pause()
        self.fired[kind] += node.state() in ("T", "t")
        if kind == "pause-owner":
            self._wait_taken(node.name)
        else:
            time.sleep(self.random.uniform(1.0, 4.0))
        node.resume()
        return Strike(kind, (node.name,), at, kind == "pause-owner")

    def _wait_taken(self, name: str) -> None:
        """Until no live node believes that ``name`` owns anything, and a little longer; or long enough."""
        deadline = time.monotonic() + FAIL_OVER_SECONDS_MAX
        while time.monotonic() < deadline:
            with contextlib.suppress(AssertionError):
                if name not in self.cluster.owners(without=[name]).values():
                    time.sleep(LINGER_SECONDS)
                    return
            time.sleep(POLL_SECONDS)

    def terminate(self, kind: str) -> Strike:
        """SIGTERM: exit code 0; then it is started again."""
        node = self._pick(kind.removeprefix("term-"))
        at = time.monotonic()
        self._restart(node)
        self.fired[kind] += 1
        return Strike(kind, (node.name,), at)

    def _restart(self, node: ClusterNode) -> None:
        code = node.stop()
        if code != 0:
            self.violations.append(f"{node.name} ended with {code} after SIGTERM: {node.tail()[-600:]}")
        node.start()

    def rolling(self, kind: str) -> Strike:
        """Every node by SIGTERM, one after the other, each ready and settled before the next.

        Without a quorum nothing settles: as an operator would, it starts the dead nodes then.
        """
        if 2 * len(self.cluster.names("ingest", up=True)) <= len(self.cluster.names("ingest")):
            self.cluster.start()
            self.cluster.wait_settled()
        names = self.cluster.names(up=True)
        self.random.shuffle(names)
        at = time.monotonic()
        for name in names:
            self._restart(self.cluster.nodes[name])
            self.cluster.wait_settled()
        self.fired[kind] += 1
        return Strike(kind, tuple(names), at)

    def cut(self, kind: str) -> Strike:
        """Cut a node off, both ways or one way, until others own its shards; heal."""
        network = self.cluster.network
        assert isinstance(network, NetnsNetwork)
        node = self._pick("query") if kind == "cut-query" else self._owner()
        at = time.monotonic()
        network.cut(node.name, way={"cut-in": "in", "cut-out": "out"}.get(kind, "both"))
        if kind == "cut-query":
            time.sleep(self.random.uniform(2.0, 6.0))
        else:
            self._wait_taken(node.name)
        self.fired[kind] += network.heal(node.name) > 0
        return Strike(kind, (node.name,), at, kind == "cut-owner")

    def loss(self, kind: str) -> Strike:
        """A node loses a fifth of all packets for some seconds."""
        network = self.cluster.network
        assert isinstance(network, NetnsNetwork)
        node = self._pick("ingest")
        at = time.monotonic()
        network.lose(node.name, 0.2)
        time.sleep(self.random.uniform(2.0, 5.0))
        self.fired[kind] += network.heal(node.name) > 0
        return Strike(kind, (node.name,), at)

    def store(self, kind: str) -> Strike:
        """The store loses answers, is slow, or is full, for all nodes and for some seconds."""
        before = store_faults_fired(self.reports).total()
        at = time.monotonic()
        self.control.write_text(json.dumps(STORE_RATES[kind]))
        time.sleep(self.random.uniform(2.0, 4.0))
        self._heal_store()
        deadline = time.monotonic() + 2  # reports follow the facts
        while store_faults_fired(self.reports).total() == before and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self.fired[kind] += store_faults_fired(self.reports).total() > before
        return Strike(kind, (), at)


def chosen_faults(groups: Collection[str], *, namespaces: bool) -> list[str]:
    """The faults of these groups, or these faults, that can be had. Raises ValueError for a name that is none."""
    found: list[str] = []
    for name in groups:
        if name not in GROUPS and name not in FAULTS:
            raise ValueError(f"no fault {name!r}; there are {', '.join([*GROUPS, *FAULTS])}")
        found += [kind for kind in GROUPS.get(name, (name,)) if namespaces or kind not in NEED_NAMESPACES]
    return found


FAULTS: Final[Mapping[str, Callable[[Nemesis, str], Strike]]] = {
    **dict.fromkeys(GROUPS["kill"], Nemesis.kill),
    **dict.fromkeys(GROUPS["pause"], Nemesis.pause),
    **dict.fromkeys(("term-ingest", "term-gateway", "term-query"), Nemesis.terminate),
    "rolling": Nemesis.rolling,
    **dict.fromkeys(GROUPS["cut"], Nemesis.cut),
    "loss": Nemesis.loss,
    **dict.fromkeys(GROUPS["store"], Nemesis.store),
}
