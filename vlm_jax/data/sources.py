"""Sources: shards on disk as one sequence of examples, read at random.

An example is a map with `key` (str), `image` (encoded bytes), `captions` (list of str, possibly empty) and whatever else its
record has. A source has `__len__`, `__getitem__`, `where(i)` (shard and key, for messages) and `fingerprint`, and can be pickled.
To add one, write such a class here and name its suffix in `open_source`.
"""

import bisect
import concurrent.futures
import glob
import hashlib
import itertools
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from vlm_jax import errors
from vlm_jax.data import places, records, tar_index

Example = dict[str, Any]

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_ARRAY_RECORD = re.compile(r"\.array_?record(-\d+-of-\d+)?$")
_OPENERS = 16
"""Threads that open shards: waiting for disks, not computing."""


class Source(Protocol):
    """A sequence of examples; what the pipeline needs of a data set."""

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def where(self, index: int) -> str: ...


def expand(pattern: str, field: str = "data") -> list[str]:
    """The files that a pattern names, in order.

    `{00000..00041}` counts (with leading zeros), `{a,b}` lists, `*`, `?` and `[...]` match names on disk (sorted), and `::` joins patterns.

    Raises:
      InputError: an empty pattern, an empty or malformed brace, a shard that does not exist, a match of nothing.
    """
    paths: list[str] = []
    for part in pattern.split("::"):
        if not part.strip():
            raise errors.InputError(f"{field} {pattern!r}: a pattern is empty; give shards such as 'train-{{00000..00041}}.tar'")
        for name in _expand_braces(places.locate(part.strip(), field), field):
            if not os.path.exists(name) and glob.has_magic(name):
                matches = sorted(glob.glob(name))
                if not matches:
                    raise errors.InputError(f"{field} {name}: matches no file; check the folder and the name")
                paths += matches
            else:
                paths.append(name)
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        others = f" (and {len(missing) - 1} more of {len(paths)})" if len(missing) > 1 else ""
        kind = "is a folder, not a shard" if os.path.isdir(missing[0]) else "does not exist"
        raise errors.InputError(f"{field} {missing[0]}{others}: {kind}; check the path and the range in braces")
    twice = [path for path, group in itertools.groupby(sorted(paths)) if len(list(group)) > 1]
    if twice:
        raise errors.InputError(f"{field} {twice[0]}: named twice; its examples would count twice")
    return paths


def open_source(pattern: str, field: str = "data") -> Source:
    """The source that a pattern names: `.tar` shards or `.array_record` shards.

    Raises:
      InputError: as `expand`; another suffix, both kinds at once, or a damaged shard.
    """
    paths = expand(pattern, field)
    if all(path.endswith(".tar") for path in paths):
        return WebDataset(paths)
    if all(_ARRAY_RECORD.search(path) for path in paths):
        return ArrayRecord(paths)
    other = next((p for p in paths if not p.endswith(".tar") and not _ARRAY_RECORD.search(p)), None)
    if other is None:
        raise errors.InputError(f"{field} {pattern}: tars and ArrayRecords in one source; give one kind")
    hint = "; unpack it to a .tar, compressed ones have no random access" if other.endswith((".tgz", ".gz")) else ""
    raise errors.InputError(f"{field} {other}: neither .tar nor .array_record{hint}")


