"""The kinds of values a setting can have: how each is read, shown and explained.

Pure. A `Kind` reads what a flag, the environment (strings) or TOML (strings, numbers, booleans) holds and
raises ValueError with what is allowed. Driven by `nodes.settings`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nodes.units import parse_duration, parse_size, show_duration, show_size

if TYPE_CHECKING:
    from collections.abc import Callable

AUTO: Final = "auto"
NONE: Final = "none"
HIDDEN: Final = "********"
PORT_MAX: Final = 65535


class Secret:
    """A text that never prints: not by str, repr, format, nor in a traceback's locals."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one place that needs it."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"Secret({HIDDEN if self._text else ''!r})"

    def __str__(self) -> str:
        return HIDDEN if self._text else ""


@dataclass(frozen=True, slots=True)
class Address:
    """HOST:PORT to listen on. Port 0 lets the system choose; an IPv6 host is written in brackets."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can reach it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Kind:
    """``read`` raises ValueError; ``allowed`` completes "write ..."; ``show`` gives what ``read`` takes."""

    name: str
    allowed: str
    read: Callable[[Any], Any]
    show: Callable[[Any], str] = str


@dataclass(frozen=True, slots=True)
class Voter:
    """NAME=HOST:PORT: an ingest node that votes, and where its Raft listens."""

    name: str
    address: Address

    def __str__(self) -> str:
        return f"{self.name}={self.address}"


def setting(default: Any, kind: Kind, doc: str) -> Any:
    """Declare one field: its default as people would write it, its kind, and what it means."""
    return dataclasses.field(default=kind.read(default), metadata={"kind": kind, "doc": doc})


def parse_address(value: object) -> Address:
    """HOST:PORT; ``[::1]:8181`` for IPv6; ``:8181`` is refused, since "everywhere" should be written out."""
    host, colon, port = str(value).rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 host is written in brackets")
    if not colon or not host:
        raise ValueError("host or port is missing")
    if not port.isdigit() or int(port) > PORT_MAX:
        raise ValueError("the port is not a number up to 65535")
    return Address(host, int(port))


def _peer(value: object) -> Address:
    address = parse_address(value)
    if address.port == 0:
        raise ValueError("port 0 reaches nobody")
    return address


def _voter(value: object) -> Voter:
    name, equals, address = str(value).partition("=")
    if not equals or not name.strip():
        raise ValueError("the node's name is missing")
    return Voter(name.strip(), _peer(address.strip()))


def _size(value: object) -> int:
    return _whole(value) if isinstance(value, int) else parse_size(_string(value))


def _duration(value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value < 0:
            raise ValueError("negative")
        return float(value)
    return parse_duration(_string(value))


def _whole(value: object) -> int:
    if isinstance(value, bool):
        raise ValueError("not a number")
    if isinstance(value, int):
        number = value
    elif isinstance(value, str) and value.strip().lstrip("-").isdigit():
        number = int(value)
    else:
        raise ValueError("not a whole number")
    if number < 0:
        raise ValueError("negative")
    return number


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("not a number")
    number = float(value)
    if not 0 < number < 1:
        raise ValueError("out of range")
    return number


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


SIZE: Final = Kind("size", 'bytes, or a size such as "64 MiB"', _size, show_size)
DURATION: Final = Kind("duration", 'seconds, or a duration such as "30s", "5 min", "1h"', _duration, show_duration)
COUNT: Final = Kind("count", "a whole number, 0 or more", _whole)
SHARE: Final = Kind("share", "a number between 0 and 1, such as 0.4", _share, lambda share: f"{share:g}")
TEXT: Final = Kind("text", "a text", _string)
SECRET: Final = Kind("secret", "a text", lambda value: Secret(_string(value)))
ADDRESS: Final = Kind("address", "HOST:PORT, such as 127.0.0.1:8181", parse_address)
PEER: Final = Kind("peer", "HOST:PORT, such as 10.0.0.1:7946", _peer)
VOTER: Final = Kind("voter", "NAME=HOST:PORT, such as ingest-1=10.0.0.1:7947", _voter)


def at_least(kind: Kind, minimum: float) -> Kind:
    """The same kind with a smallest value."""

    def read(value: object) -> Any:
        parsed = kind.read(value)
        if parsed < minimum:
            raise ValueError("too small")
        return parsed

    allowed = f"{kind.allowed.removesuffix(', 0 or more')}, at least {kind.show(minimum)}"
    return dataclasses.replace(kind, allowed=allowed, read=read)


def optional(kind: Kind, word: str) -> Kind:
    """The same kind, where ``word`` ("auto", "none") stands for None."""

    def read(value: object) -> Any:
        if isinstance(value, str) and value.strip().lower() == word:
            return None
        return kind.read(value)

    def show(value: Any) -> str:
        return word if value is None else kind.show(value)

    return Kind(f"{kind.name} or {word}", f'{kind.allowed}, or "{word}"', read, show)


def list_of(kind: Kind) -> Kind:
    """Several of that kind as a tuple: separated by commas, or an array in TOML. "none" or nothing is the empty one."""

    def read(value: object) -> tuple[Any, ...]:
        if isinstance(value, list):
            return tuple(kind.read(_string(part).strip()) for part in value)
        text = _string(value).strip()
        return () if text.lower() in ("", NONE) else tuple(kind.read(part.strip()) for part in text.split(","))

    def show(values: tuple[Any, ...]) -> str:
        return ",".join(kind.show(value) for value in values) or NONE

    return Kind(f"list of {kind.name}", f'{kind.allowed}; several with commas between, or "{NONE}"', read, show)


def choice(*words: str) -> Kind:
    """One of these words."""

    def read(value: object) -> str:
        if not isinstance(value, str) or value.lower() not in words:
            raise ValueError("not one of them")
        return value.lower()

    listed = ", ".join(f'"{word}"' for word in words)
    return Kind(" / ".join(words), f"one of {listed}" if len(words) > 1 else listed, read)
