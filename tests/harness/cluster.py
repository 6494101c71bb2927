"""A cluster of real processes: ingest nodes, gateways and query nodes on free ports, and ways to look at it.

Driven by the integration tests, the chaos rounds and the cluster benchmark. Everything that waits polls a condition
with a deadline, and its failure shows the end of the nodes' logs. Leaving the cluster kills every process, also
after a failure; a process that dies with the tests cannot leave nodes behind (`atexit`).
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import subprocess
import sys
import time
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from cluster.certificates import make_certificates
from cluster.secret import make_secret
from tests.harness.clusternode import ROOT, Blueprint, ClusterNode
from tests.harness.exchange import Reply, query_path, write_path
from tests.harness.logscan import alarms
from tests.harness.networks import Loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.harness.networks import Network

CLUSTER_PATH: Final = "/api/runnel/cluster"
SETTLE_SECONDS_MAX: Final = 90.0
POLL_SECONDS: Final = 0.05
DOORS: Final = ("http", "grpc", "gossip", "raft")
FAST: Final = {"RUNNEL_GOSSIP__PROBE_INTERVAL": "500ms", "RUNNEL_GOSSIP__PROBE_TIMEOUT": "250ms"}
BEYOND_LOOPBACK: Final = {"RUNNEL_AUTH__MODE": "off"}
"""Must be written out for an address that other machines reach; a namespace's is one."""
STANDIN: Final = "tests.harness.standin"
WARM_SECONDS_MAX: Final = 300.0
_KINDS: Final = {"i": "ingest", "g": "gateway", "q": "query"}

_open: Final[weakref.WeakSet[Cluster]] = weakref.WeakSet()


@functools.cache
def warm_parser() -> None:
    """Compile the line protocol parser into its cache, once: two gateways that compile it for their first writes would
    take a minute of a busy machine, and every timing with them."""
    command = [sys.executable, "-m", "wire.lineprotocol.warm"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=WARM_SECONDS_MAX)


@atexit.register
def _kill_what_is_left() -> None:
    for cluster in list(_open):
        cluster.kill()


@dataclass(frozen=True, slots=True)
class View:
    """What one node says of the cluster."""

    controller: str
    placement: tuple[int, int]
    owners: Mapping[int, str]
    states: Mapping[str, str]

    @staticmethod
    def of(document: Mapping[str, Any]) -> View:
        """Decode the answer of ``GET /api/runnel/cluster``."""
        return View(
            document["controller"] or "",
            (document["placement_epoch"], document["placement_number"]),
            {int(each["shard"]): each["owner"] or "" for each in document["shards"]},
            {each["name"]: each["state"] for each in document["members"]},
        )


