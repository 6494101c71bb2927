"""What the S3 store makes of a server's answers, and of none, over a real socket (LOG L6, L33, L35)."""

from __future__ import annotations

import logging
import socket
import time
from typing import TYPE_CHECKING

import pytest

from storage import objects
from storage.errors import ObjectMissing, StoreUnavailable, StoreUnsuitable
from storage.objects import CreateOutcome, ObjectStore, S3Options, StoreDenied, open_store, prove_store
from tests.harness.s3server import ACCESS_KEY, SECRET_KEY, Answer, ScriptedServer, options_for, scripted_server
from tests.harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Serve = Callable[[dict[str, list[Answer]]], tuple[ScriptedServer, ObjectStore]]

UNKNOWN = CreateOutcome.UNKNOWN
OK = Answer()
BUSY = Answer(503, "SlowDown")
HANG_SECONDS = 20.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "RETRY_SECONDS", 0.001)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server with a script, and open a store on it."""
    import contextlib

    with contextlib.ExitStack() as stack:

        def start(script: dict[str, list[Answer]]) -> tuple[ScriptedServer, ObjectStore]:
            server = stack.enter_context(scripted_server(script))
            store = open_store("s3://bucket/pre/fix", options_for(server.port))
            stack.callback(store.close)
            return server, store

        yield start


def test_a_create_is_one_conditional_put(serve: Serve) -> None:
    """L35, L5: one PUT for one object, whatever its size, and the store decides."""
    server, store = serve({"PUT": [OK]})
    content = b"x" * 9_000_000
    assert store.create("logs/1/a", [content[:10], memoryview(content)[10:]]) is CreateOutcome.CREATED
    store.settle("logs/1/a")
    [(method, path, headers, body)] = server.requests
    assert (method, path, body) == ("PUT", "/bucket/pre/fix/logs/1/a", content)
    assert headers["If-None-Match"] == "*"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(412, "PreconditionFailed"), CreateOutcome.EXISTS),
        (Answer(409, "ConditionalRequestConflict"), UNKNOWN),
        (Answer(500, "InternalError"), UNKNOWN),
        (Answer(500), UNKNOWN),
        (BUSY, UNKNOWN),
        (Answer(429, "TooManyRequests"), UNKNOWN),
        (Answer(400, "RequestTimeout"), UNKNOWN),
        (Answer(drop=True), UNKNOWN),
        (Answer(200, headers={"Content-Length": "500"}, body=b"cut"), UNKNOWN),
        (Answer(500, headers={"Content-Length": "20"}, body=b"<Error>no xml at all"), UNKNOWN),
    ],
    ids=lambda value: (
        f"{value.status}{value.code}{'dropped' * value.drop}" if isinstance(value, Answer) else value.value
    ),
)
def test_the_outcome_of_a_create_is_what_is_certain(serve: Serve, answer: Answer, outcome: CreateOutcome) -> None:
    """L6: and nothing below sends it again by itself: what is ambiguous is the Log's to resolve."""
    server, store = serve({"PUT": [OK, answer], "HEAD": [Answer(404)]})
    assert store.create("warm", b"") is CreateOutcome.CREATED  # the connection is kept and used again
    assert store.create("a", b"x") is outcome
    assert server.counts["PUT"] == 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(403, "AccessDenied"), StoreDenied),
        (Answer(401, "Unauthorized"), StoreDenied),
        (Answer(404, "NoSuchBucket"), StoreUnavailable),
        (Answer(400, "InvalidRequest"), StoreUnavailable),
        (Answer(413, "EntityTooLarge"), StoreUnavailable),
    ],
    ids=lambda value: value.code if isinstance(value, Answer) else "",
)
def test_a_refused_create_certainly_did_nothing(serve: Serve, answer: Answer, error: type[StoreUnavailable]) -> None:
    server, store = serve({"PUT": [answer]})
    with pytest.raises(error, match=answer.code):
        store.create("a", b"x")
    assert server.counts["PUT"] == 1


def test_a_server_that_does_not_answer_in_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "READ_TRIES_MAX", 2)
    server, store = serve({"PUT": [OK, Answer(hang_seconds=HANG_SECONDS)], "HEAD": [Answer(hang_seconds=HANG_SECONDS)]})
    assert store.create("warm", b"") is CreateOutcome.CREATED  # its connection is used again
    monkeypatch.setattr(store, "_request_seconds", 0.5)
    began = time.monotonic()
    assert store.create("a", b"x") is UNKNOWN
    with pytest.raises(StoreUnavailable, match="no answer"):
        store.exists("a")
    assert time.monotonic() - began < HANG_SECONDS
    eventually(lambda: server.counts == {"PUT": 2, "HEAD": 2}, "each request has arrived, and none twice")


