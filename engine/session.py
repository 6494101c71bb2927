"""The one place that knows DataFusion: how it is set up, how plans reach it, how its errors read.

`engine.engine` opens a `Session` for the first query; nothing here imports DataFusion before that, so an idle
process does not carry it.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from engine.changes import ChangeKind
from engine.errors import (
    EngineError,
    InvalidParameter,
    InvalidStatement,
    NotReadOnly,
    NotSupported,
    QueryFailed,
    QueryMemoryExhausted,
    StatementFailed,
    UnknownTable,
)
from storage.errors import SnapshotTooOld, StorageError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from datafusion import DataFrame, Expr, SessionContext
    from datafusion.object_store import AmazonS3

    from storage.objects import S3Options

CATALOG: Final = "public"
SCHEMA: Final = "iox"
SYSTEM_SCHEMA: Final = "system"
LAYERS_SCHEMA: Final = "_runnel_layers"
METADATA_CACHE: Final = "128M"
"""Parquet footers and page indexes kept, so that a repeated query reads none."""
THREADS_SPARE: Final = 4
"""DataFusion's threads above the cores: a join that cannot be cancelled must not starve the other queries."""
BUILD_BYTES_MAX: Final = 64 * 2**20
BUILD_ROWS_MAX: Final = 1_000_000
"""Up to so much the smaller side of a join is put together once. To divide both sides by their keys, as DataFusion does
from 1 MiB on, copies every row of the larger one: a merge of layers took twice the CPU."""
STACK_BYTES: Final = 16 * 2**20
"""Stack of DataFusion's threads: plans are trees that its code walks by recursion."""

_TABLE_MISSING: Final = re.compile(r"table '([^']*)' not found")
_READ_ONLY: Final = re.compile(r"(DDL|DML|Statement) not supported")
_EXHAUSTED: Final = re.compile(r"Resources exhausted|Not enough memory|disk space during the spilling")
_FILE_MISSING: Final = re.compile(r"Object at location .* not found|No such file or directory|NoSuchKey")
_STORE_DOWN: Final = re.compile(r"Object Store error|Generic \w+ error")
_UNCOMPUTABLE: Final = re.compile(r"Arrow error: (Divide by zero|Cast|Arithmetic overflow|Compute|Parser|Invalid arg)")
_IN_A_SCAN: Final = re.compile(
    r"Parquet error: External: Compute error: Error evaluating filter predicate: ArrowError\("
    r"(?:Divide|Cast|ArithmeticOverflow|Compute|Parse|InvalidArg)\w+(?:\(\"(?P<what>.*)\"\))?, \w+(?:\(.*\))?\)"
)
"""The same of a condition that the scan of a file looks at. What stands in it is quoted as Rust does for debugging."""
_BAD_FILE: Final = re.compile(r"Parquet error: ")
_CHANGES: Final = {
    "Dml: op=[Insert Into] ": ChangeKind.INSERT,
    "Dml: op=[Delete] ": ChangeKind.DELETE,
    "Dml: op=[Update] ": ChangeKind.UPDATE,
}
_PREFIX: Final = re.compile(r"^DataFusion error: ")


def new_context(
    memory_bytes: int, spill_folder: Path | None, target_partitions: int, batch_rows: int, spill_bytes_max: int
) -> SessionContext:
    """A DataFusion context with its own memory pool and caches, and the names that InfluxDB 3 has."""
    # DataFusion reads these once, when it is imported; there is no other way to tell it.
    os.putenv("TOKIO_WORKER_THREADS", str(target_partitions + THREADS_SPARE))
    os.putenv("RUST_MIN_STACK", str(STACK_BYTES))
    from datafusion import RuntimeEnvBuilder, SessionConfig, SessionContext

    options = {
        "datafusion.sql_parser.enable_ident_normalization": "false",
        "datafusion.execution.parquet.pushdown_filters": "true",
        "datafusion.execution.collect_statistics": "true",
        "datafusion.optimizer.hash_join_single_partition_threshold": str(BUILD_BYTES_MAX),
        "datafusion.optimizer.hash_join_single_partition_threshold_rows": str(BUILD_ROWS_MAX),
        "datafusion.catalog.information_schema": "true",
    }
    config = (
        SessionConfig(options)
        .with_default_catalog_and_schema(CATALOG, SCHEMA)
        .with_target_partitions(target_partitions)
        .with_batch_size(batch_rows)
    )
    runtime = RuntimeEnvBuilder().with_fair_spill_pool(memory_bytes)
    if spill_folder is None or spill_bytes_max == 0:
        context = SessionContext(config, runtime.with_disk_manager_disabled())
    else:
        # Of folder and limit DataFusion forgets the one when it is told the other; the system's folder it keeps.
        os.putenv("TMPDIR", str(spill_folder))
        context = SessionContext(config, runtime.with_disk_manager_os())
        _set_runtime(context, "max_temp_directory_size", f"{max(1, spill_bytes_max >> 20)}M")
    _set_runtime(context, "metadata_cache_limit", METADATA_CACHE)
    return context


def _set_runtime(context: SessionContext, name: str, value: str) -> None:
    quoted = value.replace("'", "''")
    context.sql(f"SET datafusion.runtime.{name} = '{quoted}'")


def set_partitions(context: SessionContext, partitions: int) -> None:
    """How many partitions the statements planned from now on have."""
    set_option(context, "execution.target_partitions", str(partitions))


def set_option(context: SessionContext, name: str, value: str) -> None:
    """An option of DataFusion's, without its ``datafusion.``, for statements planned from now on."""
    context.sql(f"SET datafusion.{name} = {value}")


def register_s3(context: SessionContext, bucket: str, options: S3Options) -> None:
    """Make ``s3://bucket`` readable."""
    context.register_object_store("s3://", s3_store(bucket, options), bucket)


