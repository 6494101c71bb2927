"""gRPC channels to other nodes: one for each address, kept, with the cluster's own TLS, options and credentials.

A `Channels` belongs to one event loop; whatever calls peers asks it for a channel at each call, so that changed
certificates are used soon. Every call says which cluster it belongs to and its version (`nodes.grpcserver` checks).
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast

import grpc
from grpc import aio

from cluster.errors import ClusterMisconfigured
from cluster.tlsfiles import NODE_NAME, channel_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cluster.tlsfiles import TlsSource

_Stub = TypeVar("_Stub")

CLUSTER_KEY: Final = "runnel-cluster"
VERSION_KEY: Final = "runnel-version"
MESSAGE_BYTES_MAX: Final = 64 * 2**20
"""One message, either way; rows travel in smaller ones."""
METADATA_BYTES_MAX: Final = 64 * 1024
"""Of headers and trailers: an error may name many tables."""
KEEPALIVE_MS: Final = 10_000
KEEPALIVE_TIMEOUT_MS: Final = 5_000
RECONNECT_FIRST_MS: Final = 100
RECONNECT_MAX_MS: Final = 800
"""With gRPC's 20 % of jitter: a restarted peer is found again within a second."""
CONNECT_MS_MAX: Final = 2_000
"""How long one attempt to connect may take, on a host that answers nothing."""
RESOLVE_MS_MIN: Final = 1_000
"""A restarted container has a new address; gRPC would ask for it at most every 30 s."""
CLOSE_SECONDS: Final = 600.0
"""How long calls on a channel that was replaced may take to their end: statements last minutes."""
HOST_CHARACTERS_MAX: Final = 255


OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.enable_retries", 0),  # L7: a try is one transmission
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_FIRST_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
    ("grpc.min_reconnect_backoff_ms", CONNECT_MS_MAX),
    ("grpc.dns_min_time_between_resolutions_ms", RESOLVE_MS_MIN),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel connects anew, whatever another one's back-off says
    ("grpc.enable_http_proxy", 0),  # peers are never behind the proxy that the environment names
)


@dataclass(slots=True)
class _Kept:
    channel: PeerChannel
    generation: int


class Channels:
    """Channels by peer address (HOST:PORT). ``tls`` None: plaintext."""

    def __init__(self, cluster: str, version: str, tls: TlsSource | None = None) -> None:
        for text in (cluster, version):
            if not text or not text.isascii() or not text.isprintable() or text != text.strip():
                raise ClusterMisconfigured(f"{text!r} cannot be sent as a cluster's name or version: ASCII only")
        self._metadata = ((CLUSTER_KEY, cluster), (VERSION_KEY, version))
        self._tls = tls
        self._kept: dict[str, _Kept] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def channel(self, address: str) -> PeerChannel:
        """The channel to a peer; it connects at the first call. Do not close it, and do not keep it for long."""
        if self._closed:
            raise RuntimeError("the channels are closed")
        generation, credentials = self._credentials()
        kept = self._kept.get(address)
        if kept is not None and kept.generation == generation:
            return kept.channel
        self.forget(address)
        channel = PeerChannel(_open(address, credentials() if credentials else None), self._metadata)
        self._kept[address] = _Kept(channel, generation)
        return channel

    def forget(self, address: str) -> None:
        """Let the channel go: calls under way end by themselves, the next `channel` connects anew."""
        kept = self._kept.pop(address, None)
        if kept is not None:
            task = asyncio.get_running_loop().create_task(kept.channel.close(CLOSE_SECONDS))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        """Close all, ending what is under way. Idempotent."""
        self._closed = True
        kept, self._kept = list(self._kept.values()), {}
        for task in (closing := list(self._closing)):
            task.cancel()
        await asyncio.gather(*closing, *(one.channel.close(None) for one in kept), return_exceptions=True)

    def _credentials(self) -> tuple[int, functools.partial[grpc.ChannelCredentials] | None]:
        if self._tls is None:
            return 0, None
        generation, material = self._tls.current()
        return generation, functools.partial(channel_credentials, material)


def target(address: str) -> str:
    """gRPC's name for HOST:PORT. Addresses come from other nodes: one that is a scheme or a path is refused."""
    host, colon, port = address.rpartition(":")
    plain = host.strip("[]") if host.startswith("[") and host.endswith("]") else host
    fits = 0 < len(plain) <= HOST_CHARACTERS_MAX and all(c.isascii() and (c.isalnum() or c in ".-_:%") for c in plain)
    if not colon or not fits or (":" in plain) != (plain != host) or not (port.isascii() and port.isdigit()):
        raise ClusterMisconfigured(f"{address[:300]!r} is not HOST:PORT")
    return f"dns:///{host}:{int(port)}"


def _open(address: str, credentials: grpc.ChannelCredentials | None) -> aio.Channel:
    if credentials is None:
        return aio.insecure_channel(target(address), OPTIONS)
    return aio.secure_channel(target(address), credentials, [*OPTIONS, ("grpc.ssl_target_name_override", NODE_NAME)])


class PeerChannel(aio.Channel):
    """A channel whose every call carries the cluster's metadata, before the caller's own.

    Not an interceptor: those run each call in a task of its own.
    """

    def __init__(self, inner: aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
        self._inner = inner
        self._metadata = tuple(metadata)
        self._stubs: dict[object, object] = {}

    def stub(self, kind: Callable[[aio.Channel], _Stub]) -> _Stub:
        """The generated stub of a service over this channel, made once: ``channel.stub(IngestStub).Append(..)``."""
        found = self._stubs.get(kind)
        if found is None:
            found = self._stubs[kind] = kind(self)
        return cast("_Stub", found)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._stamped(self._inner.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._stamped(self._inner.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._stamped(self._inner.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._stamped(self._inner.stream_stream(*args, **kwargs))

    def _stamped(self, call: Any) -> Any:
        def stamped(*args: Any, metadata: Any = None, **kwargs: Any) -> Any:
            return call(*args, metadata=(*self._metadata, *(metadata or ())), **kwargs)

        return stamped

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> bool | None:
        await self._inner.__aexit__(*exc)  # type: ignore[arg-type]
        return None
