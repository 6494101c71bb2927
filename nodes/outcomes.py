"""Several outcomes of one request as one: what may stand must not be called failed (LOG L6, L17).

Used by every Backend that sends one write to several shards.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from storage.errors import OutcomeUnknown, StorageError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from typing import Any


async def all_or_worst(work: Sequence[Coroutine[Any, Any, object]]) -> None:
    """Run all to their end, then raise the error that says most: "unknown" before all others."""
    if len(work) == 1:
        await work[0]
        return
    results = await asyncio.gather(*work, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise worst(errors)


def worst(errors: Sequence[BaseException]) -> BaseException:
    """The first "unknown", else one that is not only about some tables, else one that names all of these."""
    for error in errors:
        if _is_unknown(error):
            return error
    named: set[int] = set()
    for error in errors:
        if not isinstance(error, StorageError) or not error.tables:
            return error
        named |= error.tables
    assert isinstance(errors[0], StorageError)
    errors[0].tables = frozenset(named)
    return errors[0]


def _is_unknown(error: BaseException) -> bool:
    return getattr(error, "code", "") == OutcomeUnknown.code
