"""The gRPC server of a node: listens, checks who calls, maps errors, tells its health, and drains.

Services come in as `GrpcService`s, before it is entered. Public ones take every caller; the others only nodes of the
same cluster with a version that fits. Driven by the nodes' life cycles (``async with GrpcServer(...)``) and by tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

import grpc
import structlog
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from cluster.channels import (
    CLUSTER_KEY,
    KEEPALIVE_MS,
    KEEPALIVE_TIMEOUT_MS,
    MESSAGE_BYTES_MAX,
    VERSION_KEY,
)
from cluster.errors import ClusterDenied, PeerUnavailable
from nodes.exitcodes import PortTaken
from nodes.gateway.faults import BadRequest, BodySlow, NotReady, Overloaded
from nodes.rpcerrors import CODE_KEY, FAMILY_KEY, RETRIABLE_KEY, rpc_status, shortened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from cluster.tlsfiles import TlsSource

RPCS_MAX: Final = 1024
"""Calls at once, watches among them; one more is refused before anything of it is read."""
DRAIN_SECONDS_DEFAULT: Final = 30.0
POLL_SECONDS: Final = 0.02
SEND_SECONDS: Final = 1.0
"""For answers that handlers have given and that are on their way."""
IDENTITY_ONLY: Final = 1
"""Of compression algorithms: none. A small message could inflate to any size before its length is known."""
REQUEST_ID_KEY: Final = "runnel-request-id"
REQUEST_ID_CHARACTERS_MAX: Final = 128
STOPS: Final = "this node stops; try another one, or again"
HEALTH_WATCH: Final = "/grpc.health.v1.Health/Watch"
BROKEN: Final = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS})

OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),  # a taken port must be an error, not a share of its connections
    ("grpc.compression_enabled_algorithms_bitset", IDENTITY_ONLY),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
)

_REQUEST_ID: ContextVar[str] = ContextVar("request_id")
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GrpcService:
    """One service: its full name, who serves it, and the generated function that adds it to a server.

    ``endless`` names methods (``Watch``) whose streams end only when a side goes: a drain does not wait for them.
    ``receiving`` bounds the messages of a public service that are being received at once: gRPC holds each in memory
    before a handler sees it. ``observe`` is told of each call that is over: its method's name, its status's, seconds.
    """

    name: str
    servicer: Any
    register: Callable[[Any, Any], None]
    is_public: bool = False
    endless: frozenset[str] = frozenset()
    receiving: Receiving | None = None
    observe: Callable[[str, str, float], None] | None = None


class Receiving:
    """At most ``calls_max`` calls receive their message at once, each for ``seconds`` at most; others wait as long.

    A call with a stream of messages counts as long as it lasts, against a number of its own.
    """

    def __init__(self, calls_max: int, seconds: float) -> None:
        self._seconds = seconds
        self._calls = asyncio.Semaphore(calls_max)
        self._streams = asyncio.Semaphore(calls_max)

    async def message(self, requests: AsyncIterator[Any]) -> Any:
        """The one message of a call. Overloaded when its turn does not come, BodySlow when the message does not."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._calls.acquire()
        except TimeoutError:
            raise Overloaded("too many requests are being received; try again later") from None
        try:
            async with asyncio.timeout(self._seconds):
                message = await anext(requests, None)
        except TimeoutError:
            raise BodySlow from None
        finally:
            self._calls.release()
        if message is None:
            raise BadRequest("the call ended without its message")
        return message

    @contextlib.asynccontextmanager
    async def stream(self) -> AsyncIterator[None]:
        """A place for one stream; Overloaded when there is none."""
        if self._streams.locked():
            raise Overloaded("too many streams of writes are open; use fewer, or try again later")
        async with self._streams:
            yield


