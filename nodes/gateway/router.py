"""Which handler serves a method and a path: a radix tree over path segments, with a table for fixed paths.

Built once when the gateway starts, read for every request by `nodes.gateway.app`.
Patterns: ``/a/b`` is fixed, ``{name}`` takes one segment, ``{name:path}`` takes the rest of the path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")
NO_PARAMETERS: Final[Mapping[str, str]] = {}


@dataclass(slots=True)
class Leaf(Generic[T]):
    """The methods of one pattern. ``allowed`` is the Allow header's value."""

    pattern: str
    methods: dict[str, T] = field(default_factory=dict)
    allowed: str = ""

    def add(self, method: str, value: T) -> None:
        if method in self.methods:
            raise ValueError(f"two routes for {method} {self.pattern}")
        self.methods[method] = value
        self.allowed = ", ".join(sorted({*self.methods, *(["HEAD"] if "GET" in self.methods else []), "OPTIONS"}))

    def find(self, method: str) -> T | None:
        """The value for a method; HEAD falls back to GET."""
        return self.methods.get(method) or (self.methods.get("GET") if method == "HEAD" else None)


@dataclass(slots=True)
class _Node(Generic[T]):
    """A run of fixed segments joined by ``/`` (the compressed edge into it), and what follows."""

    edge: tuple[str, ...] = ()
    leaf: Leaf[T] | None = None
    fixed: dict[str, _Node[T]] = field(default_factory=dict)
    parameter: tuple[str, _Node[T]] | None = None
    rest: tuple[str, Leaf[T]] | None = None


class Router(Generic[T]):
    """Patterns to values. Fixed segments win over parameters, parameters over the rest."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._plain: dict[str, Leaf[T]] = {}

    def add(self, method: str, pattern: str, value: T) -> None:
        """Add a route. ValueError if it is there already or the pattern is malformed."""
        if not pattern.startswith("/"):
            raise ValueError(f"a pattern starts with /: {pattern!r}")
        if "{" not in pattern:
            self._plain.setdefault(pattern, Leaf(pattern)).add(method, value)
            return
        self._leaf(tuple(pattern[1:].split("/")), pattern).add(method, value)

    def find(self, path: str) -> tuple[Leaf[T], Mapping[str, str]] | None:
        """The leaf for a path and the values of its parameters; None if no pattern matches."""
        leaf = self._plain.get(path)
        if leaf is not None:
            return leaf, NO_PARAMETERS
        parameters: dict[str, str] = {}
        found = _search(self._root, tuple(path[1:].split("/")), 0, parameters)
        return None if found is None else (found, parameters)

    def _leaf(self, segments: tuple[str, ...], pattern: str) -> Leaf[T]:
        node, at = self._root, 0
        while at < len(segments):
            segment = segments[at]
            if not segment.startswith("{"):
                run = _fixed_run(segments, at)
                node = _descend(node, run)
                at += len(run)
                continue
            name, _, kind = segment.strip("{}").partition(":")
            if kind == "path":
                if at != len(segments) - 1:
                    raise ValueError(f"{segment} must stand last in {pattern!r}")
                node.rest = node.rest or (name, Leaf(pattern))
                return node.rest[1]
            node.parameter = node.parameter or (name, _Node())
            if node.parameter[0] != name:
                raise ValueError(f"{pattern!r} names a segment {name!r} that is {node.parameter[0]!r} elsewhere")
            node, at = node.parameter[1], at + 1
        node.leaf = node.leaf or Leaf(pattern)
        return node.leaf


def _fixed_run(segments: tuple[str, ...], at: int) -> tuple[str, ...]:
    end = at
    while end < len(segments) and not segments[end].startswith("{"):
        end += 1
    return segments[at:end]


def _descend(node: _Node[T], run: tuple[str, ...]) -> _Node[T]:
    """The node at the end of ``run``, splitting compressed edges where they part."""
    child = node.fixed.get(run[0])
    if child is None:
        child = node.fixed[run[0]] = _Node(edge=run)
        return child
    shared = _shared(child.edge, run)
    if shared < len(child.edge):
        middle: _Node[T] = _Node(edge=child.edge[:shared], fixed={child.edge[shared]: child})
        child.edge = child.edge[shared:]
        node.fixed[run[0]] = child = middle
    return child if shared == len(run) else _descend(child, run[shared:])


def _shared(left: tuple[str, ...], right: tuple[str, ...]) -> int:
    for at, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return at
    return min(len(left), len(right))


def _search(node: _Node[T], segments: tuple[str, ...], at: int, parameters: dict[str, str]) -> Leaf[T] | None:
    if at == len(segments):
        return node.leaf
    child = node.fixed.get(segments[at])
    if child is not None and segments[at : at + len(child.edge)] == child.edge:
        found = _search(child, segments, at + len(child.edge), parameters)
        if found is not None:
            return found
    if node.parameter is not None and segments[at]:
        found = _search(node.parameter[1], segments, at + 1, parameters)
        if found is not None:
            parameters[node.parameter[0]] = segments[at]
            return found
    if node.rest is not None:
        parameters[node.rest[0]] = "/".join(segments[at:])
        return node.rest[1]
    return None
