"""Namespaces: nodes reach each other and the driver, cuts are real in each direction, and nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from tests.harness.netns import NetnsNetwork, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

REASON: Final = unavailable()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "namespaces work here")

SEND: Final = """
import socket, sys
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.settimeout(0.05)
answered = 0
for _ in range(int(sys.argv[2])):
    link.sendto(b"x", (sys.argv[1], 7946))
    try:
        answered += link.recv(10) == b"x"
    except TimeoutError:
        pass
print(answered)
"""
ECHO: Final = """
import socket, sys
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.bind((sys.argv[1], 7946))
print("ready", flush=True)
while True:
    data, client = link.recvfrom(10)
    link.sendto(data, client)
"""


@pytest.fixture
def network() -> Iterator[NetnsNetwork]:
    with NetnsNetwork() as made:
        echoes = []
        try:
            for name in ("a", "b"):
                command = [*made.prefix(name), sys.executable, "-c", ECHO, made.host(name)]
                echo = subprocess.Popen(command, stdout=subprocess.PIPE)
                assert echo.stdout is not None
                assert echo.stdout.readline() == b"ready\n"
                echoes.append(echo)
            made.host("c")
            yield made
        finally:
            for echo in echoes:
                echo.kill()
                echo.communicate()


def answered(network: NetnsNetwork, sender: str, receiver: str, count: int = 5) -> int:
    """How many datagrams of ``count`` were answered; sender "" is the driver."""
    prefix = network.prefix(sender) if sender else ()
    command = [*prefix, sys.executable, "-c", SEND, network.host(receiver), str(count)]
    return int(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


def test_a_cut_is_real_counted_and_healed(network: NetnsNetwork) -> None:
    assert answered(network, "c", "a") == 5
    network.cut("a")
    assert answered(network, "c", "a") == 0
    assert answered(network, "", "a") == 5, "the driver is never cut off"
    assert answered(network, "c", "b") == 5
    assert network.dropped("a") >= 5
    assert network.heal() >= 5
    assert answered(network, "c", "a") == 5


@pytest.mark.parametrize("way", ["in", "out"])
def test_one_way(network: NetnsNetwork, way: str) -> None:
    network.cut("a", ["b"], way=way)
    assert answered(network, "b", "a", 2) == 0
    assert answered(network, "c", "a", 2) == 2
    assert network.heal("a") >= 2


def test_losses_are_random(network: NetnsNetwork) -> None:
    network.lose("a", 0.5)
    assert 3 <= answered(network, "c", "a", 40) <= 37
    assert network.heal() >= 3


def test_nothing_is_left_behind() -> None:
    with NetnsNetwork() as network:
        network.host("a")
        bridge = network._bridge
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, check=True, text=True).stdout
    assert bridge not in listed
