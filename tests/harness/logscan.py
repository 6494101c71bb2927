"""What the nodes of a cluster may complain of, and why; everything else of level warning and above is a finding.

Driven by `tests.harness.cluster.Cluster.alarms`. `ALWAYS` holds in any run; `UNDER_FAULTS` is for runs in which
processes are killed, paused or cut off on purpose. An entry without a reason is not allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ALARMING: Final = frozenset({"warning", "error", "critical"})

ALWAYS: Final[Mapping[str, str]] = {}

UNDER_FAULTS: Final[Mapping[str, str]] = {
    "no voter answers: not up, or wrong secret, or another voter list": "the other voters are down or cut off",
}


def alarms(lines: Iterable[Mapping[str, Any]], expected: Iterable[str] = ()) -> list[Mapping[str, Any]]:
    """Lines of level warning and above whose event is neither in `ALWAYS` nor in ``expected``."""
    allowed = {*ALWAYS, *expected}
    return [line for line in lines if line.get("level") in ALARMING and line.get("event") not in allowed]


def summary(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Alarms as short texts with how often each was seen, for a failure's message."""
    counted: dict[str, int] = {}
    for line in lines:
        text = f"{line.get('node', '?')}: {line.get('level')} {line.get('event')} {line.get('error', '')}"[:300]
        counted[text] = counted.get(text, 0) + 1
    return [f"{text} ({count} times)" if count > 1 else text for text, count in counted.items()]
