"""A process with the real node, lock file, logs and HTTP server over a backend that only waits.

``python -m tests.integration.nodes.placeholder_node DATA [key=value...]``: drives what a real store does rarely: a
long replay, a failed fsync, a fenced Log, a slow checkpoint. Prints ``checkpoint`` and ``closed`` when they happen.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, NoReturn, Self

from engine.errors import NoSuchQuery
from nodes import logs
from nodes.gateway.assembly import open_gateway
from nodes.node import NodeParts, Ready, run_node
from nodes.settings import load
from nodes.status import BackendStatus
from storage import errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nodes.backend import Batch, CatalogView, Change, Principal, QueryRequest, QueryResult
    from nodes.node import NodeContext
    from nodes.status import QueryStatus


class EmptyCatalog:
    revision = 1

    @property
    def tables_by_id(self) -> Mapping[int, Any]:
        return {}

    def database(self, name: str) -> None:
        return None

    def table(self, database: str, name: str) -> None:
        return None

    def databases(self, *, deleted: bool = False) -> list[Any]:
        return []

    def tables(self, database: str, *, deleted: bool = False) -> list[Any]:
        return []


class PlaceholderBackend:
    """Opens after ``replay`` seconds; ``fail`` names a StorageError that ends the node after ``after`` seconds."""

    store_id = "5f0c3c1e-0000-4000-8000-000000000001"

    def __init__(self, context: NodeContext, options: dict[str, str]) -> None:
        self._context = context
        self._options = options

    def _seconds(self, name: str) -> float:
        return float(self._options.get(name, "0"))

    async def __aenter__(self) -> Self:
        if "open_error" in self._options:
            raise getattr(errors, self._options["open_error"])("placeholder")
        await asyncio.sleep(self._seconds("replay"))
        if "fail" in self._options:
            error = getattr(errors, self._options["fail"])("placeholder failure")
            asyncio.get_running_loop().call_later(self._seconds("after"), self._context.fail, error)
        return self

    async def __aexit__(self, *_: object) -> None:
        say("closed")

    @property
    def catalog(self) -> CatalogView:
        return EmptyCatalog()

    async def refresh(self) -> CatalogView:
        return EmptyCatalog()

    async def write(self, batches: Sequence[Batch], principal: Principal, *, idempotency_key: str = "") -> None:
        raise errors.StoreUnavailable("placeholder")

    async def alter(self, changes: Sequence[Change], principal: Principal) -> CatalogView:
        say("altering")
        await asyncio.sleep(self._seconds("alter"))
        return EmptyCatalog()

    async def query(self, request: QueryRequest, principal: Principal) -> QueryResult:
        raise errors.NoSuchDatabase("placeholder")

    async def query_text(self, request: QueryRequest, format: str, principal: Principal) -> NoReturn:
        raise errors.NoSuchDatabase("placeholder")

    async def queries(self) -> Sequence[QueryStatus]:
        return []

    async def kill(self, query_id: str) -> QueryStatus:
        raise NoSuchQuery("placeholder")

    @property
    def listen(self) -> Mapping[str, str]:
        return {}

    async def drain(self) -> None:
        await self.checkpoint()

    async def compact(self) -> int:
        return 0

    async def checkpoint(self) -> None:
        await asyncio.sleep(self._seconds("checkpoint"))
        say("checkpoint")

    def status(self) -> BackendStatus:
        return BackendStatus(store_id=self.store_id, catalog_revision=1)


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


async def announce(ready: Ready) -> None:
    say(f"ready {ready.url}")


async def break_down(ready: Ready) -> None:
    raise errors.StoreFull("beside")


def main(data: str, *pairs: str) -> int:
    options = dict(pair.split("=", 1) for pair in pairs)
    flags = {"data.dir": data, "http.listen": options.get("listen", "127.0.0.1:0")}
    settings = load(None, {**flags, "node.drain_seconds": options.get("drain", "10")}, {}).settings
    logs.configure(settings.logs, "placeholder")
    parts = NodeParts(http=open_gateway, backend=lambda context: PlaceholderBackend(context, options))
    return run_node(settings, parts, [announce, *([break_down] if "beside_error" in options else [])])


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