@dataclass(eq=False)
class Cluster:
    """Started by ``with``. Nodes are i1.., g1.., q1..; ``store`` defaults to a folder that all of them share.

    ``voters``: how many of the ingest nodes vote (all, or one less of an even number). ``secure``: a secret and TLS
    between nodes; always beyond loopback, where nodes ask for it.
    """

    folder: Path
    ingest: int = 3
    gateways: int = 2
    queries: int = 2
    store: str | None = None
    secure: bool = False
    fast: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    network: Network = field(default_factory=Loopback)
    module: str = "nodes"
    shards: int | None = None
    voters: int | None = None
    nodes: dict[str, ClusterNode] = field(default_factory=dict, init=False)
    outsiders: list[ClusterNode] = field(default_factory=list, init=False)

    # -- its life ---------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        _open.add(self)
        try:
            if self.module != STANDIN:
                warm_parser()
            self.plan()
            self.start()
            self.wait_settled()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(self.tails())
        self.kill()

    def plan(self) -> None:
        """Give every node its name, address and ports; starts nothing."""
        names = [f"i{n + 1}" for n in range(self.ingest)]
        names += [f"g{n + 1}" for n in range(self.gateways)] + [f"q{n + 1}" for n in range(self.queries)]
        places = {name: self.places(name) for name in names}
        voting = [name for name in names if name[0] == "i"][: self.voters or _odd(self.ingest)]
        voters = [f"{name}={_text(places[name]['raft'])}" for name in voting]
        join = [_text(places[name]["gossip"]) for name in names if name[0] == "i"]
        is_secure = self.secure or not isinstance(self.network, Loopback)
        secret = self.make_secret() if is_secure else None
        for name in names:
            environment = {**(FAST if self.fast else {}), **self.environment}
            if is_secure:
                environment |= self.tls_settings(name) | BEYOND_LOOPBACK
            self.nodes[name] = ClusterNode(
                Blueprint(
                    name, _KINDS[name[0]], self.folder / name, self.store_url, places[name], ",".join(voters),
                    ",".join(join), secret, self.shards, environment, self.network.prefix(name), self.module,
                )
            )  # fmt: skip

    def places(self, name: str) -> dict[str, tuple[str, int]]:
        """An address for each door of a node."""
        return {door: (self.network.host(name), self.network.port(name, door)) for door in DOORS}

    def make_secret(self) -> Path:
        """The file of the cluster's secret."""
        self.folder.mkdir(parents=True, exist_ok=True)
        make_secret(self.folder / "secret")
        return self.folder / "secret"

    def tls_settings(self, name: str) -> dict[str, str]:
        """A node's certificate, as its environment."""
        files = make_certificates(self.folder / "tls", [self.network.host(name)], name)
        return {
            "RUNNEL_TLS__CA": str(files.ca), "RUNNEL_TLS__CERT": str(files.cert), "RUNNEL_TLS__KEY": str(files.key),
        }  # fmt: skip

    @property
    def store_url(self) -> str:
        """The store that all nodes share."""
        return self.store or str(self.folder / "store")

    def start(self, names: Iterable[str] | None = None) -> None:
        """Start these nodes (all that do not run), together, and wait until each is ready."""
        chosen = [self.nodes[name] for name in (self.nodes if names is None else names)]
        waiting = [node for node in chosen if not node.is_running]
        for node in waiting:
            node.launch()
        for node in waiting:
            node.wait_ready()

    def kill(self) -> None:
        """kill -9 everything that runs; never raises for a node that is gone."""
        for node in [*self.nodes.values(), *self.outsiders]:
            with contextlib.suppress(OSError):
                node.kill()
        _open.discard(self)

    def stop(self, names: Iterable[str] | None = None) -> dict[str, int]:
        """SIGTERM to these nodes (all that run) at once; their exit codes."""
        chosen = [self.nodes[name] for name in (self.nodes if names is None else names)]
        running = [node for node in chosen if node.is_running]
        for node in running:
            node.terminate()
        return {node.name: node.wait_ended() for node in running}

    # -- who is there -----------------------------------------------------------------------------------

    def node(self, name: str) -> ClusterNode:
        return self.nodes[name]

    def names(self, kind: str | None = None, *, up: bool = False) -> list[str]:
        """Names of a kind, perhaps only of those that run and are not paused."""
        return [
            name
            for name, node in self.nodes.items()
            if (kind is None or node.kind == kind) and (not up or node.is_expected_up)
        ]

    def add(self, name: str, **changes: Any) -> ClusterNode:
        """One more node, of the kind its first letter says, not yet started; ``changes`` go into its Blueprint."""
        self.nodes[name] = self._like(name, changes)
        return self.nodes[name]

    def outsider(self, name: str, **changes: Any) -> ClusterNode:
        """As `add`, but the cluster does not expect it to join; it ends with the cluster."""
        changes = {"folder": self.folder / f"outsider-{len(self.outsiders)}-{name}", **changes}
        self.outsiders.append(self._like(name, changes))
        return self.outsiders[-1]

    def _like(self, name: str, changes: Mapping[str, Any]) -> ClusterNode:
        model = next(node for node in self.nodes.values() if node.kind == _KINDS[name[0]]).blueprint
        own = {"name": name, "folder": self.folder / name, "addresses": self.places(name)}
        return ClusterNode(dataclasses.replace(model, **{**own, **changes}))

    def view(self, name: str, seconds: float = 5.0) -> View | None:
        """What this node says of the cluster; None when it does not say."""
        reply = self.nodes[name].ask("GET", CLUSTER_PATH, seconds=seconds)
        return View.of(reply.json) if reply.status == 200 else None

    def best_view(self, without: Iterable[str] = ()) -> View:
        """The view with the newest Placement among nodes that are up."""
        left_out = set(without)
        views = [self.view(name) for name in self.names(up=True) if name not in left_out]
        known = [view for view in views if view is not None]
        assert known, f"no node answers {CLUSTER_PATH}\n{self.tails()}"
        return max(known, key=lambda view: view.placement)

    def owners(self, without: Iterable[str] = ()) -> dict[int, str]:
        """Shard -> owner, by the newest Placement that any live node knows ("" for none)."""
        return dict(self.best_view(without).owners)

    def owner(self, without: Iterable[str] = ()) -> str:
        """A live ingest node that owns the most shards."""
        held = list(self.owners(without).values())
        names = [name for name in self.names("ingest", up=True) if name in held]
        assert names, f"nobody owns a shard: {held}\n{self.tails()}"
        return max(names, key=held.count)

    def wait(self, condition: Callable[[], str], what: str, seconds: float = SETTLE_SECONDS_MAX) -> float:
        """Poll until ``condition`` answers "" (nothing is missing); seconds waited, or an AssertionError."""
        begun = time.monotonic()
        while True:
            missing = condition()
            if not missing:
                return time.monotonic() - begun
            assert time.monotonic() - begun < seconds, f"not in {seconds:.0f} s: {what}: {missing}\n{self.tails()}"
            time.sleep(POLL_SECONDS)

    def wait_settled(self, seconds: float = SETTLE_SECONDS_MAX) -> float:
        """Wait until all live nodes are ready and agree who is there and who owns what."""
        return self.wait(self.unsettled, "the cluster settles", seconds)

    def unsettled(self) -> str:
        """What is missing to a settled cluster; "" when nothing is."""
        up = self.names(up=True)
        views: dict[str, View] = {}
        for name in up:
            if self.nodes[name].ask("GET", "/health/ready", seconds=5).status != 200:
                return f"{name} is not ready"
            view = self.view(name)
            if view is None:
                return f"{name} does not answer {CLUSTER_PATH}"
            views[name] = view
        if len({view.placement for view in views.values()}) > 1:
            return f"placements differ: { {name: view.placement for name, view in views.items()} }"
        return next(filter(None, (_unsettled(name, view, self, up) for name, view in views.items())), "")

    # -- reading and writing ----------------------------------------------------------------------------

    def write(
        self, gateway: str, lines: str | bytes, database: str = "db", seconds: float = 30.0, **parameters: str
    ) -> Reply:
        """Line protocol through this gateway, and whatever it answers."""
        body = lines.encode() if isinstance(lines, str) else lines
        return self.nodes[gateway].ask("POST", write_path(database, **parameters), body, seconds=seconds)

    def query(self, gateway: str, statement: str, database: str = "db", seconds: float = 60.0) -> list[dict[str, Any]]:
        """Rows of a statement through this gateway; anything but 200 is an AssertionError."""
        reply = self.nodes[gateway].ask("GET", query_path(statement, database), seconds=seconds)
        assert reply.status == 200, (gateway, statement, reply.status, reply.text[:800])
        rows: list[dict[str, Any]] = reply.json
        return rows

    def any_gateway(self) -> str:
        """A gateway that is up."""
        return self.names("gateway", up=True)[0]

    # -- what they say ----------------------------------------------------------------------------------

    def lines(self) -> Iterator[dict[str, Any]]:
        """All log lines of all nodes, of all their starts."""
        for node in self.nodes.values():
            yield from node.lines(whole=True)

    def alarms(self, expected: Iterable[str] = ()) -> Sequence[Mapping[str, Any]]:
        """Lines of level warning and above that `tests.harness.logscan` and ``expected`` do not allow."""
        return alarms(self.lines(), expected)

    def tails(self) -> str:
        """The end of every node's log, for a failure's message."""
        return "\n".join(f"--- {node.name} ({node.kind})\n{node.tail()}" for node in self.nodes.values())


def _unsettled(name: str, view: View, cluster: Cluster, up: Sequence[str]) -> str:
    """What is missing in one node's view."""
    ingest = cluster.names("ingest", up=True)
    if view.controller not in ingest:
        return f"{name} says that the controller is {view.controller!r}"
    strange = {shard: owner for shard, owner in view.owners.items() if owner not in ingest}
    if strange or not view.owners:
        return f"{name} says that shards are owned by {strange or 'nobody'}"
    for each in cluster.nodes:
        state = view.states.get(each, "unknown")
        if (each in up) != (state == "alive"):
            return f"{name} says that {each} is {state}"
    return ""


def _text(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


def _odd(count: int) -> int:
    """The most voters among that many nodes: 1, 3 or 5."""
    return max(voters for voters in (1, 3, 5) if voters <= max(count, 1))
