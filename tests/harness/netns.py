"""Each node in a Linux network namespace of its own, on one bridge, with cuts and losses by iptables.

Needs root, ``ip`` and ``iptables``; `unavailable` says what is missing, so that tests skip with a reason. The driver
sits on the bridge too and is never cut off: what it sees of a node that is cut off is what the node itself believes.
A cut counts the packets it has dropped (`dropped`), so a run can prove that its faults were real.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PORTS: Final = {"http": 8181, "grpc": 50051, "gossip": 7946, "raft": 7947}
DRIVER: Final = 254
_COUNTED: Final = re.compile(r"^\s*(\d+)\s+\d+\s+DROP.*?\s(\S+)\s+0\.0\.0\.0/0", re.MULTILINE)
"""Packets and source of a rule, as ``iptables -nvxL`` lists it."""


def unavailable() -> str:
    """Why namespaces cannot be used here; "" if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "iptables") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} missing (.ci/packages installs them)"
    try:
        with NetnsNetwork() as network:
            network.host("first")
            network.host("second")
            network.cut("first")
            network.heal()
    except RuntimeError as error:
        return str(error)
    return ""


class NetnsNetwork:
    """A bridge 10.99.X.0/24 for any number of nodes. Entered before the cluster, left after it."""

    def __init__(self, number: int | None = None) -> None:
        self._number = random.SystemRandom().randrange(1, 255) if number is None else number
        self._bridge = f"rb{self._number}"
        self._hosts: dict[str, int] = {}
        self._rules: list[tuple[str, str, str, tuple[str, ...]]] = []

    def __enter__(self) -> Self:
        try:
            _ip("netns", "add", self._bridge)
            self._in(self._bridge, "ip", "link", "add", "br0", "type", "bridge")
            self._in(self._bridge, "ip", "link", "set", "br0", "up")
            _ip("link", "add", f"rd{self._number}", "type", "veth", "peer", "name", f"rp{self._number}")
            _ip("link", "set", f"rp{self._number}", "netns", self._bridge)
            self._in(self._bridge, "ip", "link", "set", f"rp{self._number}", "master", "br0", "up")
            _ip("addr", "add", f"{self._address(DRIVER)}/24", "dev", f"rd{self._number}")
            _ip("link", "set", f"rd{self._number}", "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove every namespace and the driver's link; what is gone already is no error."""
        for host in self._hosts.values():
            with contextlib.suppress(RuntimeError):
                _ip("netns", "del", self._space(host))
        self._hosts.clear()
        self._rules.clear()
        for command in (("link", "del", f"rd{self._number}"), ("netns", "del", self._bridge)):
            with contextlib.suppress(RuntimeError):
                _ip(*command)

    def _address(self, host: int) -> str:
        return f"10.99.{self._number}.{host}"

    def _space(self, host: int) -> str:
        return f"rn{self._number}x{host}"

    def _in(self, space: str, *command: str) -> str:
        return _run("ip", "netns", "exec", space, *command)

    # -- a Network --------------------------------------------------------------------------------------

    def host(self, name: str) -> str:
        """The node's address; its namespace is made when it is first asked for."""
        if name not in self._hosts:
            host = len(self._hosts) + 1
            assert host < DRIVER
            self._hosts[name] = host
            self._add(host)
        return self._address(self._hosts[name])

    def _add(self, host: int) -> None:
        space, inner, outer = self._space(host), f"v{host}", f"b{host}"
        _ip("netns", "add", space)
        self._in(self._bridge, "ip", "link", "add", inner, "type", "veth", "peer", "name", outer)
        self._in(self._bridge, "ip", "link", "set", inner, "netns", space)
        self._in(self._bridge, "ip", "link", "set", outer, "master", "br0", "up")
        self._in(space, "ip", "addr", "add", f"{self._address(host)}/24", "dev", inner)
        self._in(space, "ip", "link", "set", inner, "up")
        self._in(space, "ip", "link", "set", "lo", "up")

    def port(self, name: str, door: str) -> int:
        return PORTS[door]

    def prefix(self, name: str) -> Sequence[str]:
        self.host(name)
        return ("ip", "netns", "exec", self._space(self._hosts[name]))

    # -- faults -----------------------------------------------------------------------------------------

    def cut(self, name: str, others: Iterable[str] | None = None, *, way: str = "both") -> None:
        """Drop what goes ``in``, ``out`` or ``both`` between this node and the others (all)."""
        assert way in ("in", "out", "both")
        for other in [other for other in (list(self._hosts) if others is None else others) if other != name]:
            if way != "out":
                self._drop(name, name, other)
            if way != "in":
                self._drop(name, other, name)

    def lose(self, name: str, share: float) -> None:
        """Drop this share of what passes between this node and the others, at random."""
        lossy = ("-m", "statistic", "--mode", "random", "--probability", f"{share:.3f}")
        for other in [other for other in self._hosts if other != name]:
            self._drop(name, name, other, *lossy)
            self._drop(name, other, name, *lossy)

    def _drop(self, about: str, receiver: str, sender: str, *more: str) -> None:
        """What is dropped is dropped where it arrives: a sender that is told of a drop would know of it."""
        rule = ("INPUT", "-s", self.host(sender), *more, "-j", "DROP")
        self.host(receiver)
        self._iptables(receiver, "-A", *rule)
        self._rules.append((about, receiver, sender, rule))

    def heal(self, name: str | None = None) -> int:
        """Take away the rules about one node, or all; packets that they had dropped."""
        dropped = sum(self.dropped(each) for each in ([*self._hosts] if name is None else [name]))
        kept = []
        for about, receiver, sender, rule in self._rules:
            if name is None or about == name:
                self._iptables(receiver, "-D", *rule)
            else:
                kept.append((about, receiver, sender, rule))
        self._rules = kept
        return dropped

    def dropped(self, name: str) -> int:
        """Packets that the rules about this node have dropped so far."""
        wanted = {(receiver, self.host(sender)) for about, receiver, sender, _ in self._rules if about == name}
        listings = {receiver: self._iptables(receiver, "-nvxL", "INPUT") for receiver, _ in wanted}
        return sum(
            int(count)
            for receiver, listing in listings.items()
            for count, source in _COUNTED.findall(listing)
            if (receiver, source) in wanted
        )

    def _iptables(self, name: str, *arguments: str) -> str:
        return self._in(self._space(self._hosts[name]), "iptables", "-w", *arguments)


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    """Its output. Raises RuntimeError with what it said when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
