"""The object store: where Logs, DataFiles and their parts lie, on local disk or on S3.

Driven by the Log, the shard and the Catalog from worker threads: every call blocks and every store is
thread-safe. This is the only module that imports fsspec or s3fs, and only when an ``s3://`` URL is
opened. ``storage.localstore`` is the store for local disks.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import enum
import random
import re
import threading
import time
import urllib.parse
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from storage.errors import InvalidName, ObjectMissing, StorageError, StoreUnavailable, StoreUnsuitable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

Buffers: TypeAlias = bytes | Sequence[bytes | memoryview]

PATH_CHARS_MAX: Final = 512
PART_CHARS_MAX: Final = 200
CONNECT_SECONDS_MAX: Final = 5
IDLE_SECONDS_MAX: Final = 15
REQUEST_SECONDS_DEFAULT: Final = 60.0
CONNECTIONS_MAX: Final = 64
READ_TRIES_MAX: Final = 4
"""How often a call without a create is sent before the store counts as unavailable."""
RETRY_SECONDS: Final = 0.1
PROBE_FOLDER: Final = "probe"
PROBE_WRITERS: Final = 16
PROBE_TRIES_MAX: Final = 20

_NAME = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9_=.-]*", re.ASCII)
_START = re.compile(r"[A-Za-z0-9_=.-]*", re.ASCII)
_BUCKET = re.compile(r"[A-Za-z0-9_.-]{3,255}", re.ASCII)


class CreateOutcome(enum.Enum):
    """What is known after an exclusive create."""

    CREATED = "created"
    """The object stands, is ours, and is durable (LOG L4)."""
    EXISTS = "exists"
    """An object of this name stands; it may be our own earlier try: compare nonces (LOG L6)."""
    UNKNOWN = "unknown"
    """It may or may not stand, now or a little later (time-out, 5xx, 409, lost connection; LOG L6)."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One object of a listing: ``name`` is relative to the folder that was listed, ``size`` in bytes."""

    name: str
    size: int


Listing: TypeAlias = list[Listed]


class StoreDenied(StoreUnavailable):
    """The store refused our credentials or this operation; trying again does not help."""

    retriable = False


