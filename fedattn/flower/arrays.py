"""Flower's Arrays without the copies of numpy's file readers and writers: the same bytes."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array

from fedattn.errors import ProtocolError

_STYPE = "numpy.ndarray"
_LENGTH = slice(8, 10)  # of the header that follows, in version 1.0 of numpy's format


def to_array(values: npt.NDArray[Any]) -> Array:
    """As `Array(values)`, for a vector (d,), in one copy.

    >>> to_array(np.arange(3.0)) == Array(np.arange(3.0))
    True
    """
    values = np.ascontiguousarray(values)
    data = b"".join([_header(values.dtype, values.shape), memoryview(values.data).cast("B")])
    return Array(str(values.dtype), values.shape, _STYPE, data)


def view(array: Array) -> npt.NDArray[Any]:
    """The values (d,) of a serialised vector, read-only, without a copy.

    ProtocolError("wire") if the bytes are not a vector of numbers.

    >>> view(to_array(np.arange(3, dtype=np.uint32)))
    array([0, 1, 2], dtype=uint32)
    """
    start = _LENGTH.stop + int.from_bytes(array.data[_LENGTH], "little")
    dtype, length = _parsed(array.data[:start])
    if array.stype != _STYPE or len(array.data) != start + length * dtype.itemsize:
        raise ProtocolError("wire", "an array is not a vector as numpy stores it")
    return np.frombuffer(array.data, dtype, length, start)


@lru_cache(maxsize=64)
def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    header = BytesIO()
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


@lru_cache(maxsize=64)
def _parsed(header: bytes) -> tuple[np.dtype[Any], int]:
    """Type and length."""
    stream = BytesIO(header)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        (length,) = shape
    except ValueError:
        raise ProtocolError("wire", "an array is not a vector as numpy stores it") from None
    if dtype.kind not in "iuf":
        raise ProtocolError("wire", "an array does not hold numbers")
    return dtype, length
