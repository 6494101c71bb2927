"""Explicit file lists: a table over exactly the DataFiles that a snapshot names, without listing anything.

DataFusion's Python API takes one path or folder for a table; the plan behind it takes a list. So the plan of
a table with one invented path is encoded once per schema, and its paths are replaced.
"""

from __future__ import annotations

import os.path
import threading
import urllib.parse
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine import dfplan_pb2
from storage.errors import StoreUnavailable
from storage.filecache import CacheCounters, FileCache, Lease

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pyarrow as pa
    from datafusion import DataFrame, SessionContext

    from storage.objects import ObjectStore, S3Options

_TEMPLATE_PATH: Final = "/template.parquet"
SCAN_NAME: Final = "files"
TEMPLATES_MAX: Final = 1_024
"""Encoded plans kept, one for each table schema: some hundred bytes for each column."""
ASKED_ALONE_MAX: Final = 8
"""Files of one folder of an object store that are asked for one by one; for more the folder is listed."""


class FileRoot:
    """Where the store's objects are, for DataFusion (`url`) and for looking whether they still exist.

    Files of a store that is not on this machine's disk are cached in `cache_folder`, unless `cache_bytes` is 0.
    """

    def __init__(
        self, store_url: str, options: S3Options | None, cache_folder: Path | None = None, cache_bytes: int = 0
    ) -> None:
        scheme, separator, rest = store_url.partition("://")
        self.bucket: str | None = None
        self._options = options
        self._store_url = store_url
        self._store: ObjectStore | None = None
        self._opening = threading.Lock()
        self._is_closed = False
        self._cache: FileCache | None = None
        if not separator or scheme == "file":
            self._folder = Path(urllib.parse.unquote(rest) if separator else store_url).absolute()
            self.url = "file://" + urllib.parse.quote(str(self._folder))
        else:
            self.bucket = rest.partition("/")[0]
            self.url = store_url.rstrip("/")
            if cache_folder is not None and cache_bytes:
                self._cache = FileCache(cache_folder.absolute(), cache_bytes, self._open_store)
        self.cache_url = "" if cache_folder is None else "file://" + urllib.parse.quote(str(cache_folder.absolute()))

    @property
    def cache_counters(self) -> CacheCounters:
        """What the cache of files has done; zeros without one."""
        return CacheCounters() if self._cache is None else self._cache.counters

    def lease(self) -> Lease:
        """For one statement: the cached files that it reads stay until it is released."""
        return Lease(self._cache)

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Those of `paths` that do not exist (any more). Blocking."""
        if self.bucket is None:
            folder = str(self._folder)
            return [path for path in paths if not os.path.isfile(f"{folder}/{path}")]
        return _missing(self._open_store(), paths)

    def close(self) -> None:
        """Let the connection to the object store go, and fetch nothing more. Idempotent."""
        if self._cache is not None:
            self._cache.close()
        with self._opening:
            self._is_closed = True
            if self._store is not None:
                self._store.close()

    def _open_store(self) -> ObjectStore:
        with self._opening:
            if self._is_closed:
                raise StoreUnavailable(f"{self._store_url}: the engine is closed")
            if self._store is None:
                from storage.objects import open_store

                self._store = open_store(self._store_url, self._options)
            return self._store


def _missing(store: ObjectStore, paths: Iterable[str]) -> list[str]:
    """One request for each file, or for each thousand of a folder where more than a few are looked for."""
    by_folder: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        by_folder[path.rpartition("/")[0]].append(path)
    missing: list[str] = []
    for folder, wanted in by_folder.items():
        if len(wanted) <= ASKED_ALONE_MAX:
            missing += [path for path in wanted if not store.exists(path)]
        else:
            there = {f"{folder}/{item.name}" for item in store.list(folder)}
            missing += [path for path in wanted if path not in there]
    return missing


class FileTables:
    """Makes DataFrames over lists of files; keeps one encoded plan per schema."""

    def __init__(self, context: SessionContext, root_url: str, cache_url: str = "") -> None:
        self._context = context
        self._root_url = root_url
        self._cache_url = cache_url
        self._templates: dict[pa.Schema, bytes] = {}

    def is_local(self, is_cached: bool) -> bool:
        """Whether the store, or the cache's folder, is on this machine's disk."""
        return (self._cache_url if is_cached else self._root_url).startswith("file://")

    def table(
        self, schema: pa.Schema, paths: Sequence[str], scan_name: str = SCAN_NAME, is_cached: bool = False
    ) -> DataFrame:
        """A table over the files at `paths`, relative to the store, or to the cache's folder if `is_cached`.

        What a file lacks of `schema` is NULL. `scan_name` is what plans call the scan and qualify its columns with.
        """
        from datafusion import LogicalPlan

        plan = dfplan_pb2.LogicalPlanNode.FromString(self._template(schema))
        plan.listing_scan.table_name.bare.table = scan_name
        root_url = self._cache_url if is_cached else self._root_url
        plan.listing_scan.paths[:] = [f"{root_url}/{path}" for path in paths]
        decoded = LogicalPlan.from_bytes(self._context, plan.SerializeToString())
        return self._context.create_dataframe_from_logical_plan(decoded)

    def _template(self, schema: pa.Schema) -> bytes:
        template = self._templates.get(schema)
        if template is None:
            frame = self._context.read_parquet(self._root_url + _TEMPLATE_PATH, schema=schema)
            template = frame.logical_plan().to_bytes(self._context)
            if len(self._templates) >= TEMPLATES_MAX:
                self._templates.clear()
            self._templates[schema] = template
        return template
