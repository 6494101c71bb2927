"""S3 servers for tests: moto's, which speaks the real protocol, and one that answers by a script."""

from __future__ import annotations

import contextlib
import http.server
import threading
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from storage.objects import S3Options

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCESS_KEY = "runnel-test-access"
SECRET_KEY = "runnel-test-secret-that-never-shows"


def options_for(port: int) -> S3Options:
    """How `storage.objects.open_store` reaches a test server on this port."""
    return S3Options(
        endpoint=f"http://127.0.0.1:{port}",
        region="us-east-1",
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        allow_http=True,
    )


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running moto server; ``requests`` are the method and the path of each that it got, in their order."""

    port: int
    requests: list[tuple[str, str]] = field(default_factory=list)

    @property
    def options(self) -> S3Options:
        return options_for(self.port)

    def new_store(self) -> str:
        """Make an empty bucket; return the URL of a store in it."""
        import boto3

        bucket = f"test-{uuid.uuid4().hex}"
        client: Any = boto3.client(
            "s3",
            endpoint_url=self.options.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )
        try:
            client.create_bucket(Bucket=bucket)
        finally:
            client.close()
        return f"s3://{bucket}/some/prefix"


@contextlib.contextmanager
def moto_server() -> Iterator[S3Server]:
    """An S3 server on a free port of the loopback, in threads of this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    found = S3Server(server.get_host_and_port()[1])
    http: Any = server._server
    served = http.app

    def counted(environ: dict[str, Any], start_response: Any) -> Any:
        found.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        return served(environ, start_response)

    http.app = counted
    try:
        yield found
    finally:
        server.stop()


@dataclass(frozen=True, slots=True)
class Answer:
    """One scripted answer. ``drop`` closes the connection after the request was read; ``hang_seconds``
    waits before that."""

    status: int = 200
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    drop: bool = False
    hang_seconds: float = 0.0


class ScriptedServer:
    """Answers each method from its list, the last answer for ever; counts and keeps the requests."""

    def __init__(self, script: dict[str, list[Answer]]) -> None:
        self.script = {method: list(answers) for method, answers in script.items()}
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.counts: Counter[str] = Counter()
        self.stopping = threading.Event()
        self.port = 0

    def next_answer(self, method: str) -> Answer:
        answers = self.script[method]
        return answers.pop(0) if len(answers) > 1 else answers[0]


@contextlib.contextmanager
def scripted_server(script: dict[str, list[Answer]]) -> Iterator[ScriptedServer]:
    """Serve the script on a free port of the loopback."""
    scripted = ScriptedServer(script)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            scripted.requests.append((self.command, self.path, dict(self.headers.items()), body))
            scripted.counts[self.command] += 1
            answer = scripted.next_answer(self.command)
            if answer.hang_seconds:
                scripted.stopping.wait(answer.hang_seconds)
            if answer.drop:
                self.close_connection = True
                return
            self._answer(answer)

        def _answer(self, answer: Answer) -> None:
            content = answer.body
            if answer.code:
                content = f"<Error><Code>{answer.code}</Code><Message>no</Message></Error>".encode()
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
                self.send_header(name, value)
            self.close_connection |= "Content-Length" in answer.headers  # a body cut short ends the connection
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_HEAD = do_DELETE = _serve

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that went away is part of the test."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    scripted.port = server.server_address[1]
    try:
        yield scripted
    finally:
        scripted.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()