def test_no_server_at_all_is_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection has carried no request."""
    monkeypatch.setattr(objects, "READ_TRIES_MAX", 2)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        store = open_store("s3://bucket", options_for(unused.getsockname()[1]))
        for use in (lambda: store.create("a", b"x"), lambda: store.get("a"), lambda: prove_store(store)):
            with pytest.raises(StoreUnavailable, match="no answer"):
                use()
        store.close()


def test_a_server_that_dies_with_the_request_is_not(serve: Serve) -> None:
    """L6: a kept connection that breaks, and then a refused one, must not pass for a refused one alone."""
    server, store = serve({"PUT": [OK]})
    store.create("warm", b"")
    server.script["PUT"] = [Answer(drop=True)]
    assert store.create("a", b"x") is UNKNOWN
    assert server.counts["PUT"] == 2


def test_exists_asks_each_time(serve: Serve) -> None:
    """L35: nothing was sent for "no", and nothing is remembered of "yes"."""
    server, store = serve({"HEAD": [Answer(404), OK, OK, Answer(404)]})
    assert [store.exists("a") for _ in range(4)] == [False, True, True, False]
    assert server.counts["HEAD"] == 4


@pytest.mark.parametrize(
    "trouble", [BUSY, Answer(500), Answer(409), Answer(drop=True)], ids=["503", "500", "409", "drop"]
)
def test_what_may_be_repeated_is_repeated(serve: Serve, trouble: Answer) -> None:
    server, store = serve(
        {
            "GET": [trouble, trouble, Answer(body=b"content")],
            "HEAD": [trouble, Answer(404)],
            "DELETE": [trouble, Answer(204)],
        }
    )
    assert store.get("a") == b"content"
    assert not store.exists("a")
    store.delete("a")
    assert server.counts == {"GET": 3, "HEAD": 2, "DELETE": 2}


def test_repeating_has_an_end(serve: Serve) -> None:
    server, store = serve({"GET": [BUSY], "HEAD": [BUSY], "DELETE": [BUSY]})
    for use in (lambda: store.get("a"), lambda: store.exists("a"), lambda: store.delete("a"), store.clock_ms):
        with pytest.raises(StoreUnavailable, match="503"):
            use()
    assert server.counts == {"GET": 2 * objects.READ_TRIES_MAX, "HEAD": 4, "DELETE": 4}


def test_a_body_that_is_cut_short_is_never_returned(serve: Serve) -> None:
    cut = Answer(body=b"half", headers={"Content-Length": "8"})
    _, store = serve({"GET": [cut, cut, Answer(body=b"complete")]})
    assert store.get("a") == b"complete"


def test_a_missing_bucket_is_not_a_missing_object(serve: Serve) -> None:
    _, store = serve({"GET": [Answer(404, "NoSuchBucket"), Answer(404, "NoSuchKey")]})
    with pytest.raises(StoreUnavailable, match="NoSuchBucket"):
        store.get("a")
    with pytest.raises(ObjectMissing):
        store.get("a")


def test_a_refusal_for_a_missing_object_fails_the_proof(serve: Serve) -> None:
    """L33: S3 answers 403 for what is missing unless listing is allowed."""
    denied = Answer(403, "AccessDenied")
    _, store = serve({"HEAD": [denied], "GET": [denied], "DELETE": [Answer(204)]})
    with pytest.raises(StoreUnsuitable, match="s3:ListBucket"):
        prove_store(store)


def test_a_server_that_ignores_the_condition_fails_the_proof(serve: Serve) -> None:
    """L33: look-alikes without If-None-Match let every create win."""
    missing = Answer(404, "NoSuchKey")
    _, store = serve({"HEAD": [Answer(404)], "GET": [missing, missing, Answer(body=b"x")], "PUT": [OK], "DELETE": [OK]})
    with pytest.raises(StoreUnsuitable, match="16 exclusive creates of one name won"):
        prove_store(store)


def test_the_clock_is_the_servers(serve: Serve) -> None:
    """L36."""
    body = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    dated = Answer(body=body, headers={"Date": "Tue, 14 Nov 2023 22:13:20 GMT"})
    _, store = serve({"GET": [dated, Answer(body=body, headers={"Date": "soon"})]})
    # http.server sends its own Date first; botocore keeps the last one
    assert store.clock_ms() == 1_700_000_000_000
    with pytest.raises(StoreUnavailable, match="Date"):
        store.clock_ms()


def test_secrets_reach_neither_logs_nor_errors(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    _, store = serve({"PUT": [Answer(403, "AccessDenied")], "GET": [Answer(403, "InvalidAccessKeyId")]})
    for use in (lambda: store.create("a", b"x"), lambda: store.get("a"), lambda: store.list("")):
        with pytest.raises(StoreDenied) as raised:
            use()
        assert ACCESS_KEY not in str(raised.value)
    shown = caplog.text + repr(store) + repr(vars(store)) + repr(options_for(1))
    assert SECRET_KEY not in shown
    assert ACCESS_KEY not in repr(store) + repr(options_for(1))


def test_missing_credentials_are_certain(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    server, _ = serve({"PUT": [OK]})
    store = open_store("s3://bucket", S3Options(f"http://127.0.0.1:{server.port}", "us-east-1", allow_http=True))
    with pytest.raises(StoreUnavailable, match="NoCredentials"):
        store.create("a", b"x")
    assert server.counts["PUT"] == 0
    store.close()
