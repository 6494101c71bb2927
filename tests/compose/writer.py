"""A client that writes one row after another through both gateways and remembers what was acknowledged."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Self

from tests.compose.stack import GATEWAYS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.compose.stack import Stack

EPOCH_NS: Final = 1_767_225_600_000_000_000
SERIES: Final = 16
"""Rows of many series, so that every shard gets some."""
ATTEMPT_SECONDS: Final = 20.0
JOIN_SECONDS: Final = 60.0


class Writer:
    """Runs in a thread while entered. A row that was not acknowledged is sent again, through the other gateway."""

    def __init__(self, stack: Stack, table: str, gateways: Sequence[str] = GATEWAYS) -> None:
        self.table = table
        self.acknowledged: set[int] = set()
        self.sent = 0
        self.refusals: list[str] = []
        self.longest_seconds = 0.0
        """The longest time between two acknowledgements."""
        self._stack = stack
        self._gateways = gateways
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"writer of {table}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join(JOIN_SECONDS)
        assert not self._thread.is_alive(), "a write took too long"

    def wait_for(self, count: int, seconds: float = 90.0) -> None:
        """Return when this many more rows are acknowledged."""
        wanted = len(self.acknowledged) + count

        def missing() -> str:
            now = len(self.acknowledged)
            return "" if now >= wanted else f"{now} of {wanted} rows; last refusals {self.refusals[-3:]}"

        self._stack.wait(missing, f"{count} more rows are acknowledged", seconds)

    def _run(self) -> None:
        last = time.monotonic()
        attempt = 0
        while not self._ended.is_set():
            n = self.sent
            line = f"{self.table},s=s{n % SERIES} n={n}i {EPOCH_NS + n}"
            reply = self._stack.write(self._gateways[attempt % len(self._gateways)], line, seconds=ATTEMPT_SECONDS)
            attempt += 1
            if not reply.is_ok:
                self.refusals.append(f"{reply.status} {reply.text[:200]}")
                self._ended.wait(0.05)
                continue
            self.acknowledged.add(n)
            self.sent = n + 1
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - last)
            last = time.monotonic()


def check(stack: Stack, writer: Writer, gateways: Sequence[str] = GATEWAYS) -> None:
    """Every acknowledged row is there once, through each gateway; nothing is there that was never sent."""
    assert writer.acknowledged, writer.refusals[-3:]
    for gateway in gateways:
        before = set(writer.acknowledged)  # it goes on writing
        found = [int(row["n"]) for row in stack.query(gateway, f"SELECT n FROM {writer.table}")]
        assert len(found) == len(set(found)), f"{len(found) - len(set(found))} rows twice"
        lost = before - set(found)
        assert not lost, f"{len(lost)} acknowledged rows are lost, e.g. {sorted(lost)[:10]}"
        assert set(found) <= set(range(writer.sent + 1)), "rows that were never sent"