class GrpcServer:
    """Enter it to listen, leave it to end. ``port`` 0 takes a free one. ``tls`` None: plaintext.

    ``cluster`` and ``version`` are what callers of services that are not public must say.
    """

    def __init__(
        self,
        host: str,
        port: int,
        services: Sequence[GrpcService],
        *,
        cluster: str = "",
        version: str = "0.0.0",
        tls: TlsSource | None = None,
        require_client_certificate: bool = True,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        rpcs_max: int = RPCS_MAX,
    ) -> None:
        self._host, self._port = host, port
        self._services = services
        self._tls = tls
        self._require_client_certificate = require_client_certificate
        self._message_bytes_max = message_bytes_max
        self._rpcs_max = rpcs_max
        self._gate = _Gate(services, cluster, version)
        self._health: health_aio.HealthServicer
        self._server: aio.Server | None = None
        self._address: tuple[str, int] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: the bound port if 0 was asked for. RuntimeError before it is entered."""
        if self._address is None:
            raise RuntimeError("the gRPC server does not listen")
        return self._address

    @property
    def in_flight(self) -> int:
        """Calls under way that end by themselves."""
        return self._gate.in_flight

    async def set_serving(self, is_serving: bool) -> None:
        """What the health service says, of the server and of each public service. It begins with "not serving"."""
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *(service.name for service in self._services)):
            await self._health.set(name, status)

    async def __aenter__(self) -> Self:
        await asyncio.get_running_loop().run_in_executor(None, _probe, self._host, self._port)
        self._health = health_aio.HealthServicer()
        server = aio.server(
            interceptors=[self._gate],
            options=[*OPTIONS, ("grpc.max_receive_message_length", self._message_bytes_max)],
            maximum_concurrent_rpcs=self._rpcs_max,
        )
        for service in self._services:
            service.register(service.servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        public = [service.name for service in self._services if service.is_public]
        reflection.enable_server_reflection([*public, HEALTH_WATCH.split("/")[1], reflection.SERVICE_NAME], server)
        await self.set_serving(False)
        self._address = self._host, self._bind(server)
        await server.start()
        self._server = server
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.drain(0)

    async def drain(self, seconds: float = DRAIN_SECONDS_DEFAULT) -> None:
        """Accept no more calls; return when those under way have ended, cut off after ``seconds``. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        await self._health.enter_graceful_shutdown()
        self._gate.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._gate.in_flight and loop.time() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        # Once only, and nothing beside it: gRPC crashes when two stops meet.
        await server.stop(0 if self._gate.in_flight else SEND_SECONDS)

    def _bind(self, server: aio.Server) -> int:
        where = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        try:
            if self._tls is None:
                port = server.add_insecure_port(where)
            else:
                demand = self._require_client_certificate
                credentials = self._tls.server_credentials(require_client_certificate=demand)
                port = server.add_secure_port(where, credentials)
        except RuntimeError as error:
            raise PortTaken(f"cannot listen for gRPC on {where}: {error}") from error
        if not port:
            raise PortTaken(f"cannot listen for gRPC on {where}")
        return int(port)


def _probe(host: str, port: int) -> None:
    """Say exactly why a port cannot be had: gRPC does not, and is content when one of several addresses is free."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise PortTaken(f"cannot listen for gRPC on {host}:{port}: the host is not known") from error
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT or (error.errno == errno.EADDRNOTAVAIL and len(found) > 1):
                continue
            raise PortTaken(f"cannot listen for gRPC on {host}:{port}: {error.strerror}") from error


def request_id() -> str:
    """The id of the call that this task serves: the caller's ``runnel-request-id``, else one of our own."""
    return _REQUEST_ID.get("")


def _read_request_id(metadata: dict[str, Any]) -> str:
    """What the caller said if it is a short printable word."""
    given = metadata.get(REQUEST_ID_KEY, "")
    fits = isinstance(given, str) and 0 < len(given) <= REQUEST_ID_CHARACTERS_MAX
    return given if fits and given.isascii() and given.isprintable() else str(uuid.uuid4())


