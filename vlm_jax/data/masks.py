"""Masks of objects: COCO's polygons and run lengths to arrays, without its library.

Run lengths count pixels down the columns, outside and inside of the object by turns. Compressed ones are text with six bits a character.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.data import images

_BITS, _MORE, _SIGN, _FIRST = 5, 32, 16, 48
"""A character of compressed run lengths has five bits of a number; the sixth says that more follow, the fifth of the last is the sign."""


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """bool [height, width] of an object.

    Args:
      segmentation: a list of polygons [x, y, x, y, ...] in pixels, which together are the object, or run lengths,
        `{"size": [height, width], "counts": ...}`, as a list or compressed.

    Raises:
      ValueError: another form, or another size than that of the image.
    """
    if height < 1 or width < 1 or height * width > images.MAX_PIXELS:
        raise ValueError(f"a mask of {width} x {height} pixels")
    if isinstance(segmentation, Mapping):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if size != [height, width]:
            raise ValueError(f"mask of size {size!r:.50} in an image of {height} x {width} (height x width)")
        return from_runs(uncompress(counts) if isinstance(counts, str | bytes) else counts, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f"mask {segmentation!r:.80}: a list of polygons, or run lengths with size and counts")
    return functools.reduce(np.logical_or, (from_polygon(polygon, height, width) for polygon in segmentation))


def from_runs(counts: Any, height: int, width: int) -> np.ndarray:
    """bool [height, width] of run lengths; ValueError where they are not those of so many pixels."""
    runs = np.asarray(counts)
    if runs.ndim != 1 or runs.dtype.kind not in "iu" or (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        raise ValueError(f"run lengths that are not those of {height} x {width} pixels")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def uncompress(counts: str | bytes) -> list[int]:
    """Run lengths of COCO's compressed form, in which from the fourth on each is the difference to the one two before.

    Raises:
      ValueError: characters that do not occur in it, or a number that breaks off.
    """
    data = counts.encode("ascii", errors="replace") if isinstance(counts, str) else counts
    found: list[int] = []
    value = shift = 0
    for character in data:
        part = character - _FIRST
        if not 0 <= part < 2 * _MORE:
            raise ValueError(f"compressed run lengths with the character {chr(character)!r}")
        value |= (part & (_MORE - 1)) << shift
        shift += _BITS
        if part & _MORE:
            continue
        if part & _SIGN:
            value -= 1 << shift
        found.append(value + found[-2] if len(found) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("compressed run lengths that break off")
    return found


def from_polygon(polygon: Sequence[float], height: int, width: int) -> np.ndarray:
    """bool [height, width]: the pixels whose centres lie inside, where lines that cross a column of centres enter and leave by turns.

    COCO's library rounds corners to a fifth of a pixel first: areas differ by about a hundredth of the outline's length.

    Raises:
      ValueError: no list of at least three points.
    """
    points = np.asarray(polygon, np.float64)
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        raise ValueError(f"polygon of {points.size} numbers: at least three points x, y are needed")
    x, y = points[0::2], points[1::2]
    x_next, y_next = np.roll(x, -1), np.roll(y, -1)
    first, last = (np.clip(np.ceil(edge - 0.5), 0, width).astype(int) for edge in (np.minimum(x, x_next), np.maximum(x, x_next)))
    edge = np.repeat(np.arange(len(x)), last - first)  # an edge for each column whose centre it crosses
    column = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - (last - first), last - first) + first[edge]
    crossing = y[edge] + (column + 0.5 - x[edge]) * (y_next - y)[edge] / (x_next - x)[edge]
    row = np.clip(np.ceil(crossing - 0.5), 0, height).astype(int)
    toggles = np.sort(column * height + row)
    return from_runs(np.diff(toggles, prepend=0, append=height * width), height, width)
