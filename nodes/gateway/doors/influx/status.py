"""What clients, balancers and operators ask: /ping, /health and its kinds, /metrics, the node's status."""

from __future__ import annotations

import os
import time
import uuid
from typing import TYPE_CHECKING, Final

import msgspec

from nodes.gateway.http import JSON_TYPE, TEXT_TYPE, Header, Request, Response
from nodes.metrics import CONTENT_TYPE
from nodes.status import Compacted

if TYPE_CHECKING:
    from nodes.gateway.doors.influx.answers import Answers
    from nodes.health import Health, HealthReport
    from nodes.metrics import Metrics
    from nodes.status import NodeControl

PRODUCT: Final = "Runnel"
INFLUX_VERSION: Final = "3.10.0"
"""The InfluxDB whose API this door speaks; clients choose their dialect by it."""
INFLUX_BUILD: Final = "Core"
RETRY_AFTER: Final[Header] = (b"retry-after", b"1")


def version_headers() -> list[Header]:
    """How InfluxDB says its version."""
    return [
        (b"x-influxdb-build", INFLUX_BUILD.encode("ascii")),
        (b"x-influxdb-version", INFLUX_VERSION.encode("ascii")),
    ]


class StatusDoor:
    """Handlers that need no Backend: they answer while the node starts."""

    def __init__(
        self, answers: Answers, health: Health, metrics: Metrics, control: NodeControl | None, revision: str
    ) -> None:
        self._answers = answers
        self._health = health
        self._metrics = metrics
        self._control = control
        self._ping = {
            "product_name": PRODUCT,
            "version": INFLUX_VERSION,
            "revision": revision,
            "process_id": str(uuid.uuid4()),
        }

    async def ping(self, _request: Request) -> Response:
        """GET, HEAD and POST /ping."""
        request_id = str(_uuid7()).encode("ascii")  # ordered by time, as 1.x's were
        ids = [(b"request-id", request_id), (b"x-request-id", request_id)]
        headers = self._answers.success(JSON_TYPE, *version_headers(), *ids)
        return Response(200, headers, msgspec.json.encode(self._ping))

    async def health(self, _request: Request) -> Response:
        """GET /health and /health/ready: send requests here or not."""
        report = self._health.report()
        return self._say(report, report.is_ready)

    async def live(self, _request: Request) -> Response:
        """GET /health/live: leave the process running or restart it."""
        report = self._health.report()
        return self._say(report, report.is_live)

    async def startup(self, _request: Request) -> Response:
        """GET /health/startup: it has been ready once."""
        report = self._health.report()
        return self._say(report, report.is_started)

    async def metrics(self, _request: Request) -> Response:
        """GET /metrics."""
        return self._answers.ok(self._metrics.text(), (b"content-type", CONTENT_TYPE))

    async def status(self, _request: Request) -> Response:
        """GET /api/runnel/status."""
        if self._control is None:
            return self._answers.error_json(404, {"error": "this server has no status"})
        return self._answers.json(self._control.status())

    async def checkpoint(self, _request: Request) -> Response:
        """POST /api/runnel/checkpoint: every shard and the Catalog, now; 204 when it is done."""
        if self._control is None:
            return self._answers.error_json(404, {"error": "this server has nothing to checkpoint"})
        await self._control.checkpoint()
        return self._answers.done

    async def compact(self, _request: Request) -> Response:
        """POST /api/runnel/compact: merge what is worth it, at full speed; answered when it is done."""
        if self._control is None:
            return self._answers.error_json(404, {"error": "this server has nothing to compact"})
        return self._answers.json(Compacted(merges=await self._control.compact()))

    def _say(self, report: HealthReport, is_good: bool) -> Response:
        if is_good:
            return self._answers.ok(b"OK", TEXT_TYPE)
        return self._answers.error_text(503, report.text, RETRY_AFTER)


def _uuid7() -> uuid.UUID:
    """A UUID of version 7 (RFC 9562): milliseconds since the epoch, then chance."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    return uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62)
