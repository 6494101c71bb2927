"""What is wrong with the settings of a cluster's node although each is right by itself.

Pure: looks at values, opens nothing. `nodes.cli.kinds` and `runnel config check --kind` drive it before anything is
opened.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from cluster.members import Kind
from nodes.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nodes.settings_kinds import Address
    from nodes.settings_model import Settings

VOTERS_ALLOWED: Final = (1, 3, 5)
"""Two or four survive no more failures than one or three, and more only slow every decision down."""
NODE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""Stands in gossip, in `raft.voters` and in the Placement."""
EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound


def check_cluster(settings: Settings, kind: Kind | None) -> None:
    """Raise SettingsError (exit code 78) with every problem; ``kind`` None is `runnel start`."""
    problems = cluster_problems(settings, kind)
    if problems:
        raise SettingsError(*problems)


def cluster_problems(settings: Settings, kind: Kind | None) -> list[str]:
    """One sentence for each: what is wrong, and what to write."""
    listens = _listens(settings, kind)
    problems = [*_exposed(settings, listens), *_tls(settings)]
    if kind is not None:
        problems += [*_identity(settings, kind), *_unreachable(settings, listens), *_voters(settings, kind)]
    return problems


def _listens(settings: Settings, kind: Kind | None) -> dict[str, Address]:
    """What other nodes reach on this one, by the setting's name."""
    if kind is None:
        return {} if settings.grpc.listen is None else {"grpc.listen": settings.grpc.listen}
    listens = {"grpc.listen": settings.grpc.address, "gossip.listen": settings.gossip.listen}
    if kind is Kind.INGEST and settings.raft.is_voter(settings.node_name):
        listens["raft.listen"] = settings.raft.listen
    return listens


def _exposed(settings: Settings, listens: dict[str, Address]) -> Iterator[str]:
    missing = [] if settings.cluster.secret_file else ["cluster.secret_file"]
    missing += [] if settings.tls.is_on else ["tls.ca, tls.cert and tls.key"]
    for name, address in listens.items():
        if missing and not address.is_loopback:
            yield (
                f"{name} = {address} can be reached from other machines, so nodes must prove who they are: give "
                f"{' and '.join(missing)} (`runnel cluster init` makes them), or listen on 127.0.0.1"
            )


def _tls(settings: Settings) -> Iterator[str]:
    tls = settings.tls
    given = {"tls.ca": tls.ca, "tls.cert": tls.cert, "tls.key": tls.key}
    missing = [name for name, path in given.items() if not path]
    if 0 < len(missing) < len(given):
        named = next(name for name, path in given.items() if path)
        yield f"{named} is given without {' and '.join(missing)}; TLS between nodes needs all three"


def _identity(settings: Settings, kind: Kind) -> Iterator[str]:
    if not settings.store.url:
        yield (
            f"store.url is missing: the nodes of a cluster share one store, so a `runnel {kind.value}` must be told "
            "where it is; give --store, a folder that all nodes see or s3://bucket/prefix"
        )
    if not NODE_NAME.fullmatch(settings.node_name):
        yield (
            f"node.name = {settings.node_name!r} cannot be a name in a cluster; use letters, digits, '.', '_' and "
            "'-', at most 63, first a letter or digit"
        )
    if not settings.cluster.name:
        yield "cluster.name is empty; every node of a cluster has the same name there"


def _unreachable(settings: Settings, listens: dict[str, Address]) -> Iterator[str]:
    for name, address in listens.items():
        if address.host in EVERYWHERE and not settings.cluster.advertise:
            yield f"{name} = {address} is no address for others; give the host they reach in cluster.advertise"
    if settings.cluster.advertise.count(":") == 1:
        yield f"cluster.advertise = {settings.cluster.advertise!r} has a port; write only the host"
    if settings.gossip.probe_timeout >= settings.gossip.probe_interval:
        yield "gossip.probe_timeout must be shorter than gossip.probe_interval, or others are never asked to try"


def _voters(settings: Settings, kind: Kind) -> Iterator[str]:
    voters, name = settings.raft.voters, settings.node_name
    if voters and len(voters) not in VOTERS_ALLOWED:
        yield f"raft.voters has {len(voters)} nodes; name 1, 3 or 5 of the ingest nodes"
    for word, values in (
        ("name", [voter.name for voter in voters]),
        ("address", [str(voter.address) for voter in voters]),
    ):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            yield f"raft.voters has the {word} {', '.join(twice)} more than once; each voter has its own"
    if kind is not Kind.INGEST and settings.raft.is_voter(name):
        yield f"raft.voters names {name}, which is a {kind.value} node; only ingest nodes vote"
    if kind is Kind.INGEST and not voters and not settings.cluster.join:
        yield "raft.voters and cluster.join are both empty: no controller would be found; give --voters or --join"
    own = next((voter.address for voter in voters if voter.name == name), None)
    if kind is Kind.INGEST and own is not None:
        yield from _own_vote(own, settings.raft.listen)


def _own_vote(own: Address, listen: Address) -> Iterator[str]:
    says = f"raft.voters says that others reach this node at {own}, and raft.listen is {listen}"
    if own.port != listen.port:
        yield f"{says}; make the ports the same"
    elif listen.is_loopback and not own.is_loopback:
        yield f"{says}, where only this machine gets; listen on an address that others reach"
