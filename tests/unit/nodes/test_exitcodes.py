"""Every error that can end a process has a documented exit code."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from cluster import errors as cluster_errors
from cluster.errors import ClusterError
from nodes.exitcodes import BY_CLUSTER_CODE, BY_STORAGE_CODE, MEANINGS, ExitCode, NodeError, PortTaken, exit_code
from nodes.lockfile import DataFolderLocked
from nodes.settings import SettingsError
from storage import errors
from storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator


def classes(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for child in root.__subclasses__():
        yield from classes(child)


def test_the_table_has_every_storage_error_and_no_other() -> None:
    codes = {c.code for c in classes(StorageError) if issubclass(c, StorageError) and c.__module__ == errors.__name__}
    assert codes == set(BY_STORAGE_CODE)


def test_the_table_has_every_cluster_error_and_no_other() -> None:
    found = classes(ClusterError)
    codes = {c.code for c in found if issubclass(c, ClusterError) and c.__module__ == cluster_errors.__name__}
    assert codes == set(BY_CLUSTER_CODE)


def test_every_node_error_has_a_code_of_its_own() -> None:
    found = [c for c in classes(NodeError) if issubclass(c, NodeError)]
    assert len({c.code for c in found}) == len(found)
    assert {c.exit_code for c in found} <= set(ExitCode)


def test_every_exit_code_is_explained() -> None:
    assert set(MEANINGS) == set(ExitCode)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("x"), 78),
        (PortTaken("x"), 69),
        (errors.StoreUnsuitable("x"), 74),
        (errors.FsyncFailed("x"), 74),
        (errors.LogDamaged("x"), 74),
        (errors.StoreUnavailable("x"), 69),
        (errors.Fenced("x"), 75),
        (cluster_errors.ClusterMisconfigured("x"), 78),
        (cluster_errors.ClusterDenied("x"), 77),
        (cluster_errors.PeerUnavailable("x"), 69),
        (OSError(errno.EADDRINUSE, "in use"), 69),
        (OSError(errno.ENOSPC, "full"), 74),
        (PermissionError(errno.EACCES, "denied"), 77),
        (ZeroDivisionError(), 70),
        (ExceptionGroup("both", [errors.StoreUnavailable("x"), errors.Fenced("x")]), 75),
        (ExceptionGroup("nested", [ExceptionGroup("in", [errors.FsyncFailed("x")]), ValueError()]), 74),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_a_locked_folder_is_try_later() -> None:
    from pathlib import Path

    error = DataFolderLocked(Path("/data"), 42)
    assert exit_code(error) == 75
    assert "process 42" in str(error)
    assert "/data" in str(error)
    assert "another process" in str(DataFolderLocked(Path("/data"), None))
