"""The statements that no query engine carries out: KILL QUERY, COPY, DROP MATERIALIZED VIEW, ALTER ... SET (retention).

Every Backend asks here before it plans a statement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nodes.copying import copy_if_asked
from nodes.localqueries import kill_if_asked
from nodes.retention import retention_if_asked
from nodes.views import drop_if_asked

if TYPE_CHECKING:
    from pathlib import Path

    from nodes.backend import Backend, Principal, QueryRequest
    from nodes.resulttext import ReadyResult
    from nodes.status import QueryControl


async def done_here(
    request: QueryRequest, backend: Backend, control: QueryControl, principal: Principal, copy_dir: Path | None
) -> ReadyResult | None:
    """Carry the statement out, if it is one of these; None if it is another one. Raises what they raise."""
    done = await kill_if_asked(request, control)
    done = done or await copy_if_asked(request, backend, principal, copy_dir)
    done = done or await drop_if_asked(request, backend, principal)
    return done or await retention_if_asked(request, backend, principal)
