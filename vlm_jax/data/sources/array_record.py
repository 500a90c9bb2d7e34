"""ArrayRecord shards written by `records.write`."""

import re
import threading
from collections.abc import Sequence
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from vlm_jax import errors
from vlm_jax.data import places, records
from vlm_jax.data.sources import base

SUFFIX = re.compile(r"\.array_?record(-\d+-of-\d+)?$")
"""Of the names of such shards."""


class ArrayRecord(base.Sharded):
    """Shards written by `records.write`."""

    def __init__(self, paths: Sequence[str]):
        """Raises InputError for a shard that is damaged, empty, of another program, or behind a network."""
        places.only_local(list(paths), "ArrayRecord shards")
        self._readers: list[Any] = [None] * len(paths)
        self._lock = threading.Lock()
        super().__init__(paths, base.each(_count_records, paths))
        self._check_first()

    def __getitem__(self, index: int) -> base.Example:
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

    def _check_first(self) -> None:
        """The format has checksums: what can be read and is no record of ours is of another program. A damaged one is one bad record."""
        try:
            first = self._open(0).read([0])[0]
        except (RuntimeError, ValueError, IndexError):
            return
        try:
            records.decode(first)
        except records.RecordError as error:
            raise errors.InputError(
                f"{self.paths[0]}: its records are of another program. Name the folder of a TFDS data set, tfds:FOLDER/SPLIT; write "
                "others with vlm_jax.data.records.write"
            ) from error

    def _open(self, shard: int) -> Any:
        with self._lock:
            if self._readers[shard] is None:
                self._readers[shard] = _open_array_record(self.paths[shard])
            return self._readers[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": [None] * len(self.paths), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


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
