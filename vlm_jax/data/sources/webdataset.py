"""WebDataset tars, read at random by an index of their members."""

import json
from collections.abc import Sequence
from typing import Any

from vlm_jax import errors
from vlm_jax.data import records, tar_index
from vlm_jax.data.sources import base


class WebDataset(base.Sharded):
    """Tar shards: per example an image (jpg, jpeg, png, webp) and its text (txt, or json with `caption` or `captions`).

    The key is the member's path up to the first dot of its base name; it is a name only and never a place to write. Fields of the
    json are fields of the example; `cls` is `label`. Members are read by offset from an index that is made once a shard.
    """

    def __init__(self, paths: Sequence[str]):
        """Raises InputError for a shard that is truncated, compressed, or without a complete example."""
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
        example: base.Example = {}
        if entry["json_size"]:
            example = json.loads(self._read(shard, entry, "json"))
            if not isinstance(example, dict):
                raise ValueError(f"its json is a {type(example).__name__}, not a map")
        captions = example.get("captions", example.get("caption"))
        if captions is None:
            captions = self._captions(self._read(shard, entry, "txt").decode("utf-8")) if entry["txt_size"] else []
        example["captions"] = [captions] if isinstance(captions, str) else captions
        if entry["cls_size"]:
            example["label"] = int(self._read(shard, entry, "cls"))
        example["key"] = tar_index.key(entry)
        example["image"] = self._read(shard, entry, "image")
        return example

    def _captions(self, text: str) -> list[str]:
        """Those of a txt member."""
        return [text]

    def _read(self, shard: int, entry: Any, member: str) -> bytes:
        return self._files.read(shard, int(entry[f"{member}_start"]), int(entry[f"{member}_size"]), member)

    def _table(self, shard: int) -> Any:
        table = self._tables[shard]
        if table is None:
            table = self._tables[shard] = tar_index.load(self.paths[shard])
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": [None] * len(self.paths)}
