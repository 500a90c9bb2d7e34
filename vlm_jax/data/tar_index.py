"""The index of a tar shard: where the members of each example lie, made once and kept in the cache folder.

The cache folder is $VLM_JAX_CACHE, or ~/.cache/vlm_jax. An index is named by the shard's path, size and time of change, so a shard
that was replaced or cut is read anew; reading checks that the archive is complete, which Python's `tarfile` does not.
"""

import hashlib
import logging
import os
import pathlib
import tarfile
import uuid
from typing import Any

import numpy as np

from vlm_jax import errors

_MEMBERS = {"jpg": "image", "jpeg": "image", "png": "image", "webp": "image", "txt": "txt", "json": "json", "cls": "cls", "npy": "npy"}
_KINDS = ("image", "txt", "json", "cls", "npy")
_SPANS = [(f"{kind}_{part}", np.int64) for kind in _KINDS for part in ("start", "size")]
_VERSION = 3
_HEADER = 16
"""Bytes before the entries of a kept index: the width of the keys and the number of entries."""
_BLOCK = 512
_LONGEST_RECORD = 2**20
"""Tars are filled up with zeros to a multiple of 20 blocks, or of what their writer was told."""


def cache_folder() -> pathlib.Path:
    """Where indexes and generated data sets are kept: $VLM_JAX_CACHE, or ~/.cache/vlm_jax."""
    return pathlib.Path(os.environ.get("VLM_JAX_CACHE") or "~/.cache/vlm_jax").expanduser()


def load(path: str) -> np.ndarray:
    """The table of a shard's examples, in the order of their first members: key, and start and size of each member.

    It is mapped from the cache, so that many shards and many processes share the memory of the file system.

    Raises:
      InputError: truncated, compressed or not a tar, an example with a member twice, or no complete example.
    """
    stat = os.stat(path)
    name = f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns} {_VERSION}"
    cached = cache_folder() / "tar_index" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.index"
    table = _read(cached)
    if table is None:
        _write(cached, build(path))
        table = _read(cached)
    return build(path) if table is None else table


def key(entry: Any) -> str:
    """The key of a table's entry."""
    return bytes(entry["key"]).decode("utf-8", errors="backslashreplace")


def build(path: str) -> np.ndarray:
    """Reads all headers of a shard into a table, see `load`."""
    examples: dict[str, dict[str, tuple[int, int]]] = {}
    end = 0
    count = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                count += 1
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK if member.isreg() else member.offset_data
                stem, extension = _split(member.name)
                kind = _MEMBERS.get(extension)
                if kind is None or not stem or not member.isreg():
                    continue
                spans = examples.setdefault(stem, {})
                if kind in spans:
                    raise errors.InputError(f"{path}: {stem} has two members of kind {kind}; keys must differ before the first dot")
                spans[kind] = (member.offset_data, member.size)
    except tarfile.ReadError as error:
        raise errors.InputError(f"{path}: {_why_unreadable(path)} ({error})") from error
    _check_end(path, end, count)
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


def _split(name: str) -> tuple[str, str]:
    """Key and extension: the path up to the first dot of the base name; no key for hidden files."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem if stem else ""), extension.lower()


def _check_end(path: str, end: int, count: int) -> None:
    """After the last member a complete archive has two blocks of zeros, and zeros up to the end of its last record of blocks."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(end)
        trailer = file.read(2 * _BLOCK)
        if len(trailer) < 2 * _BLOCK or any(trailer):
            raise errors.InputError(f"{path}: truncated: {count} members and {size} bytes, but no end of archive; copy it again")
        if size - end > _LONGEST_RECORD + 2 * _BLOCK:
            raise errors.InputError(
                f"{path}: {size - end} bytes follow the end of its {count} members: an unfinished copy, or several tars in one file; "
                "copy it again, or name the tars one by one"
            )
        if file.read().strip(b"\0"):
            raise errors.InputError(f"{path}: another archive follows the end of its {count} members; name the tars one by one")


def _why_unreadable(path: str) -> str:
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd")):
        return "compressed; unpack it, a compressed tar has no random access"
    return "truncated or not a tar; copy it again" if start else "an empty file; copy it again"


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
