"""Count requests by method, route and status, and their durations, as InfluxDB 3 names them.

Children are looked up once for each route and status, so that a request costs two additions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nodes.metrics import Counter, Histogram, Metrics

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Others count as one: the label is the client's word."""


class AccessMetrics:
    """The counters of all routes of one gateway."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = metrics.counter(
            "http_requests", "HTTP requests by method, route and status.", "method", "path", "status"
        )
        self._durations = metrics.histogram(
            "http_request_duration_seconds", "Time from a request's head to its response's last byte.", "method", "path"
        )
        self._sent = metrics.counter("http_response_body_bytes", "Bytes of response bodies, compressed.", "path")
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram, Counter]] = {}

    def count(self, method: str, pattern: str, status: int, seconds: float, sent_bytes: int) -> None:
        """One request is over. ``pattern`` is the route's, never the client's path."""
        key = (method, pattern, status)
        parts = self._known.get(key)
        if parts is None:
            word = method if method in METHODS else "other"
            parts = self._known[(word, pattern, status)] = (
                self._requests.of(word, pattern, str(status)),
                self._durations.of(word, pattern),
                self._sent.of(pattern),
            )
        parts[0].value += 1
        parts[1].observe(seconds)
        parts[2].value += sent_bytes
