"""The .npy format, read by a parser of our own that evaluates nothing.

numpy's parser compiles the header as Python: CPython 3.11 may fail when two threads do so at the same time, and a hostile header costs
memory. Only plain numbers and strings are read, never objects.
"""

import dataclasses
import math
import re
import struct

import numpy as np

BYTES = 12 + 65536
"""As much of the start of a file as a header may take."""
_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    r"\{\s*'descr'\s*:\s*'([<>|=]?[a-zA-Z]\d{1,6})'\s*,\s*'fortran_order'\s*:\s*(True|False)\s*,\s*'shape'\s*:\s*\(([\d\s,]{0,200})\)\s*,?\s*\}\s*"
)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a .npy holds, and where."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    """Bytes before the values."""

    @property
    def size(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def header(data: bytes) -> Header:
    """Reads the header at the start of `data`.

    Raises:
      ValueError: no .npy, values of another type than numbers, truth values and strings, or the axes in Fortran's order.
    """
    if not data.startswith(_MAGIC) or len(data) < 12 or data[6] not in (1, 2, 3):
        raise ValueError("not a .npy")
    start = 10 if data[6] == 1 else 12
    length = int(struct.unpack_from("<H" if data[6] == 1 else "<I", data, 8)[0])
    match = _HEADER.fullmatch(data[start : start + length].decode("latin1")) if length <= BYTES - 12 else None
    if match is None:
        raise ValueError("a .npy of objects, fields or an unknown header; nothing is unpickled, save plain numbers or strings")
    dtype = np.dtype(match[1])
    if dtype.kind not in "biufUS":
        raise ValueError(f"a .npy of {dtype}: nothing is unpickled, save plain numbers or strings")
    shape = tuple(int(n) for n in match[3].split(",") if n.strip())
    if match[2] == "True" and len(shape) > 1:
        raise ValueError("a .npy in Fortran's order; save np.ascontiguousarray of it")
    return Header(dtype, shape, start + length)


def parse(data: bytes) -> np.ndarray:
    """The array of a whole file.

    Raises:
      ValueError: as `header`, or fewer or more values than its shape says.
    """
    found = header(data)
    if len(data) - found.start != found.size:
        raise ValueError(f"a .npy of {found.dtype}{list(found.shape)} with {len(data) - found.start} bytes instead of {found.size}")
    return np.frombuffer(data, found.dtype, offset=found.start).reshape(found.shape)
