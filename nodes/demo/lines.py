"""Arrow tables to line protocol, whole columns at a time.

Pure. Driven by `nodes.cli.demo`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nodes.demo.sample import Sample

TAG_ESCAPES: Final = (("\\", "\\\\"), (",", "\\,"), ("=", "\\="), (" ", "\\ "))
STRING_ESCAPES: Final = (("\\", "\\\\"), ('"', '\\"'))


def encode(sample: Sample) -> pa.ChunkedArray:
    """One string for each row, with its newline. Null fields and tags are left out; the time is in seconds."""
    rows, shape = sample.rows, sample.shape
    key = _join("", pa.scalar(_escaped(shape.name)), *(_tag(name, rows[name]) for name in shape.tags))
    fields = _join("", *(_field(name, rows[name]) for name in shape.fields))
    time = pc.cast(rows["time"], pa.string())
    return _join(" ", key, pc.utf8_slice_codeunits(fields, 1), pc.binary_join_element_wise(time, "\n", ""))


def bodies(lines: pa.ChunkedArray, lines_max: int) -> Iterator[tuple[int, int, bytes]]:
    """(first line from 1, lines, bytes) of each request: neighbouring strings already lie side by side in memory."""
    whole = lines.combine_chunks()
    chunks = whole.chunks if isinstance(whole, pa.ChunkedArray) else [whole]
    first = 1
    for chunk in chunks:
        for start in range(0, len(chunk), lines_max):
            part = chunk.slice(start, lines_max)
            yield first, len(part), _bytes(part)
            first += len(part)


def _bytes(part: pa.StringArray) -> bytes:
    _, offsets, data = part.buffers()
    ends = pa.Array.from_buffers(pa.int32(), len(part) + 1, [None, offsets], offset=part.offset)
    begin, end = ends[0].as_py(), ends[len(part)].as_py()
    return bytes(data.slice(begin, end - begin))


def _join(separator: str, *parts: Any) -> Any:
    return pc.binary_join_element_wise(*parts, separator)


def _tag(name: str, values: pa.ChunkedArray) -> Any:
    text = values
    for plain, escaped in TAG_ESCAPES:
        text = pc.replace_substring(text, plain, escaped)
    return pc.coalesce(pc.binary_join_element_wise(f",{_escaped(name)}=", text, ""), "")


def _field(name: str, values: pa.ChunkedArray) -> Any:
    """``,name=value``, or nothing where the value is null."""
    before = f",{_escaped(name)}="
    if pa.types.is_string(values.type):
        for plain, escaped in STRING_ESCAPES:
            values = pc.replace_substring(values, plain, escaped)
        joined = pc.binary_join_element_wise(before + '"', values, '"', "")
    else:
        after = "i" if pa.types.is_integer(values.type) else ""
        joined = pc.binary_join_element_wise(before, pc.cast(values, pa.string()), after, "")
    return pc.coalesce(joined, "")


def _escaped(name: str) -> str:
    for plain, escaped in TAG_ESCAPES:
        name = name.replace(plain, escaped)
    return name
