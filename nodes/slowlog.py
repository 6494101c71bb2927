"""The slow-query log: one line for each query that took longer than a setting says, when it has ended.

`nodes.engineparts` hands it to the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import structlog

from nodes.localqueries import query_status

if TYPE_CHECKING:
    from engine.running import EndListener, QueryView
    from nodes.settings_model import Settings

LEFT_OUT = "(left out)"

log = structlog.get_logger(__name__)


def slow_log(settings: Settings) -> EndListener | None:
    """What the engine calls at each query's end; None when ``query.slow_log_seconds`` is 0."""
    limit, has_text = settings.query.slow_log_seconds, settings.query.slow_log_text == "on"
    if not limit:
        return None

    def ended(view: QueryView, outcome: str) -> None:
        if view.total_seconds < limit:
            return
        shown = msgspec.to_builtins(query_status(view, settings.node_name))
        if not has_text:
            shown["query_text"] = LEFT_OUT
        del shown["node"]  # every line has it
        log.info("a slow query", outcome=outcome, **shown)

    return ended
