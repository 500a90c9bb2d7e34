"""The index of a tar shard: where the members of each example lie, made once and kept in the cache folder.

The cache folder is $VLM_JAX_CACHE, or ~/.cache/vlm_jax. An index is named by the shard's path, size and time of change, so a shard
that was replaced or cut is read anew; reading checks that the archive is complete.

    python -m vlm_jax.data.tar_index a.tar b.tar        makes the indexes of shards
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vlm_jax import errors
from vlm_jax.data import places, tar_headers

_MEMBERS = {"jpg": "image", "jpeg": "image", "png": "image", "webp": "image", "txt": "txt", "json": "json", "cls": "cls", "npy": "npy"}
_KINDS = ("image", "txt", "json", "cls", "npy")
_SPANS = [(f"{kind}_{part}", np.int64) for kind in _KINDS for part in ("start", "size")]
_VERSION = 4
_HEADER = 16
"""Bytes before the entries of a kept index: the width of the keys and the number of entries."""
_FEW = 2**31
"""Bytes of shards whose headers are read sooner than other processes start."""
_MOST_WORKERS = 16
_LONGEST_RECORD = 2**20
"""Tars are filled up with zeros to a multiple of 20 blocks, or of what their writer was told."""


def cache_folder() -> pathlib.Path:
    """Where indexes and generated data sets are kept: $VLM_JAX_CACHE, or ~/.cache/vlm_jax."""
    return pathlib.Path(os.environ.get("VLM_JAX_CACHE") or "~/.cache/vlm_jax").expanduser()


def load(path: str) -> np.ndarray:
    """The table of a shard's examples, in the order of their first members: key, and start and size of each member.

    It is mapped from the cache, so that many shards and many processes share the memory of the file system.

    Raises:
      InputError: truncated, compressed or not a tar, an example with a member twice, no complete example, or a file that cannot be read.
    """
    try:
        cached = _cached(path)
        table = _read(cached)
        if table is None:
            _write(cached, build(path))
            table = _read(cached)
        return build(path) if table is None else table
    except OSError as error:
        raise errors.InputError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error


def prepare(paths: Sequence[str]) -> None:
    """Makes the indexes that are missing, by processes of their own where that takes long: reading headers is work for a processor.

    What cannot be indexed is left for `load`, which says why.
    """
    new = [path for path in paths if not _is_kept(path)]
    workers = min(len(new), os.cpu_count() or 1, _MOST_WORKERS)
    if workers < 2 or sum(map(places.size, new)) < _FEW:
        return
    logging.getLogger(__name__).warning("indexing %d tars, once, in %s", len(new), cache_folder() / "tar_index")
    command = [sys.executable, "-m", __name__]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    running = [subprocess.Popen([*command, *new[i::workers]], env=environment, stderr=subprocess.DEVNULL) for i in range(workers)]
    try:
        for process in running:
            process.wait()
    finally:
        for process in running:
            process.kill()


def key(entry: Any) -> str:
    """The key of a table's entry."""
    return bytes(entry["key"]).decode("utf-8", errors="backslashreplace")


def build(path: str) -> np.ndarray:
    """Reads all headers of a shard into a table, see `load`."""
    examples: dict[str, dict[str, tuple[int, int]]] = {}
    count = 0
    for member in members(path):
        count += 1
        stem, extension = split(member.name)
        kind = _MEMBERS.get(extension)
        if kind is None or not stem or not member.is_file:
            continue
        spans = examples.setdefault(stem, {})
        if kind in spans:
            raise errors.InputError(f"{path}: {stem} has two members of kind {kind}; keys must differ before the first dot")
        spans[kind] = (member.start, member.size)
    complete = {stem: spans for stem, spans in examples.items() if "image" in spans and len(spans) > 1}
    if not complete:
        raise errors.InputError(
            f"{path}: none of its {count} members make an example: an image (jpg, jpeg, png, webp) and a txt, json or cls "
            "of the same name up to the first dot"
        )
    if len(complete) < len(examples):
        lone = next(stem for stem in examples if stem not in complete)
        logging.getLogger(__name__).warning(
            "%s: %d of %d keys lack an image or its text and are left out, first %s",
            path, len(examples) - len(complete), len(examples), lone,
        )  # fmt: skip
    keys = [stem.encode("utf-8", errors="surrogateescape") for stem in complete]
    table = np.zeros(len(complete), _dtype(max(map(len, keys))))
    table["key"] = keys
    for kind in _KINDS:
        spans = np.array([spans.get(kind, (0, 0)) for spans in complete.values()], np.int64)
        table[f"{kind}_start"], table[f"{kind}_size"] = spans.T
    return table


