"""Embeddings on disk while an evaluation runs, so that one that was interrupted goes on, and images are embedded once for all evaluators.

`<folder>/<key>/<first>-<stop>-<hash>.npy` holds rows first to stop of one set of examples. The key is a hash of all that the numbers
follow from: weights, method, transform or tokenizer, the records or texts, precision, batch size. The hash in the name is that of the
key and the file, so a damaged file, or one from elsewhere, is no piece of this set and is made again. Nothing is pickled.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vlm_jax import files
from vlm_jax.data import sources

SECONDS = 5.0
"""After so long without a piece the next one is written; a kill loses no more than that."""


@dataclasses.dataclass
class Pieces:
    """A folder of embeddings. One process writes and reads; the others are told."""

    folder: Path
    identity: Mapping[str, Any]
    """What is the same for all sets: the weights, what they compute in."""
    limit: int = 4 * 10**9
    """Bytes that the folder may hold. Sets of earlier evaluations make room first; what has no room is not kept."""
    found: int = 0
    """Rows that were there already."""

    def __post_init__(self):
        self._used: set[str] = set()
        self._full = False

    def key(self, content: Mapping[str, Any]) -> str:
        """The name of a set."""
        text = json.dumps({**self.identity, **content}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def read(self, key: str, total: int, batch_size: int) -> list[tuple[int, np.ndarray]]:
        """Batches of a set that are there: their first rows, and their rows, float32 [k, e].

        Every process calls it and gets the same, whatever it sees of the folder.

        Args:
          total: rows of the set that are wanted.
        """
        firsts, rows = self._read(key, total, batch_size) if jax.process_index() == 0 else ([], None)
        if jax.process_count() > 1:
            there = np.zeros(-(-total // batch_size) + 1, np.int32)
            there[[first // batch_size for first in firsts]] = 1
            there[-1] = 0 if rows is None else rows.shape[1]
            there = np.asarray(multihost_utils.broadcast_one_to_all(there))
            firsts = [int(i) * batch_size for i in np.flatnonzero(there[:-1])]
            if firsts:
                sent = np.zeros((total, there[-1]), np.float32) if rows is None else rows
                rows = np.asarray(multihost_utils.broadcast_one_to_all(sent))
        batches = [] if rows is None else [(first, rows[first : first + batch_size]) for first in firsts]
        self.found += sum(len(batch) for _, batch in batches)
        return batches

    def write(self, key: str, first: int, rows: np.ndarray) -> None:
        """Keeps rows of a set, float32 [k, e], from `first` on. Where the disk refuses, nothing more is kept, and that is said."""
        if self._full or jax.process_index() != 0 or not len(rows):
            return
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(rows, np.float32), allow_pickle=False)
        content = buffer.getvalue()
        try:
            if not self._make_room(len(content)):
                raise OSError(f"its limit of {self.limit / 1e9:.3g} GB is reached")
            (self.folder / key).mkdir(parents=True, exist_ok=True)
            files.write(self.folder / key / f"{first}-{first + len(rows)}-{_hash(key, content)}.npy", content)
            self._used.add(key)
        except OSError as error:
            self._full = True
            print(f"{self.folder}: no more embeddings are kept ({error}); the evaluation goes on without", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Removes all sets, those of other evaluations too."""
        if jax.process_index() == 0 and self.folder.is_dir():
            for path in self._sets():
                shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):  # something else is in it
                self.folder.rmdir()

    def _sets(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if re.fullmatch("[0-9a-f]{32}", path.name) and path.is_dir()]

    def _read(self, key: str, total: int, batch_size: int) -> tuple[list[int], np.ndarray | None]:
        self._used.add(key)
        rows: np.ndarray | None = None
        there = np.zeros(total, bool)
        for path in sorted((self.folder / key).glob("*.npy")):
            piece = _piece(path, key)
            if piece is None or (rows is not None and piece[1].shape[1] != rows.shape[1]):
                print(f"{path}: damaged or from elsewhere; it is made again", file=sys.stderr, flush=True)
                path.unlink(missing_ok=True)
                continue
            first, values = piece
            rows = np.zeros((total, values.shape[1]), np.float32) if rows is None else rows
            values = values[: max(total - first, 0)]
            rows[first : first + len(values)] = values
            there[first : first + len(values)] = True
        return [first for first in range(0, total, batch_size) if there[first : first + batch_size].all()], rows

    def _make_room(self, size: int) -> bool:
        sets = self._sets() if self.folder.is_dir() else []
        sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in sets}
        for path in sorted(sets, key=lambda path: path.stat().st_mtime):
            if sum(sizes.values()) + size <= self.limit:
                break
            if path.name not in self._used:
                shutil.rmtree(path, ignore_errors=True)
                del sizes[path]
        return sum(sizes.values()) + size <= self.limit


class Writer:
    """Collects batches and writes them as pieces: at intervals, at the end, and where an error or Ctrl-C ends the embedding."""

    def __init__(self, pieces: Pieces | None, key: str):
        self._pieces, self._key = pieces, key
        self._first, self._rows, self._since = 0, [], time.monotonic()

    def add(self, first: int, rows: np.ndarray) -> None:
        """Takes the rows that begin at `first`."""
        if self._pieces is None:
            return
        if self._rows and first != self._first + sum(map(len, self._rows)):
            self._write()
        if not self._rows:
            self._first = first
        self._rows.append(rows)
        if time.monotonic() - self._since >= SECONDS:
            self._write()

    def _write(self) -> None:
        if self._pieces is not None and self._rows:
            self._pieces.write(self._key, self._first, np.concatenate(self._rows))
        self._rows, self._since = [], time.monotonic()

    def __enter__(self) -> None: ...

    def __exit__(self, *_) -> None:
        self._write()


def of_records(source: sources.Source) -> dict[str, Any] | None:
    """What tells a source from others: its fingerprint and its files with their sizes and times; None where it names no files."""
    paths = getattr(source, "paths", None)
    if not paths:
        return None
    return {"records": source.fingerprint, "files": hashlib.sha256(json.dumps(of_files(paths)).encode()).hexdigest()}


def of_texts(texts: Sequence[str]) -> dict[str, Any]:
    """What tells texts from others."""
    return {"texts": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()}


def of_files(paths: Sequence[str | os.PathLike]) -> list[tuple[str, int, int]]:
    """Files with sizes and times of their last change, which tell when one is another."""
    return [(os.path.realpath(path), (stat := os.stat(path)).st_size, stat.st_mtime_ns) for path in paths]


def _hash(key: str, content: bytes) -> str:
    return hashlib.sha256(key.encode() + content).hexdigest()[:32]


def _piece(path: Path, key: str) -> tuple[int, np.ndarray] | None:
    """Where a file's rows begin, and the rows; None for one that is not as it was written."""
    try:
        content = path.read_bytes()
        first, stop, digest = path.stem.split("-")
        if digest != _hash(key, content):
            return None
        rows = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        return (int(first), rows) if rows.ndim == 2 and rows.dtype == np.float32 and len(rows) == int(stop) - int(first) else None
    except (OSError, ValueError):
        return None
