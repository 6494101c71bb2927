"""Count the gRPC door's calls by method and status, and their durations, as go-grpc-middleware names them.

Handed to `nodes.grpcserver` with the service, by `nodes.gateway.grpcassembly`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nodes.metrics import Metrics


class CallMetrics:
    """The counters of one service. Its methods are few and known, so labels are bounded."""

    def __init__(self, metrics: Metrics, service: str) -> None:
        self._service = service
        self._handled = metrics.counter(
            "grpc_server_handled", "gRPC calls by method and status.", "grpc_service", "grpc_method", "grpc_code"
        )
        self._seconds = metrics.histogram(
            "grpc_server_handling_seconds", "Time from a call's begin to its end.", "grpc_service", "grpc_method"
        )

    def count(self, method: str, status: str, seconds: float) -> None:
        """One call is over."""
        self._handled.of(self._service, method, status).add()
        self._seconds.of(self._service, method).observe(seconds)
