"""From settings to the object store's options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.objects import S3Options

if TYPE_CHECKING:
    from nodes.settings_model import Settings


def s3_options(settings: Settings) -> S3Options | None:
    """How to reach S3; None for a folder. Plain HTTP is used only for an endpoint that says ``http://``."""
    store = settings.store
    if not store.url.startswith("s3://"):
        return None
    return S3Options(
        endpoint=store.s3_endpoint or None,
        region=store.s3_region or None,
        access_key=store.s3_access_key.reveal() or None,
        secret_key=store.s3_secret_key.reveal() or None,
        allow_http=store.s3_endpoint.startswith("http://"),
        request_seconds=store.request_seconds,
    )
