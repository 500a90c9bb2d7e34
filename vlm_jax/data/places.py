"""Where files are: paths, `shapes:NAME` for the embedded shapes world, and places behind a network, `gs://bucket/train.tar`.

`shapes:train`, `shapes:val`, `shapes:held_out`, `shapes:trained_pairs` and `shapes:relations` name its shards,
`shapes:tokenizer.model` and `shapes:classes.json` the files beside them, `shapes:clips` and `shapes:clips_val` clips of moving objects,
`shapes:pages` and `shapes:pages_val` interleaved pages, `shapes:told_pages` and `shapes:told_pages_val` such without images, for language
models, `shapes:long_told_pages` and `shapes:long_told_pages_val` longer ones, and `shapes:pages.model` the vocabulary of all. All are made
on first use.

A place with `://` is reached through fsspec, which has a package for each kind of store (gcsfs for gs://, s3fs for s3://). What such
packages raise comes as OSError, as a disk would.
"""

import errno
import functools
import glob
import hashlib
import io
import os
import re
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from vlm_jax.data import interleaved_shapes, moving_shapes, shapes
from vlm_jax.errors import InputError

T = TypeVar("T")
_FILES = ("tokenizer.model", "classes.json", "manifest.json")
_REMOTE = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_PACKAGES = {"gs://": "gcsfs", "s3://": "s3fs", "az://": "adlfs"}
_BLOCK = 2**23
"""Bytes of one request where a remote file is read from its start to its end."""
_BUFFER = 2**16


def locate(path: str, field: str) -> str:
    """The path or pattern that a setting names, with `~` resolved.

    Raises:
      InputError: `shapes:` with a name that the world does not have, or a cache folder that cannot be written.
    """
    scheme, colon, name = path.partition(":")
    if scheme != "shapes" or not colon:
        return os.path.expanduser(path)
    if name in moving_shapes.COUNTS:
        return moving_shapes.ensure(name)
    if name in (*interleaved_shapes.COUNTS, interleaved_shapes.TOKENIZER):
        return interleaved_shapes.ensure(name)
    if name not in shapes.SPLITS + _FILES:
        known = (*shapes.SPLITS, *moving_shapes.COUNTS, *interleaved_shapes.COUNTS, *_FILES, interleaved_shapes.TOKENIZER)
        raise InputError(f"{field} {path}: the shapes world has {', '.join(known)}")
    world = shapes.World()
    folder = shapes.cache_folder(world)
    if not folder.exists():
        print(f"making the shapes world, once, in {folder}", flush=True)
    shapes.ensure(folder, world)
    return str(folder / (name if name in _FILES else f"{name}-*.array_record"))


def is_remote(path: str) -> bool:
    """Whether a place lies behind a network."""
    return _REMOTE.match(path) is not None


def is_file(path: str) -> bool:
    """Whether a file is there.

    Raises:
      OSError: a store that cannot be reached.
    """
    if not is_remote(path):
        return os.path.isfile(path)
    try:
        return _ask(path, lambda store: store.info(path))["type"] == "file"  # isfile takes every failure for absence
    except FileNotFoundError:
        return False


def match(pattern: str) -> list[str]:
    """The files and folders that a pattern with `*`, `?` or `[...]` names, sorted; OSError as `is_file`."""
    if not is_remote(pattern):
        return sorted(glob.glob(pattern))
    return sorted(_ask(pattern, lambda store: [str(store.unstrip_protocol(path)) for path in store.glob(pattern)]))


def size(path: str) -> int:
    """Bytes of a file; OSError where there is none."""
    return int(_ask(path, lambda store: store.size(path)) if is_remote(path) else os.path.getsize(path))


def version(path: str) -> str:
    """Changes when a file does: its size and time of change, or what its store keeps in their place; OSError where there is none."""
    if is_remote(path):
        return hashlib.sha256(_ask(path, lambda store: f"{store.size(path)} {store.ukey(path)}").encode()).hexdigest()[:16]
    stat = os.stat(path)
    return f"{stat.st_size} {stat.st_mtime_ns}"


def read(path: str, start: int, stop: int) -> bytes:
    """The bytes from `start` to `stop` of a remote file, fewer where it ends before; OSError where it cannot be read."""
    return bytes(_ask(path, lambda store: store.cat_file(path, start=start, end=stop)))


def opened(path: str) -> BinaryIO:
    """A file for reading forwards, in long requests where it is remote; OSError where it cannot be read."""
    if is_remote(path):
        file = _ask(path, lambda store: store.open(path, "rb", block_size=_BLOCK, cache_type="readahead"))
        return io.BufferedReader(_Remote(path, file), _BUFFER)
    return open(path, "rb")


def only_local(paths: list[str], what: str, field: str = "data") -> None:
    """Raises InputError for a file behind a network, of a kind whose reader wants a disk."""
    far = next(filter(is_remote, paths), None)
    if far is not None:
        raise InputError(f"{field} {far}: {what} are read from disks only; copy them to one, or keep the data there as tars or parquet")


class _Remote(io.RawIOBase):
    """A file of a store; OSError is all that reading it raises."""

    def __init__(self, path: str, file: Any):
        self._path, self._file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        data = _ask(self._path, lambda _: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _ask(path: str, question: Callable[[Any], T]) -> T:
    """What the store of a place answers."""
    try:
        return question(_store(path.partition("://")[0].lower()))
    except (OSError, InputError):
        raise
    except Exception as error:  # each store has exceptions of its own, of credentials and of its protocol
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error


@functools.cache
def _store(scheme: str) -> Any:
    import fsspec  # a quarter of a second, for those who use it

    try:
        return fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:
        known = ", ".join(f"{name} for {place}" for place, name in _PACKAGES.items())
        raise InputError(f"{scheme}://: {error}; the packages are {known}") from error