class ObjectStore(Protocol):
    """A flat map from paths to immutable objects with an exclusive create.

    Paths are relative, parts separated by ``/``, of ``[A-Za-z0-9_=.-]``, none beginning with a dot;
    others raise InvalidName. Every method raises StoreUnavailable if the store does not answer, and
    after a failed fsync FsyncFailed (LOG L34).
    """

    @property
    def url(self) -> str:
        """The root without a final slash, e.g. ``file:///abs/store`` or ``s3://bucket/prefix``."""
        ...

    def create(self, path: str, data: Buffers) -> CreateOutcome:
        """Put if absent, all of ``data`` or nothing, durable when CREATED (LOG L4, L34, L35).

        StoreFull and StoreUnavailable are raised only when it is certain that nothing was created.
        """
        ...

    def settle(self, path: str) -> None:
        """Make the name of an object durable that turned out to be our own earlier try (LOG L6)."""
        ...

    def get(self, path: str) -> bytes:
        """The whole object. Raises ObjectMissing."""
        ...

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """Bytes [start, start + length), fewer where the object ends. Raises ObjectMissing."""
        ...

    def exists(self, path: str) -> bool:
        """Whether the object stands, asked of the store itself, never of a cache (LOG L35)."""
        ...

    def list(self, folder: str, start: str = "") -> Listing:
        """Objects directly in ``folder`` whose name is >= ``start``, sorted by name.

        Complete, and never from a cache (LOG L35): whatever was created before the call shows.
        Temporary files never show; a folder that does not exist is empty; "" is the root.
        """
        ...

    def list_all(self, folder: str) -> Listing:
        """All objects at any depth below ``folder``, by path relative to it, sorted."""
        ...

    def delete(self, path: str) -> None:
        """Delete the object; no error if it is not there."""
        ...

    def clock_ms(self) -> int:
        """The store's own clock, ms since 1970, perhaps rounded down to a second (LOG L36)."""
        ...

    def local_path(self, path: str) -> Path | None:
        """Where the object lies on this machine's disk; None for a remote store."""
        ...

    def close(self) -> None:
        """Give back sockets and file descriptors; the store answers nothing afterwards. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class S3Options:
    """How to reach S3. Keys left None come from the usual AWS sources; they never show in ``repr``."""

    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    allow_http: bool = False
    request_seconds: float = REQUEST_SECONDS_DEFAULT


def is_object_name(name: str) -> bool:
    """Whether one part of a path may be used; a listing leaves all other names out."""
    return len(name) <= PART_CHARS_MAX and _NAME.fullmatch(name) is not None


def check_path(path: str) -> str:
    """Return ``path`` if it may reach a store, else raise InvalidName: names are never paths (FORMAT F2)."""
    if len(path) > PATH_CHARS_MAX or not all(is_object_name(part) for part in path.split("/")):
        raise InvalidName(f"{path[:PATH_CHARS_MAX]!r} cannot be the path of an object")
    return path


def check_folder(folder: str) -> str:
    """As `check_path`, but "" names the root."""
    return check_path(folder) if folder else folder


def check_start(start: str) -> str:
    """Return the name a listing starts from if it can be one, else raise InvalidName."""
    if len(start) > PART_CHARS_MAX or _START.fullmatch(start) is None:
        raise InvalidName(f"{start[:PART_CHARS_MAX]!r} cannot be the name of an object")
    return start


def check_range(start: int, length: int) -> None:
    """Raise ValueError for a range that no object has."""
    if start < 0 or length < 1:
        raise ValueError(f"no range of bytes: start {start}, length {length}")


def open_store(url_or_path: str, options: S3Options | None = None) -> ObjectStore:
    """Open the store at a path, a ``file://`` or an ``s3://bucket/prefix`` URL. Prove it before use (LOG L33).

    Raises StoreUnsuitable if the URL or what is behind it cannot be a store.
    """
    scheme, separator, rest = url_or_path.partition("://")
    if not separator:
        return _open_local(Path(url_or_path))
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if host not in {"", "localhost"} or not slash:
            raise StoreUnsuitable(f"{url_or_path!r}: a file URL names no host; write file:///folder")
        return _open_local(Path("/" + urllib.parse.unquote(path)))
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        return _open_s3(bucket, prefix.strip("/"), options or S3Options())
    raise StoreUnsuitable(f"a store cannot be at {scheme!r}: give a path, file:///folder or s3://bucket/prefix")


def _open_local(root: Path) -> ObjectStore:
    from storage.localstore import open_local  # it builds on the types above

    return open_local(root)


def _open_s3(bucket: str, prefix: str, options: S3Options) -> ObjectStore:
    if _BUCKET.fullmatch(bucket) is None:  # also keeps out s3://key:secret@bucket, which would be logged
        raise StoreUnsuitable("the part after s3:// must be a bucket, without credentials")
    try:
        check_folder(prefix)
    except InvalidName as error:
        raise StoreUnsuitable(f"the prefix {prefix!r} may hold only [A-Za-z0-9_=.-] between its slashes") from error
    endpoint = urllib.parse.urlsplit(options.endpoint or "https:")
    if endpoint.scheme not in {"http", "https"} or endpoint.username is not None:
        raise StoreUnsuitable("the S3 endpoint must be an https:// URL without credentials")
    if endpoint.scheme == "http" and not options.allow_http:
        raise StoreUnsuitable(f"{options.endpoint} is plain HTTP: allow it explicitly, or use https")
    return S3Store(bucket, prefix, options)


# --- The proof at start (LOG L33) ---------------------------------------------------------------------


def prove_store(store: ObjectStore) -> None:
    """Prove that the store can keep a Log (LOG L33), under ``probe/``; what it wrote is deleted again.

    Raises StoreUnsuitable with the reason, or StoreUnavailable if it cannot be reached.
    """
    name = f"{uuid.uuid4().hex}-race"
    missing = f"{PROBE_FOLDER}/{uuid.uuid4().hex}-missing"
    path = f"{PROBE_FOLDER}/{name}"
    try:
        _prove_missing(store, missing)
        _prove_missing(store, path)
        winner = _prove_race(store, path)
        _prove_visible(store, name, winner)
    except StorageError:
        with contextlib.suppress(StorageError):  # the first reason is the one to tell
            store.delete(path)
        raise
    _prove_gone(store, path)


def _prove_gone(store: ObjectStore, path: str) -> None:
    """Deleted objects go away; an unclear create of the race may land once more after the first delete (L6)."""
    for _ in range(PROBE_TRIES_MAX):
        store.delete(path)
        if not store.exists(path):
            return
    raise StoreUnsuitable(f"{store.url}: an object that was deleted is still there")


def _prove_missing(store: ObjectStore, path: str) -> None:
    """A missing object must answer "missing": L13 rests on it, and S3 says 403 without ListBucket (L33)."""
    try:
        if store.exists(path):
            raise StoreUnsuitable(f"{store.url}: says that {path} exists, which was never written")
        store.get(path)
    except ObjectMissing:
        return
    except StoreDenied as error:
        raise StoreUnsuitable(
            f"{store.url}: a missing object is answered by a refusal; allow s3:ListBucket, GetObject, "
            f"PutObject and DeleteObject ({error})"
        ) from error
    raise StoreUnsuitable(f"{store.url}: reads an object that was never written")


def _prove_race(store: ObjectStore, path: str) -> bytes:
    """Sixteen creates of one name at once: exactly one wins, and its content stands (L33)."""
    contents = [f"{number:02d}-{uuid.uuid4().hex}".encode() for number in range(PROBE_WRITERS)]
    start = threading.Barrier(PROBE_WRITERS)

    def contend(content: bytes) -> set[CreateOutcome]:
        start.wait()
        return _create_until_known(store, path, content)

    with concurrent.futures.ThreadPoolExecutor(PROBE_WRITERS, "probe") as threads:
        outcomes = dict(zip(contents, threads.map(contend, contents), strict=True))
    standing = store.get(path)
    winners = [content for content, seen in outcomes.items() if CreateOutcome.CREATED in seen]
    doubtful = [content for content, seen in outcomes.items() if CreateOutcome.UNKNOWN in seen]
    if len(winners) > 1:
        raise StoreUnsuitable(
            f"{store.url}: {len(winners)} exclusive creates of one name won; it ignores the condition"
        )
    if standing not in (winners or doubtful):
        raise StoreUnsuitable(f"{store.url}: the content of an object is not that of the create that won")
    if store.create(path, b"late") is CreateOutcome.CREATED or store.get(path) != standing:
        raise StoreUnsuitable(f"{store.url}: an exclusive create replaced an object")
    return standing


def _create_until_known(store: ObjectStore, path: str, content: bytes) -> set[CreateOutcome]:
    """All outcomes seen; S3 answers 409 to some of many creates at once, which is unknown (L6)."""
    seen: set[CreateOutcome] = set()
    for _ in range(PROBE_TRIES_MAX):
        seen.add(outcome := store.create(path, content))
        if outcome is not CreateOutcome.UNKNOWN:
            return seen
        time.sleep(RETRY_SECONDS * random.random())
    raise StoreUnavailable(f"{store.url}: no create was answered clearly in {PROBE_TRIES_MAX} tries")


def _prove_visible(store: ObjectStore, name: str, content: bytes) -> None:
    """Whoever asks after a create must see it: takeover (L9) and reads (L13) rest on that (L33)."""
    path = f"{PROBE_FOLDER}/{name}"
    if not store.exists(path):
        raise StoreUnsuitable(f"{store.url}: a new object is not seen at once")
    if Listed(name, len(content)) not in store.list(PROBE_FOLDER, start=name):
        raise StoreUnsuitable(f"{store.url}: a listing does not show a new object at once")
    if store.get_range(path, 1, 4) != content[1:5]:
        raise StoreUnsuitable(f"{store.url}: a ranged read returns other bytes than were written")


# --- S3 (LOG L35) -------------------------------------------------------------------------------------

_UNCERTAIN_STATUSES: Final = frozenset({408, 409, 425, 429})
_UNCERTAIN_CODES: Final = frozenset({"RequestTimeout", "OperationAborted", "ConditionalRequestConflict"})


def outcome_of_refusal(status: int, code: str) -> CreateOutcome | None:
    """What an HTTP answer other than success says of a conditional PUT; None: certainly nothing was created.

    412 is the condition. Whatever a server may say after it began to work on the request, or while a
    rival's request is under way (409 ConditionalRequestConflict), leaves the outcome open (LOG L6).
    """
    if status == 412:
        return CreateOutcome.EXISTS
    if status in _UNCERTAIN_STATUSES or code in _UNCERTAIN_CODES or not 300 <= status < 500:
        return CreateOutcome.UNKNOWN
    return None


class _S3Errors:
    """The exceptions of the libraries below s3fs, imported when the first S3 store is opened."""

    def __init__(self) -> None:
        import aiohttp
        from botocore import exceptions
        from botocore.parsers import ResponseParserError

        self.answer = exceptions.ClientError
        self.transport = (exceptions.BotoCoreError, ResponseParserError, aiohttp.ClientError, OSError)
        self._unconnected = aiohttp.ClientConnectorError
        self._unsent = (
            exceptions.BaseEndpointResolverError,
            exceptions.ConnectTimeoutError,
            exceptions.CredentialRetrievalError,
            exceptions.NoCredentialsError,
            exceptions.ParamValidationError,
            exceptions.PartialCredentialsError,
        )

    def never_sent(self, error: Exception) -> bool:
        """Whether it is certain that no byte of the request left: EndpointConnectionError alone also
        stands for a connection that was reset after the request."""
        cause = getattr(error, "kwargs", {}).get("error")
        return isinstance(error, self._unsent) or isinstance(cause, self._unconnected)


def _once_only_session() -> type[Any]:
    """An HTTP session that never sends a request a second time by itself.

    aiohttp repeats a PUT when a kept connection breaks: the repeat would meet our own object, or be
    refused although the first stood, and what is certain would no longer be (LOG L6).
    """
    from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]

    class OnceOnlySession(AIOHTTPSession):  # type: ignore[misc]
        async def _get_session(self, proxy_url: str | None) -> Any:
            session = await super()._get_session(proxy_url)
            session._retry_connection = False
            return session

    return OnceOnlySession


def _open_s3_files(options: S3Options) -> tuple[Any, asyncio.AbstractEventLoop]:
    """An s3fs file system and the thread's loop that it runs on; nothing is sent yet."""
    import fsspec.asyn
    import s3fs

    loop: asyncio.AbstractEventLoop = fsspec.asyn.get_loop()
    files = s3fs.S3FileSystem(
        key=options.access_key,
        secret=options.secret_key,
        token=options.session_token,
        endpoint_url=options.endpoint,
        client_kwargs={"region_name": options.region} if options.region else {},
        config_kwargs={
            "connect_timeout": CONNECT_SECONDS_MAX,
            "read_timeout": IDLE_SECONDS_MAX,
            "max_pool_connections": CONNECTIONS_MAX,
            "retries": {"total_max_attempts": 1, "mode": "standard"},  # L6: what is ambiguous is ours to resolve
            "request_checksum_calculation": "when_required",  # others than AWS refuse aws-chunked bodies
            "response_checksum_validation": "when_required",
            "http_session_cls": _once_only_session(),
        },
        use_listings_cache=False,  # L35: the default answers ls, info and exists without a request
        skip_instance_cache=True,
        asynchronous=True,
        loop=loop,
    )
    return files, loop


