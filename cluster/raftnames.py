"""Addresses of the voters' hosts, looked up in a thread of its own, and whether a port refuses. For `cluster.raft`.

A look-up may take seconds where a dead host's name is no longer known, and a tick of Raft must not wait for it:
the survivors would lose their leader too.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from typing import TYPE_CHECKING, Final

from cluster.errors import ClusterMisconfigured

if TYPE_CHECKING:
    from collections.abc import Iterable

log = logging.getLogger(__name__)

KNOWN_SECONDS: Final = 5.0
UNKNOWN_SECONDS: Final = 1.0
"""Looked up again after these: a container comes back under another address."""


class Resolver:
    """``find`` answers at once, with the newest that is known. ``start`` and ``stop`` once."""

    def __init__(self, addresses: Iterable[str]) -> None:
        hosts = {address.rpartition(":")[0] for address in addresses}
        self._found = {host: host.strip("[]") for host in hosts if _is_literal(host.strip("[]"))}
        self._named = sorted(hosts - self._found.keys())
        self._stopping = threading.Event()

    def start(self) -> None:
        if self._named:
            threading.Thread(target=self._run, name="raft-names", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def find(self, host: str) -> str | None:
        return self._found.get(host)

    def _run(self) -> None:
        while not self._stopping.is_set():
            for host in self._named:
                self._look_up(host)
            self._stopping.wait(KNOWN_SECONDS if self._found.keys() >= set(self._named) else UNKNOWN_SECONDS)

    def _look_up(self, host: str) -> None:
        try:
            self._found[host] = _address_of(host)
        except OSError as error:
            log.debug("no address for %s: %s", host, error)


def literal(host: str) -> str:
    """The address to listen on. Raises ClusterMisconfigured."""
    try:
        return _address_of(host.strip("[]"))
    except OSError as error:
        raise ClusterMisconfigured(f"no address to listen on for Raft: {host!r}: {error}") from error


def _address_of(host: str) -> str:
    """IPv4 if there is one. Raises OSError."""
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return str(min(answers, key=lambda answer: answer[0] != socket.AF_INET)[4][0])


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def refuses(ip: str | None, port: int, seconds: float) -> bool:
    """A process that is gone refuses at once; a host that is gone says nothing. Blocks so long at most."""
    if ip is None:
        return False
    try:
        socket.create_connection((ip, port), timeout=seconds).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