def s3_store(bucket: str, options: S3Options) -> AmazonS3:
    """What reads ``s3://bucket``, with its connections: one for all contexts of a process that read it."""
    from datafusion.object_store import AmazonS3

    return AmazonS3(
        bucket_name=bucket,
        region=options.region or "us-east-1",
        access_key_id=options.access_key,
        secret_access_key=options.secret_key,
        session_token=options.session_token,
        endpoint=options.endpoint,
        allow_http=options.allow_http,
    )


def bind(params: Mapping[str, object]) -> dict[str, pa.Scalar]:
    """Values for ``$name``. Raises InvalidParameter."""
    bound = {}
    for name, value in params.items():
        if value is not None and not isinstance(value, (bool, int, float, str)):
            raise InvalidParameter(f"parameter {name!r}: use a number, a string, true, false or null")
        try:
            bound[name.removeprefix("$")] = pa.scalar(value)
        except (OverflowError, pa.ArrowInvalid, UnicodeEncodeError) as error:
            raise InvalidParameter(f"parameter {name!r}: {error}") from error
    return bound


def read_statement(context: SessionContext, statement: str, params: Mapping[str, Any] | None = None) -> DataFrame:
    """Plan one reading statement; whatever would change something is refused. Raises EngineError."""
    return _planned(context, statement, params, may_change=False)


def change_statement(
    context: SessionContext, statement: str, params: Mapping[str, Any] | None = None
) -> tuple[DataFrame, ChangeKind, str]:
    """Plan the rows of a statement that writes, with all columns of its table; and the table's name as spelt there.

    Of an INSERT and an UPDATE they are what is to be written, of a DELETE what is to go. Nothing is written: DataFusion
    writes only when its own plan is run. Raises EngineError.
    """
    from datafusion.expr import DmlStatement

    frame = _planned(context, statement, params, may_change=True)
    plan = frame.logical_plan()
    change = plan.to_variant()
    # It has no other way to say which change it is; the name of a table comes later in the line.
    shown = plan.display()
    kinds = [kind for prefix, kind in _CHANGES.items() if shown.startswith(prefix)]
    if not isinstance(change, DmlStatement) or not kinds:
        raise NotSupported("of the statements that write INSERT INTO, UPDATE and DELETE are served")
    return context.create_dataframe_from_logical_plan(plan.inputs()[0]), kinds[0], change.table_name()


def assigned(frame: DataFrame, names: Iterable[str]) -> list[str]:
    """Those of ``names`` to which an UPDATE, whose rows are ``frame``, gives a value."""
    from datafusion.expr import Projection

    projection = frame.logical_plan().to_variant()
    if not isinstance(projection, Projection):
        raise NotSupported("an UPDATE that does not say which columns it changes")
    kept = {_kept(item) for item in projection.projections()}
    return [name for name in names if name not in kept]


def _kept(item: Expr) -> str | None:
    """The column that an item of a SELECT list hands on under its own name."""
    from datafusion.expr import Alias, Expr

    variant = item.to_variant()
    name = variant.alias() if isinstance(variant, Alias) else None
    value = variant.expr() if isinstance(variant, Alias) else item
    inner = value if isinstance(value, Expr) else Expr(value)
    if inner.variant_name() != "Column":  # first: most others have no variant in Python
        return None
    column = str(inner.to_variant().name())
    return column if name in (None, column) else None


def _planned(
    context: SessionContext, statement: str, params: Mapping[str, Any] | None, *, may_change: bool
) -> DataFrame:
    from datafusion import SQLOptions

    options = SQLOptions().with_allow_ddl(False).with_allow_dml(may_change).with_allow_statements(False)
    try:
        return context.sql_with_options(statement, options, param_values=dict(params) if params else None)
    except Exception as error:
        raise planning_error(error) from error
    except BaseException as error:
        if is_panic(error):
            raise planning_error(error) from error
        raise


def is_panic(error: BaseException) -> bool:
    """Whether Rust code panicked: pyo3 derives that from BaseException and exports no name for it."""
    return type(error).__name__ == "PanicException"


def planning_error(error: BaseException) -> EngineError | StorageError:
    """The error of ours that an error of DataFusion's planner means."""
    text = _PREFIX.sub("", str(error))
    missing = _TABLE_MISSING.search(text)
    if missing:
        return UnknownTable(text.replace(missing.group(1), missing.group(1).removeprefix(f"{CATALOG}.{SCHEMA}.")))
    if _READ_ONLY.search(text):
        return NotReadOnly(f"only reading statements are served here: {text}")
    if text.startswith("This feature is not implemented"):
        return NotSupported(text)
    failed = running_error(error)
    if is_panic(error) or _BAD_FILE.match(text):
        return failed
    return InvalidStatement(text) if isinstance(failed, QueryFailed) else failed


def running_error(error: BaseException) -> EngineError | StorageError:
    """The error of ours that an error of DataFusion's execution means."""
    text = _PREFIX.sub("", str(error))
    if is_panic(error):
        return QueryFailed(f"the query engine failed: {text}")
    if _EXHAUSTED.search(text):
        return QueryMemoryExhausted(f"the query needs more memory than queries may use here: {text}")
    if _FILE_MISSING.search(text):
        return SnapshotTooOld(f"a file of the snapshot is gone: {text}")
    if _STORE_DOWN.search(text):
        return StoreUnavailable(f"the object store did not answer a query: {text}")
    if found := _IN_A_SCAN.match(text):
        what = (found["what"] or "division by zero").replace('\\"', '"')
        return StatementFailed(f"a condition cannot be computed: {what}")
    return StatementFailed(text) if _UNCOMPUTABLE.match(text) else QueryFailed(text)
