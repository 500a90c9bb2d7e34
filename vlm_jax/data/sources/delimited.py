"""CSV and TSV files of image paths and captions, such as open_clip's (`filepath`, `title`) and Flickr8k's `captions.txt` with a comma.

The first line names the columns, see `columns`; it also says whether tabs part them (always in a `.tsv`). An image on several lines is one
example with several captions, in the place of the first, with the other columns of the last. A column of whole numbers is read as numbers.
Rows are read from the file as they are asked for: a table takes 24 bytes of memory for each.
"""

import array
import csv
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from vlm_jax import errors
from vlm_jax.data import places
from vlm_jax.data.sources import base, columns

SUFFIXES = (".csv", ".tsv")
_LONGEST = 2**24
"""Bytes of a line."""


@dataclasses.dataclass(frozen=True)
class _Table:
    """Where the rows of a file are."""

    delimiter: str
    names: tuple[str, ...]
    chosen: columns.Columns
    images: columns.Below
    starts: np.ndarray
    sizes: np.ndarray
    """int64 [rows], in the order of the examples."""
    ends: np.ndarray
    """int64 [examples]: the rows of an example end before this one."""
    numbers: frozenset[str]
    """Columns of whole numbers."""
    digest: str


class Delimited(base.Sharded):
    """Files of rows, one after another; see the module."""

    def __init__(self, paths: Sequence[str], options: Mapping[str, str], field: str = "data"):
        """Raises InputError for a file without rows, of another form, whose quotes do not close, or whose first image is not there."""
        self._tables = base.each(lambda path: _index(path, options, field), paths)
        super().__init__(paths, [len(table.ends) for table in self._tables])
        self.fingerprint += f", {hashlib.sha256(' '.join(table.digest for table in self._tables).encode()).hexdigest()[:16]}"
        self._files = base.Files(paths)

    def __getitem__(self, index: int) -> base.Example:
        """Raises RecordError for a row or an image that cannot be used, InfrastructureError where the disk or the network fails."""
        shard, place = self._find(index)
        table = self._tables[shard]
        try:
            rows = [self._row(shard, row) for row in range(int(table.ends[place - 1]) if place else 0, int(table.ends[place]))]
            found = columns.example(rows[-1], table.chosen, table.images, str(index))
            found["captions"] = [caption for row in rows for caption in columns.captions(row, table.chosen)]
        except (ValueError, csv.Error, OSError) as error:
            raise base.unusable(self.where(index), error) from error
        return found | {name: int(found[name]) for name in table.numbers & found.keys()}

    def where(self, index: int) -> str:
        """File and place of the first row, for messages."""
        shard, place = self._find(index)
        table = self._tables[shard]
        row = int(table.ends[place - 1]) if place else 0
        return f"{self.paths[shard]}: row at byte {table.starts[row]}"

    def _row(self, shard: int, row: int) -> dict[str, str]:
        table = self._tables[shard]
        text = self._files.read(shard, int(table.starts[row]), int(table.sizes[row]), "row").decode("utf-8")
        values = next(csv.reader(text.splitlines(keepends=True), delimiter=table.delimiter, strict=True))
        if len(values) != len(table.names):
            raise ValueError(f"{len(values)} columns instead of {len(table.names)}; put captions with {table.delimiter!r} in quotes")
        return dict(zip(table.names, values, strict=True))


def _index(path: str, options: Mapping[str, str], field: str) -> _Table:
    try:
        with places.opened(path) as file:
            return _read(path, file, options, field)
    except OSError as error:
        raise errors.InputError(f"{field} {path}: cannot be read ({error.strerror or error}); check its permissions") from error
    except (csv.Error, UnicodeDecodeError, _LineError) as error:
        raise errors.InputError(f"{field} {path}: {error}; save it as CSV in UTF-8, with quotes around texts that have quotes") from error


def _read(path: str, file: BinaryIO, options: Mapping[str, str], field: str) -> _Table:
    digest = hashlib.sha256()
    first = file.readline(_LONGEST).decode("utf-8-sig")
    file.seek(0)
    delimiter = "\t" if path.endswith(".tsv") or "\t" in first else ","
    rows = _rows(file, delimiter, digest)
    names = next(rows, (0, 0, []))[2]
    if not names:
        raise errors.InputError(f"{field} {path}: an empty file; copy it again, or leave it out")
    chosen = columns.choose(names, options, path, field)
    root = options.get("root") or (path.rpartition("/")[0] if places.is_remote(path) else os.path.dirname(os.path.abspath(path)))
    images, image = columns.Below(root), names.index(chosen.image)
    starts, sizes, names_of_images = array.array("q"), array.array("q"), array.array("Q")
    numbers = {i for i, name in enumerate(names) if name not in chosen.taken}
    first_images: list[str] = []
    for number, (start, size, row) in enumerate(rows, start=1):
        if not row:
            continue
        name = f"\0{number}"  # a row of another width is a bad record of its own
        if len(row) == len(names):
            if not starts and places.is_remote(row[image]):
                raise errors.InputError(f"{field} {path}: {columns.to_download(path, chosen.image, chosen.captions)}")
            if len(first_images) < columns.FIRST:
                first_images.append(row[image])
            try:
                name = row[image] if columns.is_embedded(row[image]) else images.inside(row[image])
            except ValueError as error:
                raise errors.InputError(f"{field} {path}: row {number}: {error}; '{path}#root=FOLDER' says where paths begin") from error
        starts.append(start)
        sizes.append(size)
        names_of_images.append(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))
        if numbers and len(row) == len(names):
            numbers -= {i for i in numbers if not (row[i].isascii() and row[i].isdecimal() and len(row[i]) < 16)}
    if not starts:
        raise errors.InputError(f"{field} {path}: has no rows; leave it out")
    columns.check_first(first_images, images, path, field)
    order, ends = _grouped(np.asarray(names_of_images))
    numeric = frozenset(names[i] for i in numbers)
    return _Table(
        delimiter, tuple(names), chosen, images, np.asarray(starts)[order], np.asarray(sizes)[order], ends, numeric, digest.hexdigest()
    )


class _LineError(ValueError):
    """A line that is none."""


def _rows(file: BinaryIO, delimiter: str, digest: Any) -> Iterator[tuple[int, int, list[str]]]:
    """Start, size and values of each row: several lines where a quoted text has several."""
    place = 0

    def lines() -> Iterator[str]:
        nonlocal place
        while line := file.readline(_LONGEST):
            if len(line) == _LONGEST:
                raise _LineError(f"a line of more than {_LONGEST} bytes")
            digest.update(line)
            text = line.decode("utf-8" if place else "utf-8-sig")
            place += len(line)
            yield text

    start = 0
    for row in csv.reader(lines(), delimiter=delimiter, strict=True):
        yield start, place - start, row
        start = place


def _grouped(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows with those of one image side by side, in the order of the images' first rows; and where the rows of each image end."""
    _, first, group = np.unique(names, return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.argsort(rank[group], kind="stable"), np.cumsum(np.bincount(rank[group]))
