"""The one family of errors that the cluster package raises.

Each class fixes a machine-readable ``code`` and whether trying again can help; `nodes.errors` maps codes to doors.
"""

from __future__ import annotations

from typing import ClassVar


class ClusterError(Exception):
    """Root of everything that the cluster package raises on purpose."""

    code: ClassVar[str] = "cluster"
    retriable: ClassVar[bool] = False


class MalformedMessage(ClusterError):
    """Bytes from another node that are not what they should be."""

    code = "malformed_message"


class ClusterMisconfigured(ClusterError):
    """Settings that cannot make a cluster: no secret, a bad voter list, an address without protection (exit 78)."""

    code = "cluster_misconfigured"


class ClusterDenied(ClusterError):
    """Another node refused this one: wrong secret, another cluster, a name that is taken (exit 77)."""

    code = "cluster_denied"


class PeerUnavailable(ClusterError):
    """No node that could do this answered in time."""

    code = "peer_unavailable"
    retriable = True
