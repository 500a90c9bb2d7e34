"""What every source is, and what sources of several shards share."""

import bisect
import concurrent.futures
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from vlm_jax import errors
from vlm_jax.data import classes as class_names
from vlm_jax.data import places, records

Example = dict[str, Any]
"""`key` (str), `image` (encoded bytes), `captions` (list of str, possibly empty), and what else a record has: `label` (index of a
class), `label_name`, `labels` (list of indices or names, where an image has several classes) and fields of its own."""

_OPENERS = 16
"""Threads that open shards: waiting for disks, not computing."""
_GAP = 2**16
"""Bytes between parts of a remote file that are rather read than asked for twice."""


class Source(Protocol):
    """A sequence of examples; what the pipeline needs of a data set. It can be pickled, and then opens its files again."""

    fingerprint: str
    """Equal fingerprints mean the same records in the same order."""
    paths: list[str]
    """The files that are read."""
    classes: class_names.Classes | None
    """Names, and perhaps templates, that the data bring for their labels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Raises RecordError for a record that cannot be used, IndexError outside."""
        ...

    def where(self, index: int) -> str:
        """Shard and key, for messages."""
        ...


class Sharded:
    """Shards with known counts, one after another."""

    classes: class_names.Classes | None = None

    def __init__(self, paths: Sequence[str], counts: Sequence[int]):
        self.paths = list(paths)
        self._ends = list(itertools.accumulate(counts))
        self.fingerprint = fingerprint(paths, counts)

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[int, int]:
        """Shard, and place in the shard."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)


class Files:
    """Files read by place, each opened when it is first needed, and again in another process."""

    def __init__(self, paths: Sequence[str]):
        self.paths = list(paths)
        self._opened: list[int | None] = [None] * len(self.paths)
        self._lock = threading.Lock()

    def read(self, file: int, start: int, size: int, what: str) -> bytes:
        """Raises ValueError where the file ends before, OSError where the disk or the network fails."""
        if places.is_remote(self.paths[file]):
            data = places.read(self.paths[file], start, start + size) if size else b""
        else:
            opened = self._opened[file]
            data = os.pread(self._open(file) if opened is None else opened, size, start)
        if len(data) != size:
            raise ValueError(f"{what} ends after {len(data)} of {size} bytes; the shard changed since it was opened")
        return data

    def read_parts(self, file: int, spans: Mapping[str, tuple[int, int]]) -> dict[str, bytes]:
        """Start and size by name to bytes by name, in one request where a remote file has them side by side; raises as `read`."""
        start, stop = min(first for first, _ in spans.values()), max(first + size for first, size in spans.values())
        apart = stop - start - sum(size for _, size in spans.values())
        if apart > _GAP or not places.is_remote(self.paths[file]):
            return {name: self.read(file, *span, name) for name, span in spans.items()}
        data = self.read(file, start, stop - start, " and ".join(spans))
        return {name: data[first - start : first - start + size] for name, (first, size) in spans.items()}

    def _open(self, file: int) -> int:
        with self._lock:
            opened = self._opened[file]
            if opened is None:
                opened = self._opened[file] = os.open(self.paths[file], os.O_RDONLY)
            return opened

    def __getstate__(self) -> list[str]:
        return self.paths

    def __setstate__(self, paths: list[str]) -> None:
        self.__dict__.update(paths=paths, _opened=[None] * len(paths), _lock=threading.Lock())

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound here: modules are gone at exit
        for opened in self.__dict__.get("_opened", ()):
            if opened is not None:
                close(opened)


def each(function: Callable[[str], Any], paths: Sequence[str]) -> list[Any]:
    """The function of every path, several at a time."""
    with concurrent.futures.ThreadPoolExecutor(min(_OPENERS, len(paths))) as pool:
        return list(pool.map(function, paths))


def fingerprint(paths: Sequence[str], counts: Sequence[int]) -> str:
    """Base names, counts and sizes: the same data in another folder has the same fingerprint."""
    sizes = each(places.size, paths)
    shards = [(os.path.basename(p), n, size) for p, n, size in zip(paths, counts, sizes, strict=True)]
    digest = hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:16]
    return f"{sum(counts)} examples in {len(paths)} shards, {sum(size for *_, size in shards)} bytes, {digest}"


def unusable(where: str, error: Exception) -> Exception:
    """What to raise for an example that cannot be read: a RecordError, or an InfrastructureError where a disk or a network failed."""
    if errors.exit_code(error) == errors.INFRASTRUCTURE:
        return errors.InfrastructureError(f"{where}: cannot be read ({error}); is the disk still there?")
    if isinstance(error, OSError) and error.strerror:
        return records.RecordError(f"{where}: {error.strerror}{f': {printable(str(error.filename))}' if error.filename else ''}")
    return records.RecordError(f"{where}: {error}")


def printable(text: str) -> str:
    """A name out of the data for a message: what a terminal would obey is escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