@dataclass(frozen=True, slots=True)
class _Call:
    """What the gate knows of a call before its handler begins."""

    method: str
    request_id: str
    is_endless: bool
    observe: Callable[[str, str, float], None] | None
    receiving: Receiving | None
    refusal: Exception | None

    @contextlib.asynccontextmanager
    async def received(self, request: Any, is_stream: bool) -> AsyncIterator[Any]:
        """What the handler is given. Raises the refusal."""
        if self.refusal is not None:
            raise self.refusal
        if self.receiving is None:
            yield request
        elif is_stream:
            async with self.receiving.stream():
                yield request
        else:
            yield await self.receiving.message(request)


class _Gate(aio.ServerInterceptor):
    """Around every handler: who calls, and what its errors mean."""

    def __init__(self, services: Sequence[GrpcService], cluster: str, version: str) -> None:
        self.in_flight = 0
        self._is_closed = False
        self._streams: set[asyncio.Task[Any]] = set()
        self._internal = frozenset(service.name for service in services if not service.is_public)
        self._endless = {f"/{service.name}/{method}" for service in services for method in service.endless}
        self._endless |= {HEALTH_WATCH}
        self._observe = {service.name: service.observe for service in services}
        self._receiving = {service.name: service.receiving for service in services if service.receiving is not None}
        self._cluster = cluster
        self._version = version

    def close(self) -> None:
        """From now on calls are refused, and streams without an end are ended."""
        self._is_closed = True
        for task in self._streams:
            task.cancel()

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:  # gRPC answers UNIMPLEMENTED
            return None
        method = str(handler_call_details.method)
        metadata = dict(handler_call_details.invocation_metadata or ())
        service = method.split("/")[1]
        refusal: Exception | None = None
        if self._is_closed:
            refusal = self._stops(service)
        elif service in self._internal:
            refusal = self._refusal(metadata)
        call = _Call(
            method, _read_request_id(metadata), method in self._endless, self._observe.get(service),
            self._receiving.get(service), refusal,
        )  # fmt: skip
        return self._wrapped(handler, call)

    def _stops(self, service: str) -> Exception:
        """Another node takes it as "not sent" and goes to a peer that is there; a client hears to try again."""
        return PeerUnavailable(STOPS) if service in self._internal else NotReady(STOPS)

    def _refusal(self, metadata: dict[str, Any]) -> _Refused | None:
        """Why a caller is not one of us."""
        cluster, version = metadata.get(CLUSTER_KEY), metadata.get(VERSION_KEY)
        if cluster is None or version is None:
            return _Refused(grpc.StatusCode.PERMISSION_DENIED, "this service is for nodes of the cluster only")
        if cluster != self._cluster:
            text = f"this node belongs to the cluster {self._cluster!r}, the caller to {str(cluster)[:100]!r}"
            return _Refused(grpc.StatusCode.PERMISSION_DENIED, text)
        if not versions_fit(self._version, str(version)):
            text = f"this node has version {self._version}, the caller {str(version)[:100]!r}: they do not fit together"
            return _Refused(grpc.StatusCode.FAILED_PRECONDITION, text)
        return None

    def _wrapped(self, handler: Any, call: _Call) -> Any:
        """The same method. Where receiving is bounded it takes a stream: on the wire one message is a stream of one."""
        takes = "stream" if handler.request_streaming else "unary"
        gives = "stream" if handler.response_streaming else "unary"
        behave = getattr(handler, f"{takes}_{gives}")

        async def one(request: Any, context: Any) -> Any:
            with self._serving(call, context):
                try:
                    async with call.received(request, handler.request_streaming) as received:
                        return await behave(received, context)
                except Exception as error:  # noqa: BLE001 - each becomes a status; faults are logged there
                    await self._abort(call.method, context, error)

        async def many(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._serving(call, context):
                try:
                    async with call.received(request, handler.request_streaming) as received:
                        async for answer in _answers(behave(received, context)):
                            yield answer
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task not in self._streams or not self._is_closed:
                        raise
                    task.uncancel()
                    await self._abort(call.method, context, self._stops(call.method.split("/")[1]))
                except Exception as error:  # noqa: BLE001 - as above
                    await self._abort(call.method, context, error)

        make = getattr(grpc, f"{takes if call.receiving is None else 'stream'}_{gives}_rpc_method_handler")
        return make(
            many if handler.response_streaming else one,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    @contextlib.contextmanager
    def _serving(self, call: _Call, context: aio.ServicerContext[Any, Any]) -> Iterator[None]:
        """Each call is a task of its own: what is bound here ends with it."""
        _REQUEST_ID.set(call.request_id)
        structlog.contextvars.bind_contextvars(request_id=call.request_id)
        task = asyncio.current_task()
        assert task is not None
        if call.is_endless:
            self._streams.add(task)
        else:
            self.in_flight += 1
        begun, status = time.monotonic(), grpc.StatusCode.CANCELLED.name  # how a call ends that nobody waits for
        try:
            yield
            status = grpc.StatusCode.OK.name
        except aio.AbortError:
            status = _status_name(context)
            raise
        finally:
            if call.observe is not None:
                call.observe(call.method.rpartition("/")[2], status, time.monotonic() - begun)
            if call.is_endless:
                self._streams.discard(task)
            else:
                self.in_flight -= 1

    async def _abort(self, method: str, context: aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
        """End the call with the error's status; log what an operator must see, once."""
        if isinstance(error, (aio.AbortError, aio.InternalError)):  # the handler has said everything; nobody listens
            raise error
        about = (*(context.trailing_metadata() or ()), (REQUEST_ID_KEY, request_id()))
        if isinstance(error, _Refused):
            log.warning("a caller was refused", method=method, peer=context.peer(), reason=str(error))
            await context.abort(error.status, shortened(str(error)), (*error.metadata, *about))
        if isinstance(error, NotImplementedError):  # what generated servicers raise
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served here", about)
        found = rpc_status(error)
        if found is None:
            log.error("a call failed", method=method, exc_info=error)
            text = f"internal error; the server's log has it under request {request_id()}"
            await context.abort(grpc.StatusCode.INTERNAL, text, about)
        if found.status in BROKEN and method.split("/")[1] not in self._internal:
            log.error("a call failed", method=method, error=str(error), code=dict(found.metadata)[CODE_KEY])
        await context.abort(found.status, found.details, (*found.metadata, *about))


def _status_name(context: aio.ServicerContext[Any, Any]) -> str:
    """Of a call that was ended by an error."""
    code: Any = context.code()  # a number, whatever its type says
    return next((status.name for status in grpc.StatusCode if code in (status, status.value[0])), "UNKNOWN")


class _Refused(Exception):
    """A caller that is not of this cluster, or does not fit."""

    metadata = ((CODE_KEY, ClusterDenied.code), (FAMILY_KEY, "cluster"), (RETRIABLE_KEY, "0"))

    def __init__(self, status: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.status = status


async def _answers(behaviour: Any) -> AsyncIterator[Any]:
    """What a handler yields, or nothing if it is a coroutine that writes to the context itself."""
    if not hasattr(behaviour, "__aiter__"):
        await behaviour
        return
    try:
        async for answer in behaviour:
            yield answer
    finally:
        close = getattr(behaviour, "aclose", None)
        if close is not None:
            await close()


def versions_fit(ours: str, theirs: str) -> bool:
    """Nodes may differ in what comes after the first number that counts: 1.2 fits 1.9, 0.3.1 fits 0.3.7."""
    return _generation(ours) == _generation(theirs)


def _generation(version: str) -> tuple[str, ...]:
    numbers = version.split(".")
    return tuple(numbers[:2]) if numbers[0] == "0" else tuple(numbers[:1])
