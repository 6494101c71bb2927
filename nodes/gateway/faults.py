"""What goes wrong between a socket and a door: each class is one code in the doors' tables (`nodes.errors`).

Raised by the HTTP core and the doors; turned into an answer by `nodes.gateway.app`.
"""

from __future__ import annotations

from typing import ClassVar

from nodes.exitcodes import NodeError


class GatewayError(NodeError):
    """Root of what the gateway raises on purpose. ``is_final`` closes the connection after the answer."""

    code: ClassVar[str] = "gateway"
    is_final: ClassVar[bool] = False


class BadRequest(GatewayError):
    """The request cannot be understood; the message is the whole answer."""

    code = "bad_request"


class BadName(GatewayError):
    """A database or retention policy name that InfluxDB would refuse too."""

    code = "bad_name"


class LegacyParameters(GatewayError):
    """The parameters of the v1 or v2 write API cannot be used."""

    code = "legacy_parameters"


class BodyTooLarge(GatewayError):
    """The body, as sent or inflated, is over ``http.request_bytes_max``."""

    code = "body_too_large"
    is_final = True

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"max request size ({limit_bytes} bytes) exceeded")


class BodySlow(GatewayError):
    """The body did not arrive within ``http.body_seconds``."""

    code = "body_slow"
    is_final = True

    def __init__(self) -> None:
        super().__init__("the request body did not arrive in time")


class BodyBroken(GatewayError):
    """The body's framing is wrong, or less came than was promised."""

    code = "body_broken"
    is_final = True

    def __init__(self) -> None:
        super().__init__("the request body is broken: its framing cannot be read")


class BadEncoding(GatewayError):
    """A Content-Encoding other than identity and gzip."""

    code = "bad_encoding"


class BadGzip(GatewayError):
    """The body says gzip and is not."""

    code = "bad_gzip"


class BadContentType(GatewayError):
    """An endpoint that reads JSON was sent something else."""

    code = "bad_content_type"

    def __init__(self) -> None:
        super().__init__("unacceptable content-type, expected: application/json")


class NotFound(GatewayError):
    """No route has this path."""

    code = "not_found"

    def __init__(self) -> None:
        super().__init__("Not found")


class MethodNotAllowed(GatewayError):
    """The path is there, with other methods."""

    code = "method_not_allowed"

    def __init__(self, allowed: str) -> None:
        super().__init__("unsupported method")
        self.allowed = allowed


class MissingDatabase(GatewayError):
    """A query names a database that is not there."""

    code = "missing_database"

    def __init__(self, name: str) -> None:
        super().__init__(f"query error: database not found: {name}")


class NotReady(GatewayError):
    """The node is starting, replaying or has failed."""

    code = "not_ready"
    retriable = True


class Overloaded(GatewayError):
    """Too many request bodies wait; a named limit is reached."""

    code = "overloaded"
    retriable = True


class ClientGone(GatewayError):
    """The client hung up: there is nobody to answer."""

    code = "client_gone"


class NotBuilt(GatewayError):
    """A part of a foreign protocol that is not there yet."""

    code = "not_built"
