"""Arrays: data sets in `.npz` files, as CIFAR and its like are often kept.

    images    uint8 [n, h, w, 3], or [n, h, w] and [n, h, w, 1] for grey       or jpeg (png, webp), offsets: encoded images end to
    labels    integers [n], names [n], or 0 and 1 [n, c] for several classes   end, uint8 [bytes], and where each begins, int [n + 1]
    names     str [c], the classes
    captions  str [n] or [n, m], empty ones are left out
    keys      str [n]

Only the images are needed. Values are read from the file as they are asked for, where it is not compressed (`np.savez`); else
(`np.savez_compressed`) every process unpacks them in memory. Pixels come as BMP, which is lossless and costs least to make.
"""

import dataclasses
import struct
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax import errors
from vlm_jax.data import classes as class_names
from vlm_jax.data import images, places, records
from vlm_jax.data.sources import base, npz

_ENCODED = ("jpeg", "png", "webp")


@dataclasses.dataclass(frozen=True)
class _Table:
    """What one file holds."""

    images: npz.Member
    offsets: np.ndarray | None
    """int64 [n + 1] of encoded images; None: pixels."""
    columns: Mapping[str, np.ndarray]
    """labels, captions and keys."""
    names: tuple[str, ...]
    count: int


class Arrays(base.Sharded):
    """`.npz` files, one after another; see the module."""

    def __init__(self, paths: Sequence[str]):
        """Raises InputError for a file that is damaged, holds objects, or has arrays of other names or shapes."""
        places.only_local(list(paths), "arrays")
        self._tables = [_load(path) for path in paths]
        super().__init__(paths, [table.count for table in self._tables])
        for path, table in zip(paths, self._tables, strict=True):
            if table.names != self._tables[0].names:
                raise errors.InputError(f"{path}: names {table.names[:5]} are not those of {paths[0]}; labels would mean other classes")
        names = self._tables[0].names
        self.classes = class_names.Classes(tuple((name,) for name in names)) if names else None
        self._files = base.Files(paths)
        self._unpacked: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> base.Example:
        """Raises RecordError where the file changed, InfrastructureError where the disk fails."""
        shard, place = self._find(index)
        table = self._tables[shard]
        example: base.Example = {"key": str(index), "captions": []}
        for name, column in table.columns.items():
            value = column[place]
            if name == "captions":
                example["captions"] = [str(caption) for caption in np.atleast_1d(value) if caption]
            elif name == "keys":
                example["key"] = str(value)
            elif column.ndim == 2:
                example["labels"] = np.flatnonzero(value).tolist()
            else:
                example["label"] = value.item()
                if table.names and column.dtype.kind in "iu":
                    example["label_name"] = table.names[int(value)]
        try:
            example["image"] = self._image(shard, place)
        except (*npz.DAMAGED, KeyError) as error:
            raise records.RecordError(f"{self.where(index)}: {error}") from error
        except OSError as error:
            raise errors.InfrastructureError(f"{self.where(index)}: cannot be read ({error}); is the disk still there?") from error
        return example

    def where(self, index: int) -> str:
        """File and place, for messages."""
        shard, place = self._find(index)
        return f"{self.paths[shard]}: image {place}"

    def _image(self, shard: int, place: int) -> bytes:
        table = self._tables[shard]
        if table.offsets is not None:
            return self._values(shard, int(table.offsets[place]), int(table.offsets[place + 1]))
        shape = table.images.header.shape[1:]
        size = int(np.prod(shape))
        pixels = np.frombuffer(self._values(shard, place * size, (place + 1) * size), np.uint8).reshape(*shape[:2], -1)
        return bitmap(pixels)

    def _values(self, shard: int, start: int, stop: int) -> bytes:
        member = self._tables[shard].images
        if member.start >= 0:
            return self._files.read(shard, member.start + start, stop - start, "image")
        with self._lock:
            if shard not in self._unpacked:
                with npz.File(self.paths[shard]) as file:
                    self._unpacked[shard] = file.unpack(member)
        first = member.header.start
        return self._unpacked[shard][first + start : first + stop]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_unpacked": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def bitmap(pixels: np.ndarray) -> bytes:
    """uint8 [h, w, 3] or [h, w, 1] as a BMP file: rows from below, blue first, filled up to four bytes."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, -(-3 * width // 4) * 4), np.uint8)
    rows[:, : 3 * width].reshape(height, width, 3)[:] = pixels[::-1, :, ::-1]
    start = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54 + rows.size, 0, 0, 54, 40, width, height, 1, 24, 0, rows.size, 2835, 2835, 0, 0)
    return start + rows.tobytes()


def _load(path: str) -> _Table:
    try:
        with npz.File(path) as file:
            return _table(file)
    except npz.DAMAGED as error:
        raise errors.InputError(f"{path}: {error}") from error
    except OSError as error:
        raise errors.InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _table(file: npz.File) -> _Table:
    if "images" in file.names:
        member, offsets = file.member("images"), None
        count = _pixels(member)
    elif "offsets" in file.names and (encoded := [name for name in _ENCODED if name in file.names]):
        member, offsets = file.member(encoded[0]), _offsets(file.read("offsets"))
        count = len(offsets) - 1
        if member.header.dtype != np.uint8 or len(member.header.shape) != 1:
            raise ValueError(f"{member}: must be uint8 [bytes], encoded images end to end")
        if offsets[-1] > member.header.size:
            raise ValueError(f"offsets: end at {offsets[-1]} of {member.header.size} bytes of {member.name}")
    else:
        raise ValueError(f"has {file.names or 'no arrays'}; images, or jpeg (or png, webp) and offsets are needed, see docs/data.md")
    if not count:
        raise ValueError("holds no images; leave it out")
    columns = {column: file.read(column) for column in ("labels", "captions", "keys") if column in file.names}
    if "labels" in columns and columns["labels"].ndim == 2 and columns["labels"].shape[1] == 1:
        columns["labels"] = columns["labels"][:, 0]  # as Keras has them
    names = file.read("names") if "names" in file.names else np.zeros(0, "U1")
    if names.dtype.kind != "U" or names.ndim != 1:
        raise ValueError(f"names {names.dtype}{list(names.shape)}: must be strings [c]")
    _check_columns(columns, count, len(names))
    return _Table(member, offsets, columns, tuple(names.tolist()), count)


def _offsets(offsets: np.ndarray) -> np.ndarray:
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 1:
        raise ValueError(f"offsets {offsets.dtype}{list(offsets.shape)}: must be integers [n + 1]")
    if offsets.max() >= 2**62 or offsets.min() < 0 or (np.diff(offsets.astype(np.int64)) < 0).any():
        raise ValueError("offsets: must not decrease, nor be negative")
    return offsets.astype(np.int64)


def _pixels(member: npz.Member) -> int:
    """The number of images."""
    shape = member.header.shape
    told = f"{member}: must be uint8 [n, h, w, 3] or [n, h, w]"
    if member.header.dtype != np.uint8:
        raise ValueError(f"{told}; values from 0 to 255 as integers")
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        raise ValueError(f"{told}; the channels come first, save images.transpose(0, 2, 3, 1)")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise ValueError(told)
    if not 0 < shape[1] * shape[2] <= images.MAX_PIXELS:
        raise ValueError(f"{told}; an image has 1 to {images.MAX_PIXELS} pixels")
    return shape[0]


def _check_columns(columns: Mapping[str, np.ndarray], count: int, names: int) -> None:
    for name, column in columns.items():
        if column.ndim not in (1, 2) or len(column) != count:
            raise ValueError(f"{name} {column.dtype}{list(column.shape)}: must have one row for each of the {count} images")
        kinds = "iuU" if name == "labels" else "U"
        several = name == "labels" and column.ndim == 2
        if column.dtype.kind not in ("biu" if several else kinds) or (name == "keys" and column.ndim == 2):
            raise ValueError(f"{name} {column.dtype}{list(column.shape)}: must be {'integers' if name == 'labels' else 'strings'}")
        if several:
            if column.size and (column.min() < 0 or column.max() > 1):
                raise ValueError(f"labels {list(column.shape)}: with one column for each class they are 0 or 1")
            if names and column.shape[1] != names:
                raise ValueError(f"labels {list(column.shape)}: {names} names need {names} columns")
        elif name == "labels" and names and column.dtype.kind in "iu" and not 0 <= column.min() <= column.max() < names:
            raise ValueError(f"labels from {column.min()} to {column.max()}: with {names} names they are 0 to {names - 1}")
