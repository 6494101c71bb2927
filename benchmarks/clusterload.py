"""Load on a cluster while its nodes are killed, paused, cut off or restarted: threads that ask without a break.

Driven by `benchmarks.clusterparts`. A `Stream` does what a client behind a load balancer does: a gateway that refuses
the connection, or has closed a kept one, is left for the next one, and that is no error; any other answer than success
is. Times are monotonic seconds.
"""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from tests.harness.exchange import Connection, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ANSWER_SECONDS: Final = 30.0
END_SECONDS_MAX: Final = 60.0
ERRORS_KEPT: Final = 20

Ask = tuple[str, str, bytes | None]
"""Method, path and body."""


@dataclass(slots=True)
class Track:
    """What one stream saw: (begun, ended) of each success, errors, and how often it went to another gateway."""

    spans: list[tuple[float, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    moved: int = 0

    def longest_pause(self) -> float:
        """The longest time from one success to the next."""
        ends = [ended for _, ended in self.spans]
        return max((after - before for before, after in itertools.pairwise(ends)), default=0.0)

    def seconds_until_served(self, at: float) -> float | None:
        """From a moment to the end of the first success that began after it; None if there is none yet."""
        for begun, ended in self.spans:
            if begun >= at:
                return ended - at
        return None


class Stream:
    """Asks question after question over one connection, in a thread, from `__enter__` to `__exit__`."""

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        question: Callable[[int], Ask],
        pause_seconds: float = 0.0,
        seconds: float = ANSWER_SECONDS,
        first: int = 0,
    ) -> None:
        self.track = Track()
        self._links = [Connection(host, port, seconds) for host, port in addresses]
        self._at = first % len(self._links)
        self._question = question
        self._pause_seconds = pause_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join(END_SECONDS_MAX)
        for link in self._links:
            link.close()

    def _run(self) -> None:
        number = 0
        while not self._stopping.is_set():
            self._one(*self._question(number))
            number += 1
            if self._pause_seconds:
                self._stopping.wait(self._pause_seconds)

    def _one(self, method: str, path: str, body: bytes | None) -> None:
        begun = time.monotonic()
        reply = Reply(0, b"no gateway")
        for _ in range(2 * len(self._links)):
            reply = self._links[self._at].ask(method, path, body)
            if not (reply.is_unsent or reply.is_dropped):
                break
            self.track.moved += 1
            self._at = (self._at + 1) % len(self._links)
        if reply.is_ok:
            self.track.spans.append((begun, time.monotonic()))
        elif len(self.track.errors) < ERRORS_KEPT:
            self.track.errors.append(f"{reply.status} {reply.text[:200]}")
        else:
            self.track.errors.append("...")


def wait_served(track: Track, at: float, seconds_max: float) -> float:
    """Seconds from ``at`` until a question that was asked after it was answered. Raises TimeoutError."""
    deadline = time.monotonic() + seconds_max
    while time.monotonic() < deadline:
        found = track.seconds_until_served(at)
        if found is not None:
            return found
        time.sleep(0.005)
    raise TimeoutError(f"not served again within {seconds_max:.0f} s; errors: {track.errors[-3:]}")
