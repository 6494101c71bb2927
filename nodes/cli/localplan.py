"""Which processes make a cluster on one machine: their names, ports, settings and order. Pure.

`nodes.cli.localcluster` runs what is planned here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from cluster.members import Kind
from nodes.exitcodes import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

HOST: Final = "127.0.0.1"
PORTS_MAX: Final = 400
"""All but the gateways' HTTP ports come from so many numbers above the base port."""
INGEST_MAX: Final = 25
OTHERS_MAX: Final = 50
STATE_VERSION: Final = 1
PREFERENCES: Final = frozenset({"memory.budget", "logs.format"})
"""Settings in a node's file that the user's environment may override; the others say which node it is."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """How many of each kind, and where their ports begin."""

    ingest: int = 3
    gateways: int = 2
    queries: int = 2
    http_port: int = 8181
    base_port: int = 18181


class LocalNode(msgspec.Struct, frozen=True, kw_only=True):
    """One planned process and, while it runs, its pid; ``ticks`` is when it began, so that no other has its pid."""

    name: str
    kind: str
    http: int
    grpc: int
    gossip: int
    raft: int = 0
    pid: int = 0
    ticks: int = 0


class LocalState(msgspec.Struct, frozen=True, kw_only=True):
    """What cluster.json holds."""

    version: int = STATE_VERSION
    shape: Shape
    nodes: list[LocalNode]


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the files of a local cluster lie."""

    root: Path

    @property
    def state(self) -> Path:
        return self.root / "cluster.json"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def secret(self) -> Path:
        return self.root / "secret"

    @property
    def tls(self) -> Path:
        return self.root / "tls"

    def data(self, name: str) -> Path:
        return self.root / "nodes" / name

    def config(self, name: str) -> Path:
        return self.data(name) / "runnel.toml"

    def log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"


@dataclass(frozen=True, slots=True)
class Tls:
    """The files that `runnel cluster init` made for a node."""

    ca: str
    cert: str
    key: str


def plan(shape: Shape, is_free: Callable[[int], bool]) -> list[LocalNode]:
    """The nodes with their ports, ingest first. Raises CommandFailed when ports are taken."""
    fixed = [shape.http_port + at for at in range(shape.gateways)]
    for port in fixed:
        if not is_free(port):
            raise CommandFailed(
                f"port {port} is taken, and a gateway should serve HTTP there; stop what listens on it "
                "(another cluster, `runnel start`), or give other ports with --http-port"
            )
    spare = _spare(shape, fixed, is_free)
    nodes = [
        LocalNode(name=f"ingest-{at}", kind=Kind.INGEST.value, http=next(spare), **_inner(spare), raft=next(spare))
        for at in range(1, shape.ingest + 1)
    ]
    nodes += [
        LocalNode(name=f"gateway-{at}", kind=Kind.GATEWAY.value, http=port, **_inner(spare))
        for at, port in enumerate(fixed, 1)
    ]
    nodes += [
        LocalNode(name=f"query-{at}", kind=Kind.QUERY.value, http=next(spare), **_inner(spare))
        for at in range(1, shape.queries + 1)
    ]
    return nodes


def _spare(shape: Shape, fixed: Sequence[int], is_free: Callable[[int], bool]) -> Iterator[int]:
    for port in range(shape.base_port, shape.base_port + PORTS_MAX):
        if port not in fixed and is_free(port):
            yield port
    raise CommandFailed(f"too few of the ports from {shape.base_port} on are free; give others with --base-port")


def _inner(spare: Iterator[int]) -> dict[str, int]:
    return {"grpc": next(spare), "gossip": next(spare)}


def voters(nodes: Sequence[LocalNode]) -> list[str]:
    """NAME=HOST:PORT of the first 1, 3 or 5 ingest nodes."""
    ingest = [node for node in nodes if node.kind == Kind.INGEST.value]
    count = max(allowed for allowed in (1, 3, 5) if allowed <= max(len(ingest), 1))
    return [f"{node.name}={HOST}:{node.raft}" for node in ingest[:count]]


def seeds(nodes: Sequence[LocalNode]) -> list[str]:
    """Gossip addresses of the ingest nodes."""
    return [f"{HOST}:{node.gossip}" for node in nodes if node.kind == Kind.INGEST.value]


def settings_of(
    node: LocalNode, nodes: Sequence[LocalNode], folder: Folder, budget_bytes: int, tls: Tls | None
) -> dict[str, object]:
    """Every setting that this node's file gives, by name."""
    found: dict[str, object] = {
        "node.name": node.name,
        "data.dir": str(folder.data(node.name)),
        "store.url": str(folder.store),
        "http.listen": f"{HOST}:{node.http}",
        "grpc.listen": f"{HOST}:{node.grpc}",
        "gossip.listen": f"{HOST}:{node.gossip}",
        "cluster.join": seeds(nodes),
        "cluster.secret_file": str(folder.secret),
        "memory.budget": budget_bytes,
        "logs.format": "text",
    }
    if node.kind == Kind.INGEST.value:
        found |= {"raft.listen": f"{HOST}:{node.raft}", "raft.voters": voters(nodes)}
    if tls is not None:
        found |= {"tls.ca": tls.ca, "tls.cert": tls.cert, "tls.key": tls.key}
    return found


def toml(settings: dict[str, object]) -> str:
    """The settings as a TOML file. JSON's texts, numbers and arrays of texts are TOML's too."""
    sections: dict[str, list[str]] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, []).append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    parts = ["# Made by `runnel cluster up`, at every start of this node.\n"]
    parts += ["\n".join((f"\n[{section}]", *lines, "")) for section, lines in sections.items()]
    return "".join(parts)


def stop_order(nodes: Sequence[LocalNode]) -> list[list[LocalNode]]:
    """Who is stopped together: first those who ask, last and one by one those who own shards."""
    by_kind = {kind: [node for node in nodes if node.kind == kind.value] for kind in Kind}
    groups = [by_kind[Kind.QUERY], by_kind[Kind.GATEWAY], *([node] for node in by_kind[Kind.INGEST])]
    return [group for group in groups if group]
