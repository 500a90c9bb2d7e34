"""WebDataset tars, read at random by an index of their members."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax import errors
from vlm_jax.data import records, tar_index
from vlm_jax.data.sources import base


class WebDataset(base.Sharded):
    """Tar shards: per example an image (jpg, jpeg, png, webp) and its text (txt, or json).

    A json is a list of captions, or a map with `caption` or `captions` (one or a list of them), whose other fields are fields of the
    example, as img2dataset writes them. `cls` is `label`. The key is the member's path up to the first dot of its base name; it is a
    name only and never a place to write. Members are read by offset from an index that is made once a shard.
    """

    _kinds: tuple[str, ...] = ("image", "txt", "json", "cls")
    """Members that are read."""

    def __init__(self, paths: Sequence[str]):
        """Raises InputError for a shard that is truncated, compressed, or without a complete example."""
        tar_index.prepare(paths)
        tables = base.each(tar_index.load, paths)
        super().__init__(paths, [len(table) for table in tables])
        self._tables: list[Any] = list(tables)
        self._files = base.Files(paths)

    def __getitem__(self, index: int) -> base.Example:
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
        return f"{self.paths[shard]}: {base.printable(key)}"

    def _example(self, shard: int, entry: Any) -> base.Example:
        kinds = [kind for kind in self._kinds if entry[f"{kind}_size"]]
        spans = {kind: (int(entry[f"{kind}_start"]), int(entry[f"{kind}_size"])) for kind in kinds}
        members = self._files.read_parts(shard, spans) if spans else {}
        example: Any = json.loads(members["json"]) if "json" in members else {}
        if isinstance(example, list) and all(isinstance(caption, str) for caption in example):
            example = {"captions": example}
        if not isinstance(example, dict):
            raise ValueError(f"its json is a {type(example).__name__}, not a map and no list of captions")
        captions = example.get("captions", example.get("caption"))
        if captions is None:
            captions = self._captions(members["txt"].decode("utf-8")) if "txt" in members else []
        example["captions"] = [captions] if isinstance(captions, str) else captions
        if "cls" in members:
            example["label"] = int(members["cls"])
        example |= {"key": tar_index.key(entry), "image": members.get("image", b"")}
        return self._with_more(example, members)

    def _captions(self, text: str) -> list[str]:
        """Those of a txt member."""
        return [text]

    def _with_more(self, example: base.Example, members: Mapping[str, bytes]) -> base.Example:
        """What another layout adds to an example."""
        return example

    def _table(self, shard: int) -> Any:
        table = self._tables[shard]
        if table is None:
            table = tar_index.load(self.paths[shard])
            if len(table) != self._ends[shard] - (self._ends[shard - 1] if shard else 0):
                raise errors.InputError(f"{self.paths[shard]}: changed since the run began; start it again")
            self._tables[shard] = table
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": [None] * len(self.paths)}
