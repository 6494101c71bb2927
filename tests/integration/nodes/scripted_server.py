"""A real HTTP server whose answers a test decides: it keeps what was written and misbehaves as it is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Script:
    """What the server does. ``refusals`` are answered to the next writes, one each: (status, headers, body)."""

    refusals: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    body_bytes_max: int = 1 << 20
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    lost_answers: set[int] = field(default_factory=set)
    """Numbers of write requests (from 1) that take effect and whose answer is lost."""


class ScriptedServer:
    """Runs in its own thread and loop while entered; a line with the word ``bad`` is rejected."""

    def __init__(self) -> None:
        self.script = Script()
        self.written: list[bytes] = []
        self.requests: list[dict[str, Any]] = []
        self.at_once = 0
        self.at_once_max = 0
        self.url = ""

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/api/v3/write_lp", self._write)
        app.router.add_post("/api/v3/query_sql", self._query)
        app.router.add_get("/{path:.*}", self._get)
        runner = web.AppRunner(app, shutdown_timeout=0.5)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _write(self, request: web.Request) -> web.StreamResponse:
        self.at_once += 1
        self.at_once_max = max(self.at_once, self.at_once_max)
        try:
            return await self._answer_write(request)
        finally:
            self.at_once -= 1

    async def _answer_write(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append({"bytes": len(body), **request.query})
        await asyncio.sleep(0.01)
        if len(self.requests) in self.script.lost_answers and request.transport is not None:
            request.transport.abort()
        if self.script.refusals:
            status, headers, text = self.script.refusals.pop(0)
            return web.Response(status=status, headers=headers, text=text)
        if len(body) > self.script.body_bytes_max:
            return web.Response(status=413, text="max request size exceeded")
        return self._take(body)

    def _take(self, body: bytes) -> web.Response:
        lines = body.splitlines(keepends=True)
        self.written.extend(line for line in lines if b"bad" not in line)
        errors = [
            {"error_message": "No fields were provided", "line_number": number, "original_line": line.decode()[:20]}
            for number, line in enumerate(lines, 1)
            if b"bad" in line
        ]
        if not errors:
            return web.Response(status=204)
        return web.json_response(
            {"error": "partial write of line protocol occurred", "data": errors[:1024]}, status=400
        )

    async def _query(self, request: web.Request) -> web.StreamResponse:
        wanted = await request.json()
        self.requests.append(wanted)
        return self._scripted(wanted["q"])

    async def _get(self, request: web.Request) -> web.StreamResponse:
        return self._scripted(request.path)

    def _scripted(self, key: str) -> web.Response:
        status, text = self.script.answers.get(key, (404, json.dumps({"error": f"no answer is scripted for {key}"})))
        return web.Response(status=status, text=text)
