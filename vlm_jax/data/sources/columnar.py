"""Parquet files with the images in them, and folders that Hugging Face's `datasets` saved; see `columns`.

The image is a column of bytes, or of `{bytes, path}`. Class labels that `datasets` describes in the file get their names.

Parquet is read by row groups, of which a few are kept in memory: in the order of the file that is fast, but an example from anywhere costs
a whole row group. Arrow files are mapped and have no such cost.
"""

import bisect
import collections
import dataclasses
import itertools
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlm_jax import errors
from vlm_jax.data import classes as class_names
from vlm_jax.data import places, records
from vlm_jax.data.sources import base, columns

KEPT = 2**28
"""Bytes of row groups that a process keeps; it has at least two of them."""
_STATE, _SPLITS = "state.json", "dataset_dict.json"


def is_saved(folder: str) -> bool:
    """Whether `datasets` saved this folder, a split or several."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in (_STATE, _SPLITS))


class _Columnar(base.Sharded):
    """Files of groups of rows."""

    def __init__(self, paths: Sequence[str], options: Mapping[str, str], field: str):
        try:
            opened = base.each(self._open, paths)
        except OSError as error:
            raise errors.InputError(f"{field} {error}; check its permissions") from error
        except ValueError as error:
            raise errors.InputError(f"{field} {error}; copy it again") from error
        self._groups = [list(itertools.accumulate(rows for rows, _ in file.groups)) for file in opened]
        empty = next((path for path, ends in zip(paths, self._groups, strict=True) if not ends or not ends[-1]), None)
        if empty is not None:
            raise errors.InputError(f"{field} {empty}: holds no rows; leave it out")
        super().__init__(paths, [ends[-1] for ends in self._groups])
        self._bytes = sum(size for file in opened for _, size in file.groups)
        schema = opened[0].schema
        for path, file in zip(paths, opened, strict=True):
            if file.schema.names != schema.names:
                raise errors.InputError(f"{field} {path}: has other columns than {paths[0]}; read them as two sources")
        described = _described(schema)
        pictures = [name for name in described if described[name].get("_type") == "Image" and name in schema.names]
        self._columns = columns.choose(schema.names, options, paths[0], field, pictures)
        self._check_type(schema.field(self._columns.image).type, field)
        self._images = columns.Below(options.get("root") or os.path.dirname(os.path.abspath(paths[0])))
        labels = {name: feature["names"] for name, feature in described.items() if isinstance(feature.get("names"), list)}
        self._label = "label" if "label" in labels else next(iter(labels), "") if len(labels) == 1 else ""
        self.classes = class_names.Classes(tuple((str(name),) for name in labels[self._label])) if self._label else None
        self._set_up()

    def __getitem__(self, index: int) -> base.Example:
        """Raises RecordError for a row or an image that cannot be used, InfrastructureError where the disk fails."""
        shard, place = self._find(index)
        ends = self._groups[shard]
        group = bisect.bisect_right(ends, place)
        place -= ends[group - 1] if group else 0
        try:
            rows = self._rows(shard, group)
        except Exception as error:  # Arrow raises nearly every type for damage, among them OSError without a number
            if isinstance(error, OSError) and error.errno is not None:
                raise errors.InfrastructureError(f"{self.where(index)}: cannot be read ({error}); is the disk still there?") from error
            raise records.RecordError(f"{self.where(index)}: damaged ({' '.join(str(error).split())})") from error
        try:
            found = columns.example(rows.slice(place, 1).to_pylist()[0], self._columns, self._images, str(index))
        except (ValueError, OSError) as error:
            raise base.unusable(self.where(index), error) from error
        if self._label and self.classes and isinstance(found.get(self._label), int):
            label = found["label"] = found.pop(self._label)
            if 0 <= label < len(self.classes.names):
                found["label_name"] = self.classes.names[label][0]
        return found

    def where(self, index: int) -> str:
        """File and place, for messages."""
        shard, place = self._find(index)
        return f"{self.paths[shard]}: row {place}"

    def _open(self, path: str) -> "_Opened":
        raise NotImplementedError

    def _load(self, shard: int, group: int) -> Any:
        """A table of the rows of a group."""
        raise NotImplementedError

    def _rows(self, shard: int, group: int) -> Any:
        with self._lock:
            if (shard, group) in self._loaded:
                self._loaded.move_to_end((shard, group))
                return self._loaded[shard, group]
        with self._of_shard[shard]:  # a reader serves one thread
            with self._lock:
                rows = self._loaded.get((shard, group))
            if rows is None:
                rows = self._load(shard, group)
        with self._lock:
            self._loaded[shard, group] = rows
            while len(self._loaded) > 2 and sum(table.nbytes for table in self._loaded.values()) > KEPT:
                self._loaded.popitem(last=False)
        return rows

    def _check_type(self, kind: Any, field: str) -> None:
        import pyarrow

        inside = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)} if pyarrow.types.is_struct(kind) else {}
        value = inside.get("bytes", inside.get("path", kind))
        readable = (pyarrow.types.is_binary, pyarrow.types.is_large_binary, pyarrow.types.is_string, pyarrow.types.is_large_string)
        if not any(known(value) for known in readable):
            raise errors.InputError(
                f"{field} {self.paths[0]}: column {self._columns.image!r} is of type {kind!s:.100}; an image is its encoded bytes, "
                "{bytes, path} or a path"
            )

    def _set_up(self) -> None:
        self._readers: dict[int, Any] = {}
        self._loaded: collections.OrderedDict[tuple[int, int], Any] = collections.OrderedDict()
        self._lock, self._of_shard = threading.Lock(), [threading.Lock() for _ in self.paths]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_readers", "_loaded", "_lock", "_of_shard")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_up()


@dataclasses.dataclass(frozen=True)
class _Opened:
    """What is known of a file."""

    schema: Any
    groups: list[tuple[int, int]]
    """Rows and bytes of each."""


class Parquet(_Columnar):
    """Parquet files, one after another; see the module."""

    def __init__(self, paths: Sequence[str], options: Mapping[str, str], field: str = "data"):
        """Raises InputError for a file that is no parquet, without rows, with addresses in place of images, or with other columns."""
        super().__init__(paths, options, field)
        groups = sum(map(len, self._groups))
        if groups > 2 and self._bytes > KEPT:
            logging.getLogger(__name__).warning(
                "%s: %d row groups of %d MB: in shuffled order each example reads a whole one; to train, data/to_array_record.py",
                paths[0], groups, self._bytes // groups // 2**20,
            )  # fmt: skip

    def _open(self, path: str) -> _Opened:
        reader = _parquet(path)
        described = reader.metadata
        groups = [described.row_group(i) for i in range(described.num_row_groups)]
        return _Opened(reader.schema_arrow, [(group.num_rows, group.total_byte_size) for group in groups])

    def _load(self, shard: int, group: int) -> Any:
        if shard not in self._readers:
            self._readers[shard] = _parquet(self.paths[shard])
        return self._readers[shard].read_row_group(group, use_threads=False)


class Saved(_Columnar):
    """A split that `Dataset.save_to_disk` wrote: Arrow files."""

    def __init__(self, folder: str, options: Mapping[str, str], field: str = "data"):
        """Raises InputError as Parquet does, and for a folder of several splits."""
        if not os.path.isfile(os.path.join(folder, _STATE)):
            splits = sorted(entry.name for entry in os.scandir(folder) if os.path.isfile(os.path.join(entry.path, _STATE)))
            raise errors.InputError(f"{field} {folder}: has the splits {', '.join(splits) or '(none)'}; name one, {folder}/train")
        super().__init__(_files(folder, field), options, field)

    def _open(self, path: str) -> _Opened:
        batches = _arrow(path)
        return _Opened(batches[0], [(batch.num_rows, batch.nbytes) for batch in batches[1]])

    def _load(self, shard: int, group: int) -> Any:
        if shard not in self._readers:
            self._readers[shard] = _arrow(self.paths[shard])
        return self._readers[shard][1][group]


def _parquet(path: str) -> Any:
    import pyarrow.parquet  # 0.15 s, for those who use it

    return _named(path, lambda: pyarrow.parquet.ParquetFile(places.opened(path) if places.is_remote(path) else path, memory_map=False))


def _arrow(path: str) -> tuple[Any, list[Any]]:
    import pyarrow

    def mapped() -> tuple[Any, list[Any]]:
        reader = pyarrow.ipc.open_stream(pyarrow.memory_map(path))
        return reader.schema, list(reader)

    return _named(path, mapped)


def _named(path: str, function: Callable[[], Any]) -> Any:
    """The errors of Arrow name no file."""
    try:
        return function()
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(f"{path}: cannot be read ({error.strerror})") from error
        raise ValueError(f"{path}: not whole, or of another form ({' '.join(str(error).split())})") from error


def _files(folder: str, field: str) -> list[str]:
    path = os.path.join(folder, _STATE)
    try:
        with open(path, encoding="utf-8") as file:
            state = json.load(file)
        names = [str(entry["filename"]) for entry in state["_data_files"]]
        if state.get("_indices_data_files") or not names or any(os.path.basename(name) != name for name in names):
            raise ValueError("rows that another file chooses, or none; save it again, dataset.flatten_indices().save_to_disk(...)")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise errors.InputError(f"{field} {path}: not as `datasets` saves it ({error})") from error
    return [os.path.join(folder, name) for name in names]


def _described(schema: Any) -> dict[str, dict[str, Any]]:
    """What `datasets` says of the columns in a file; nothing where another program wrote it."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
