"""An S3 server that keeps everything in memory (moto), with the bucket that docker-compose.yml's profile s3 expects.

For trying Runnel on S3 and for tests; what it holds is gone when it ends. Started by the `s3` stage of the
Dockerfile; ``--check`` is its health check. Any other S3-compatible store can stand in its place (docs/containers.md).
"""

from __future__ import annotations

import os
import signal
import sys
import urllib.error
import urllib.request
from typing import Final

PORT: Final = 5000
BUCKET: Final = os.environ.get("BUCKET", "runnel")
URL: Final = f"http://127.0.0.1:{PORT}/{BUCKET}"
SECONDS_MAX: Final = 5


def serve() -> int:
    """Serve until SIGTERM or SIGINT."""
    from moto.server import ThreadedMotoServer

    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    server = ThreadedMotoServer(ip_address="0.0.0.0", port=PORT, verbose=False)  # noqa: S104 - a container's own
    server.start()
    _ask("PUT")
    sys.stdout.write(f"S3 with the bucket {BUCKET} on port {PORT}; everything is in memory\n")
    sys.stdout.flush()
    signal.sigwait(signals)
    server.stop()
    return 0


def check() -> int:
    """0 if the bucket is there."""
    try:
        _ask("HEAD")
    except OSError as error:
        sys.stderr.write(f"{URL}: {error}\n")
        return 1
    return 0


def _ask(method: str) -> None:
    # moto asks for no signature, but for a header that names the service.
    headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=runnel/20260101/us-east-1/s3/aws4_request"}
    request = urllib.request.Request(URL, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=SECONDS_MAX):  # noqa: S310 - our own URL, above
        pass


if __name__ == "__main__":
    raise SystemExit(check() if sys.argv[1:] == ["--check"] else serve())
