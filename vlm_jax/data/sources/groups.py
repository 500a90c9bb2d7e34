"""Tars whose records have several images, `0001.json 0001.0.jpg 0001.1.jpg`: the members of each key, by an index that is made once."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax import errors
from vlm_jax.data import kept, places, records, tar_index
from vlm_jax.data.sources import base

_HEAD = 3


@dataclasses.dataclass(frozen=True)
class Group:
    """The members of a key."""

    key: str
    """The path of a member up to the first dot of its base name."""
    spans: Mapping[str, tuple[int, int]]
    """Start and size by what follows the key and its dot, such as `0.jpg`."""


class Groups(base.Sharded):
    """Tar shards as groups of members, in the order of their first ones."""

    def __init__(self, paths: Sequence[str]):
        """Raises InputError for a shard that is truncated or compressed, or has no members with a key."""
        tar_files = list(paths)
        self._tables: list[_Table | None] = base.each(_Table, tar_files)
        super().__init__(tar_files, [table.count for table in self._tables if table is not None])
        self._files = base.Files(tar_files)

    def group(self, index: int) -> Group:
        """The members of a record."""
        shard, place = self._find(index)
        return self._table(shard).group(place)

    def read(self, index: int, group: Group, name: str) -> bytes:
        """A member of a record.

        Raises:
          RecordError: none of this name, or a tar that was cut since.
          InfrastructureError: the disk fails.
        """
        shard, _ = self._find(index)
        if name not in group.spans:
            raise records.RecordError(f"{self.where(index)}: has no member {base.printable(name)}")
        try:
            return self._files.read(shard, *group.spans[name], name)
        except ValueError as error:
            raise records.RecordError(f"{self.where(index)}: {error}") from error
        except OSError as error:
            raise errors.InfrastructureError(f"{self.where(index)}: cannot be read ({error}); is the disk still there?") from error

    def where(self, index: int) -> str:
        """Shard and key, for messages."""
        shard, place = self._find(index)
        return f"{self.paths[shard]}: {base.printable(self._table(shard).group(place).key)}"

    def _table(self, shard: int) -> "_Table":
        table = self._tables[shard]
        if table is None:
            table = self._tables[shard] = _Table(self.paths[shard])
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": [None] * len(self.paths)}


class _Table:
    """The index of one shard: members ordered by key, the end of each key among them, and their names end to end."""

    def __init__(self, path: str):
        place = path if places.is_remote(path) else os.path.abspath(path)
        try:
            flat = kept.array("groups", f"{place} {places.version(path)}", lambda: _made(path))
        except OSError as error:
            raise errors.InputError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
        self.count, members, letters = (int(value) for value in flat[:_HEAD])
        self._ends, self._members = flat[_HEAD:][: self.count], flat[_HEAD + self.count :][: 3 * members].reshape(members, 3)
        self._names = flat[_HEAD + self.count + 3 * members :].view(np.uint8)[:letters]

    def group(self, place: int) -> Group:
        first, last = int(self._ends[place - 1]) if place else 0, int(self._ends[place])
        spans, key = {}, ""
        for member in range(first, last):
            start, size, end = (int(value) for value in self._members[member])
            begin = int(self._members[member - 1, 2]) if member else 0
            name = bytes(self._names[begin:end]).decode("utf-8", errors="surrogateescape")
            key, _ = tar_index.split(name)
            spans[name[len(key) + 1 :]] = (start, size)
        return Group(key, spans)


def _made(path: str) -> np.ndarray:
    found: dict[str, list[tuple[bytes, int, int]]] = {}
    for member in tar_index.members(path):
        key, extension = tar_index.split(member.name)
        if member.is_file and key and extension:
            found.setdefault(key, []).append((member.name.encode("utf-8", errors="surrogateescape"), member.start, member.size))
    if not found:
        raise errors.InputError(f"{path}: none of its members is a file with a name such as 0001.json")
    members = [member for group in found.values() for member in group]
    names = b"".join(name for name, _, _ in members)
    ends = np.cumsum([len(name) for name, _, _ in members])
    table = np.array([(start, size, end) for (_, start, size), end in zip(members, ends, strict=True)], np.int64)
    letters = np.frombuffer(names + bytes(-len(names) % 8), np.int64)
    head = np.array([len(found), len(members), len(names)], np.int64)
    return np.concatenate([head, np.cumsum([len(group) for group in found.values()]), table.ravel(), letters])
