"""JSON lines: a map a line with an image, its captions and what else it has; see `columns`.

The image is a path, below the folder of the file, or embedded in base64. A line is an example; `captions` may be a list. Lines are read
from the file as they are asked for: a file takes 16 bytes of memory for each.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax import errors
from vlm_jax.data import places, records
from vlm_jax.data.sources import base, columns

_CHUNK = 2**24


class JsonLines(base.Sharded):
    """Files of lines, one after another; see the module."""

    def __init__(self, paths: Sequence[str], options: Mapping[str, str], field: str = "data"):
        """Raises InputError for a file without lines, with a first line of another form, or with a last one that is cut."""
        self._lines = base.each(lambda path: _lines(path, field), paths)
        super().__init__(paths, [len(starts) for starts, _ in self._lines])
        self.fingerprint += f", {hashlib.sha256(b''.join(starts.tobytes() for starts, _ in self._lines)).hexdigest()[:16]}"
        self._files = base.Files(paths)
        self._columns, self._images = [], []
        for shard, path in enumerate(paths):
            first = self._checked(shard, 0, field)
            self._columns.append(columns.choose(self._names(shard), options, path, field))
            value = first.get(self._columns[-1].image)
            if isinstance(value, str) and places.is_remote(value):
                chosen = self._columns[-1]
                raise errors.InputError(f"{field} {path}: {columns.to_download(path, chosen.image, chosen.captions)}")
            self._checked(shard, len(self._lines[shard][0]) - 1, field)
            folder = path.rpartition("/")[0] if places.is_remote(path) else os.path.dirname(os.path.abspath(path))
            self._images.append(columns.Below(options.get("root") or folder))
        for shard, path in enumerate(paths):
            self._check_first(shard, path, field)

    def __getitem__(self, index: int) -> base.Example:
        """Raises RecordError for a line or an image that cannot be used, InfrastructureError where the disk or the network fails."""
        shard, place = self._find(index)
        try:
            return columns.example(self._row(shard, place), self._columns[shard], self._images[shard], str(index))
        except (ValueError, OSError, RecursionError) as error:
            raise base.unusable(self.where(index), error) from error

    def where(self, index: int) -> str:
        """File and place of the line, for messages."""
        shard, place = self._find(index)
        return f"{self.paths[shard]}: line at byte {self._lines[shard][0][place]}"

    def _row(self, shard: int, place: int) -> dict[str, Any]:
        starts, sizes = self._lines[shard]
        row = json.loads(self._files.read(shard, int(starts[place]), int(sizes[place]), "line").removeprefix(b"\xef\xbb\xbf"))
        if not isinstance(row, dict):
            raise ValueError(f"a {type(row).__name__}, not a map")
        return row

    def _names(self, shard: int) -> list[str]:
        """Those of the first lines that have any: not every line has every field."""
        names: dict[str, None] = {}
        for place in range(min(columns.FIRST, len(self._lines[shard][0]))):
            with contextlib.suppress(ValueError, RecursionError):
                names |= dict.fromkeys(self._row(shard, place))
        return list(names)

    def _check_first(self, shard: int, path: str, field: str) -> None:
        """One of the first examples can be read."""
        start, wrong = self._ends[shard - 1] if shard else 0, None
        for index in range(start, min(start + columns.FIRST, self._ends[shard])):
            try:
                self[index]
                return
            except records.RecordError as error:
                wrong = wrong or error
        hint = f"Say where paths begin, '{path}#root=FOLDER', or which field they are in, '#image=FIELD'"
        raise errors.InputError(f"{field} {wrong}. {hint}")

    def _checked(self, shard: int, place: int, field: str) -> dict[str, Any]:
        try:
            return self._row(shard, place)
        except (ValueError, RecursionError) as error:
            last = place == len(self._lines[shard][0]) - 1
            cut = "; the file is cut off there, copy it again" if last else "; a line is a map, {\"image\": ..., \"caption\": ...}"
            raise errors.InputError(f"{field} {self.paths[shard]}: line {place + 1}: {error}{cut}") from error
        except OSError as error:
            raise errors.InputError(f"{field} {self.paths[shard]}: cannot be read ({error.strerror or error})") from error


def _lines(path: str, field: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the lines begin, and their sizes; int64 [lines]. Empty ones are left out."""
    ends, place = [np.zeros(1, np.int64)], 0
    try:
        with places.opened(path) as file:
            while chunk := file.read(_CHUNK):
                ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + (place + 1))
                place += len(chunk)
    except OSError as error:
        raise errors.InputError(f"{field} {path}: cannot be read ({error.strerror or error}); check its permissions") from error
    borders = np.unique(np.concatenate([*ends, np.array([place])]))
    starts, sizes = borders[:-1], np.diff(borders)
    full = sizes > len("\r\n")
    if not full.any():
        raise errors.InputError(f"{field} {path}: has no lines; leave it out")
    return starts[full], sizes[full]
