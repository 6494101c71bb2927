"""The folder that a node lives in. Driven by `nodes.node.run_node`.

A Ray worker imports from the folder in which its driver runs, before it imports what is installed: a folder `storage`
beside a user's shell would be taken for ours. So a node that may use Ray lives in its own data folder from the start.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nodes.settings_model import Settings


def at_home(settings: Settings) -> Settings:
    """The same settings, whose relative paths mean what they meant, with the process in its data folder, if Ray may
    come. Without Ray nothing changes."""
    if not settings.ray.address:
        return settings
    settled = dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, dir=str(settings.data_dir)),
        store=dataclasses.replace(settings.store, url=_absolute(settings.store.url)),
        cluster=dataclasses.replace(settings.cluster, secret_file=_absolute(settings.cluster.secret_file)),
        ray=dataclasses.replace(settings.ray, token_file=_absolute(settings.ray.token_file)),
        tls=dataclasses.replace(
            settings.tls,
            ca=_absolute(settings.tls.ca),
            cert=_absolute(settings.tls.cert),
            key=_absolute(settings.tls.key),
        ),
    )
    settled.data_dir.mkdir(parents=True, exist_ok=True)
    os.chdir(settled.data_dir)
    return settled


def _absolute(path: str) -> str:
    return path if not path or "://" in path else str(Path(path).expanduser().absolute())
