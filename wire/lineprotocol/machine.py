"""What the kernel needs of the machine: the compiler's settings, unaligned loads, wide products, bit counts.

Imported by the kernel's modules only, so that nothing else pays for numba.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

Bytes = npt.NDArray[np.uint8]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

PADDING: Final = 32
"""Bytes that the kernel may read past the last body; the scratch buffer has them, all newlines."""

_Function = TypeVar("_Function", bound="Callable[..., Any]")
_INT64 = ir.IntType(64)
_INT128 = ir.IntType(128)
_POISON_FREE = ir.Constant(ir.IntType(1), 0)


def _source_stamp() -> str:
    """A digest of all sources here, for the cache on disk."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_STAMP: Final = _source_stamp()


def _compiled(function: _Function, *, inline: bool) -> _Function:
    # Without reference counts (_nrt=False) arrays and tuples of arrays pass for nothing; so nothing here allocates.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": inline, "_nrt": False}
    compiler = cast("Any", njit)
    if inline:
        return cast("_Function", compiler(**options)(function))
    try:
        dispatcher = compiler(cache=True, **options)(function)
    except RuntimeError:
        # No folder to keep compiled code in (read-only files, no home): it is compiled in each process.
        return cast("_Function", compiler(**options)(function))
    # Numba keeps compiled code until the function's own file changes; but it has functions of others inlined.
    dispatcher._cache._cache_file._source_stamp = _STAMP
    return cast("_Function", dispatcher)


def jit(function: _Function) -> _Function:
    """Compile for this machine on first use, keep the code on disk, run without the GIL."""
    return _compiled(function, inline=False)


def inlined(function: _Function) -> _Function:
    """The same, but only as a part of its callers: a call that passes a dozen arrays costs more than most of these."""
    return _compiled(function, inline=True)


def _load64(typing_context: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), _INT64.as_pointer())
        return builder.load(pointer, align=1)

    return types.uint64(array, types.int64), generate


def _multiply_high(typing_context: Any, left: Any, right: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        product = builder.mul(builder.zext(arguments[0], _INT128), builder.zext(arguments[1], _INT128))
        return builder.trunc(builder.lshr(product, ir.Constant(_INT128, 64)), _INT64)

    return types.uint64(types.uint64, types.uint64), generate


def _trailing_zeros(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], _POISON_FREE)

    return types.int64(types.uint64), generate


def _leading_zeros(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], _POISON_FREE)

    return types.int64(types.uint64), generate


def _float_bits(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _INT64)

    return types.int64(types.float64), generate


signed = cast("Callable[[Any], int]", np.int64)
"""An int64 of any integer: compiled code must never mix signs, which would make a float of both."""
load64 = cast("Callable[[Bytes, int], np.uint64]", intrinsic(_load64))
"""The 8 bytes at an index, little-endian; not bounds-checked in any mode."""
multiply_high = cast("Callable[[np.uint64, np.uint64], np.uint64]", intrinsic(_multiply_high))
"""The upper half of a 128-bit product."""
trailing_zeros = cast("Callable[[np.uint64], int]", intrinsic(_trailing_zeros))
leading_zeros = cast("Callable[[np.uint64], int]", intrinsic(_leading_zeros))
float_bits = cast("Callable[[np.float64], np.int64]", intrinsic(_float_bits))
"""The bits of a double as an int64."""