class S3Store:
    """Objects under a prefix of a bucket. One object is one PUT with ``If-None-Match: *`` (LOG L35)."""

    def __init__(self, bucket: str, prefix: str, options: S3Options) -> None:
        self.url: str = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._connected = False
        self._closed = False
        self._request_seconds = options.request_seconds
        self._errors = _S3Errors()
        self._files, self._loop = _open_s3_files(options)

    def create(self, path: str, data: Buffers) -> CreateOutcome:
        key = self._key(path)
        body = data if isinstance(data, bytes) else b"".join(data)
        try:
            self._send("put_object", Key=key, Body=body, IfNoneMatch="*")  # L35
        except self._errors.answer as error:
            outcome = outcome_of_refusal(*_status_and_code(error))
            if outcome is None:
                raise self._refusal(error, path) from error
            return outcome
        except self._errors.transport as error:
            if self._errors.never_sent(error):
                raise self._silence(error, path) from error
            return CreateOutcome.UNKNOWN  # L6
        return CreateOutcome.CREATED

    def settle(self, path: str) -> None:
        self._key(path)  # an object that S3 shows is durable

    def get(self, path: str) -> bytes:
        content: bytes = self._read("get_object", path, Key=self._key(path))["Content"]
        return content

    def get_range(self, path: str, start: int, length: int) -> bytes:
        check_range(start, length)
        span = f"bytes={start}-{start + length - 1}"
        try:
            content: bytes = self._read("get_object", path, Key=self._key(path), Range=span)["Content"]
        except _BehindTheEnd:
            return b""
        return content

    def exists(self, path: str) -> bool:
        try:
            self._read("head_object", path, Key=self._key(path))  # L35: a request each time
        except ObjectMissing:
            return False
        return True

    def list(self, folder: str, start: str = "") -> Listing:
        prefix = self._folder_key(folder)
        after = prefix + _predecessor(check_start(start)) if start else ""
        found = self._list_pages(folder, prefix, {"Delimiter": "/", **({"StartAfter": after} if after else {})})
        return [entry for entry in found if entry.name >= start]

    def list_all(self, folder: str) -> Listing:
        return list(self._list_pages(folder, self._folder_key(folder), {}))

    def delete(self, path: str) -> None:
        try:
            self._read("delete_object", path, Key=self._key(path))
        except ObjectMissing:
            return

    def clock_ms(self) -> int:
        answer = self._read("list_objects_v2", PROBE_FOLDER, Prefix=self._folder_key(PROBE_FOLDER), MaxKeys=1)
        try:
            stamp = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        except (KeyError, ValueError) as error:
            raise StoreUnavailable(f"{self.url}: an answer without a Date, so its clock is unknown") from error
        return int(stamp.timestamp() * 1000)

    def local_path(self, path: str) -> Path | None:
        check_path(path)
        return None

    def close(self) -> None:
        if self._connected and not self._closed:
            self._run(self._close())
        self._closed = True

    # -- requests --

    def _key(self, path: str) -> str:
        return self._prefix + check_path(path)

    def _folder_key(self, folder: str) -> str:
        return f"{self._prefix}{check_folder(folder)}/" if folder else self._prefix

    def _list_pages(self, folder: str, prefix: str, arguments: dict[str, Any]) -> Iterator[Listed]:
        """Page after page, so that the listing is complete (L9); other people's names are left out."""
        while True:
            page = self._read("list_objects_v2", folder or "the root", Prefix=prefix, **arguments)
            for entry in page.get("Contents", ()):
                name = entry["Key"][len(prefix) :]
                if all(is_object_name(part) for part in name.split("/")):
                    yield Listed(name, entry["Size"])
            if not page.get("IsTruncated"):
                return
            arguments = {**arguments, "ContinuationToken": page["NextContinuationToken"]}

    def _read(self, operation: str, path: str, **arguments: Any) -> dict[str, Any]:
        """Send what may be repeated, a few times if there is no clear answer."""
        failure: StorageError = StoreUnavailable(f"{self.url}: {path} was never asked for")
        for attempt in range(READ_TRIES_MAX):
            if attempt:
                time.sleep(RETRY_SECONDS * 2**attempt * random.uniform(0.5, 1.0))
            try:
                return self._send(operation, **arguments)
            except self._errors.answer as error:
                status, _ = _status_and_code(error)
                failure = self._refusal(error, path)
                if status < 500 and status not in _UNCERTAIN_STATUSES:
                    raise failure from error
            except self._errors.transport as error:
                failure = self._silence(error, path)
        raise failure

    def _send(self, operation: str, **arguments: Any) -> dict[str, Any]:
        if self._closed:
            raise StoreUnavailable(f"{self.url}: this store is closed")
        return self._run(self._request(operation, arguments))

    def _run(self, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _request(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """One request and its whole answer; past its time it is cancelled, so that it does not land much later."""
        async with asyncio.timeout(self._request_seconds):
            client = await self._files.set_session()
            self._connected = True
            call: Callable[..., Any] = getattr(client, operation)
            answer: dict[str, Any] = await call(Bucket=self._bucket, **arguments)
            if operation == "get_object":
                async with answer["Body"] as body:
                    answer["Content"] = await body.read()
        return answer

    async def _close(self) -> dict[str, Any]:
        client = await self._files.set_session()
        await client.close()
        return {}

    # -- errors: status and code only, never what the library prints, which may hold keys --

    def _refusal(self, error: Exception, path: str) -> ObjectMissing | StoreUnavailable:
        status, code = _status_and_code(error)
        where = f"{self.url}: {path}: S3 answered {status} {code}"
        if code in {"NoSuchKey", "404", "NotFound"}:
            return ObjectMissing(f"{self.url}: no object {path}")
        if status == 416:
            return _BehindTheEnd(where)
        return StoreDenied(where) if status in {401, 403} else StoreUnavailable(where)

    def _silence(self, error: Exception, path: str) -> StoreUnavailable:
        return StoreUnavailable(f"{self.url}: {path}: no answer from S3 ({type(error).__name__})")


class _BehindTheEnd(StoreUnavailable):
    """416: the range begins where the object has already ended."""


def _status_and_code(error: Exception) -> tuple[int, str]:
    """HTTP status and S3 code of a botocore ClientError."""
    response: dict[str, Any] = getattr(error, "response", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status), str(response.get("Error", {}).get("Code", ""))


def _predecessor(start: str) -> str:
    """A string below ``start`` with no object's name between them: ``StartAfter`` leaves out its own key."""
    return start[:-1] + chr(ord(start[-1]) - 1) + "~"