def members(path: str) -> Iterator[tar_headers.Member]:
    """The members of a whole tar, in order.

    Raises:
      InputError: truncated, compressed or not a tar.
    """
    count = 0
    with contextlib.closing(_Reader(path)) as reader:
        try:
            for member in tar_headers.members(reader.at):
                if not member.name:
                    _check_end(path, member.start, count, reader)
                    return
                count += 1
                yield member
        except tar_headers.Damaged as error:
            raise errors.InputError(f"{path}: {_why_unreadable(path, count, reader, error)}") from error


def split(name: str) -> tuple[str, str]:
    """Key and extension: the path up to the first dot of the base name; no key for hidden files."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem if stem else ""), extension.lower()


class _Reader:
    """Any part of a file, read from a disk as it is asked for, and from a remote place in long requests forwards."""

    def __init__(self, path: str):
        self._remote = places.opened(path) if places.is_remote(path) else None
        self._local = -1 if self._remote else os.open(path, os.O_RDONLY)
        self.size = places.size(path)

    def at(self, start: int, size: int) -> bytes:
        """As many of the bytes as there are."""
        if self._remote is None:
            return os.pread(self._local, size, start)
        self._remote.seek(start)
        return self._remote.read(size)

    def close(self) -> None:
        if self._remote is None:
            os.close(self._local)
        else:
            self._remote.close()


def _check_end(path: str, end: int, count: int, reader: _Reader) -> None:
    """After the last member a complete archive has two blocks of zeros, and zeros up to the end of its last record of blocks."""
    if reader.size - end > _LONGEST_RECORD + 2 * tar_headers.BLOCK:
        raise errors.InputError(
            f"{path}: {reader.size - end} bytes follow the end of its {count} members: an unfinished copy, or several tars in one file; "
            "copy it again, or name the tars one by one"
        )
    trailer = reader.at(end, reader.size - end)
    if len(trailer) < 2 * tar_headers.BLOCK or any(trailer[: 2 * tar_headers.BLOCK]):
        raise errors.InputError(f"{path}: truncated: {count} members and {reader.size} bytes, but no end of archive; copy it again")
    if any(trailer):
        raise errors.InputError(f"{path}: another archive follows the end of its {count} members; name the tars one by one")


def _why_unreadable(path: str, count: int, reader: _Reader, error: tar_headers.Damaged) -> str:
    start = reader.at(0, 6)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd")):
        return f"compressed; unpack it (`gunzip {path}`), a compressed tar has no random access"
    if not start:
        return "an empty file; copy it again"
    if not count:
        return f"truncated or not a tar ({error}); copy it again"
    return f"truncated: {count} members and {reader.size} bytes, but {error}; copy it again"


def _cached(path: str) -> pathlib.Path:
    """The file of an index, named by the place and the version of its shard."""
    place = path if places.is_remote(path) else os.path.abspath(path)
    name = f"{place} {places.version(path)} {_VERSION}"
    return cache_folder() / "tar_index" / f"{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:32]}.index"


def _is_kept(path: str) -> bool:
    try:
        return _cached(path).is_file()
    except OSError:
        return True  # load says what is wrong


def _dtype(width: int) -> np.dtype:
    """Of a table whose longest key has `width` bytes."""
    return np.dtype([("key", f"S{width}"), *_SPANS])


def _read(cached: pathlib.Path) -> np.ndarray | None:
    """The table of a kept index, or None where there is none or it is not whole.

    A plain file rather than .npy: CPython 3.11 may fail when two threads parse the header of one at the same time.
    """
    try:
        width, count = np.fromfile(cached, np.int64, 2).tolist()
        if count < 1 or width < 1 or cached.stat().st_size != _HEADER + count * _dtype(width).itemsize:
            return None
        return np.memmap(cached, _dtype(width), "r", _HEADER, (count,))
    except (OSError, ValueError):
        return None


def _write(cached: pathlib.Path, table: np.ndarray) -> None:
    unfinished = cached.with_suffix(f".{uuid.uuid4().hex}")  # hosts may share the folder
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as file:
            file.write(np.array([table.dtype["key"].itemsize, len(table)], np.int64).tobytes())
            file.write(table.tobytes())
        os.replace(unfinished, cached)
    except OSError as error:
        logging.getLogger(__name__).warning("%s: the index of a shard cannot be kept (%s)", cached.parent, error)


if __name__ == "__main__":
    for shard in sys.argv[1:]:
        with contextlib.suppress(errors.InputError):
            load(shard)