class _Sharded:
    """Shards with known counts, one after another."""

    def __init__(self, paths: Sequence[str], counts: Sequence[int]):
        self.paths = list(paths)
        self._ends = list(itertools.accumulate(counts))
        self.fingerprint = _fingerprint(paths, counts)

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[int, int]:
        """Shard, and place in the shard."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)


class ArrayRecord(_Sharded):
    """Shards written by `records.write`."""

    def __init__(self, paths: Sequence[str]):
        """Raises InputError for a shard that is damaged or empty."""
        self._readers: list[Any] = [None] * len(paths)
        self._lock = threading.Lock()
        super().__init__(paths, _each(_count_records, paths))

    def __getitem__(self, index: int) -> Example:
        """Raises RecordError for a damaged record."""
        shard, place = self._find(index)
        reader = self._readers[shard] or self._open(shard)
        try:
            example = records.decode(reader.read([place])[0])
        except records.RecordError as error:
            raise records.RecordError(f"{self.where(index)}: {error}") from error
        except (RuntimeError, ValueError, IndexError) as error:
            raise records.RecordError(f"{self.where(index)}: damaged ({error})") from error
        example.setdefault("key", str(index))
        if "captions" not in example:
            example["captions"] = [example["caption"]] if "caption" in example else []
        return example

    def where(self, index: int) -> str:
        """Shard and place, for messages."""
        shard, place = self._find(index)
        return f"{self.paths[shard]}: record {place}"

    def _open(self, shard: int) -> Any:
        with self._lock:
            if self._readers[shard] is None:
                self._readers[shard] = _open_array_record(self.paths[shard])
            return self._readers[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": [None] * len(self.paths), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class WebDataset(_Sharded):
    """Tar shards: per example an image (jpg, jpeg, png, webp) and its text (txt, or json with `caption` or `captions`).

    The key is the member's path up to the first dot of its base name; it is a name only and never a place to write. Fields of the
    json are fields of the example; `cls` is `label`. Members are read by offset from an index that is made once a shard.
    """

    def __init__(self, paths: Sequence[str]):
        """Raises InputError for a shard that is truncated, compressed, or without a complete example."""
        tables = _each(tar_index.load, paths)
        super().__init__(paths, [len(table) for table in tables])
        self._tables: list[Any] = list(tables)
        self._files: list[int | None] = [None] * len(paths)
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> Example:
        """Raises RecordError for a member that is cut short or is no valid text, InfrastructureError where the disk fails."""
        shard, place = self._find(index)
        entry = self._table(shard)[place]
        try:
            return self._example(shard, entry)
        except (ValueError, RecursionError) as error:
            raise records.RecordError(f"{self.where(index)}: {error}") from error
        except OSError as error:
            raise errors.InfrastructureError(f"{self.where(index)}: cannot be read ({error}); is the disk still there?") from error

    def where(self, index: int) -> str:
        """Shard and key, for messages: what a terminal would obey is escaped."""
        shard, place = self._find(index)
        key = tar_index.key(self._table(shard)[place])
        return f"{self.paths[shard]}: {''.join(c if c.isprintable() else repr(c)[1:-1] for c in key)}"

    def _example(self, shard: int, entry: Any) -> Example:
        example: Example = {}
        if entry["json_size"]:
            example = json.loads(self._read(shard, entry, "json"))
            if not isinstance(example, dict):
                raise ValueError(f"its json is a {type(example).__name__}, not a map")
        captions = example.get("captions", example.get("caption"))
        if captions is None:
            captions = self._read(shard, entry, "txt").decode("utf-8") if entry["txt_size"] else []
        example["captions"] = [captions] if isinstance(captions, str) else captions
        if entry["cls_size"]:
            example["label"] = int(self._read(shard, entry, "cls"))
        example["key"] = tar_index.key(entry)
        example["image"] = self._read(shard, entry, "image")
        return example

    def _read(self, shard: int, entry: Any, member: str) -> bytes:
        file = self._files[shard] or self._open(shard)
        size = int(entry[f"{member}_size"])
        data = os.pread(file, size, int(entry[f"{member}_start"]))
        if len(data) != size:
            raise ValueError(f"{member} ends after {len(data)} of {size} bytes; the shard changed since it was opened")
        return data

    def _open(self, shard: int) -> int:
        with self._lock:
            file = self._files[shard]
            if file is None:
                file = self._files[shard] = os.open(self.paths[shard], os.O_RDONLY)
            return file

    def _table(self, shard: int) -> Any:
        table = self._tables[shard]
        if table is None:
            table = self._tables[shard] = tar_index.load(self.paths[shard])
        return table

    def __getstate__(self) -> dict[str, Any]:
        nothing = [None] * len(self.paths)
        return {**self.__dict__, "_tables": nothing, "_files": list(nothing), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound here: modules are gone at exit
        for file in self.__dict__.get("_files", ()):
            if file is not None:
                close(file)


def _each(function: Callable[[str], Any], paths: Sequence[str]) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(min(_OPENERS, len(paths))) as pool:
        return list(pool.map(function, paths))


def _expand_braces(text: str, field: str) -> Iterable[str]:
    start = text.find("{")
    if start < 0:
        if "}" in text:
            raise errors.InputError(f"{field} {text}: a }} without its {{")
        return [text]
    end = text.find("}", start)
    inside = text[start + 1 : end]
    if end < 0 or "{" in inside:
        raise errors.InputError(f"{field} {text}: a {{ without its }}; braces cannot be nested")
    if match := _RANGE.fullmatch(inside):
        first, last = match.groups()
        if int(first) > int(last):
            raise errors.InputError(f"{field} {text}: the range {{{inside}}} is empty; count upwards, {{{last}..{first}}}")
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        choices = [str(i).zfill(width) for i in range(int(first), int(last) + 1)]
    elif "," in inside:
        choices = inside.split(",")
    else:
        raise errors.InputError(f"{field} {text}: {{{inside}}} is neither a range {{00000..00041}} nor a list {{a,b}}")
    rest = list(_expand_braces(text[end + 1 :], field))
    return [text[:start] + choice + tail for choice in choices for tail in rest]


def _open_array_record(path: str) -> Any:
    return array_record_module.ArrayRecordReader(path, options="readahead_buffer_size:0", file_reader_buffer_size=32768)


def _count_records(path: str) -> int:
    try:
        reader = _open_array_record(path)
        count = reader.num_records()
        reader.close()  # where the damage of a file is raised
    except (RuntimeError, ValueError) as error:
        raise errors.InputError(f"{path}: not a complete ArrayRecord ({error}); write or copy it again") from error
    if not count:
        raise errors.InputError(f"{path}: holds no records; leave it out")
    return count


def _fingerprint(paths: Sequence[str], counts: Sequence[int]) -> str:
    """Base names, counts and sizes: the same data in another folder has the same fingerprint."""
    shards = [(os.path.basename(p), n, os.path.getsize(p)) for p, n in zip(paths, counts, strict=True)]
    digest = hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:16]
    return f"{sum(counts)} examples in {len(paths)} shards, {sum(size for *_, size in shards)} bytes, {digest}"
