"""Documents: pages of text and images in reading order, read at random.

A file holds one document a line (`.jsonl`), a key (`.tar`: KEY.json with the images beside it, KEY.0.jpg) or a record (`.array_record`). A
document is written in one of four forms:

    {"items": [{"text": "..."}, {"image": NAME}, ...]}                                       in order
    {"text_list": [...], "image_info": [{"image_name": NAME, "matched_text_index": 3}]}      mmc4: an image stands before its sentence
    {"texts": ["...", null], "images": [null, NAME]}                                         OBELICS: one of the two in each place
    {"text": "..."}                                                                          nothing but text

NAME is a file below the folder of a `.jsonl`, or a member of the same key in a tar, in full or without the key: `0.jpg`. In place of a
name there may be bytes (`.array_record`), or `image_base64` beside it. Images are read when they are asked for.
"""

import base64
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vlm_jax import errors
from vlm_jax.data import kept, places, records
from vlm_jax.data.sources import array_record, base, groups, patterns

LARGEST = 2**28
"""Bytes of an image or a line above which it is not read."""
_CHUNK = 2**26

Image = Callable[[], bytes]
"""Reads an encoded image, or raises RecordError."""


@dataclasses.dataclass(frozen=True)
class Document:
    """Text and images in reading order; no two texts follow one another."""

    key: str
    items: tuple[str | Image, ...]


class Documents(Protocol):
    """A sequence of documents. It can be pickled, and then opens its files again."""

    fingerprint: str
    """Equal fingerprints mean the same documents in the same order."""
    paths: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Document:
        """Raises RecordError for a document that cannot be used, IndexError outside."""
        ...

    def where(self, index: int) -> str:
        """File and place, for messages."""
        ...


def open_documents(pattern: str, field: str = "data") -> Documents:
    """The documents that a pattern names, see `patterns.expand`.

    Raises:
      InputError: as `expand`; files of another kind, of several kinds, or without documents.
    """
    paths = patterns.expand(pattern, field)
    kinds = {_kind(path, field) for path in paths}
    if len(kinds) > 1:
        raise errors.InputError(f"{field} {pattern}: files of {len(kinds)} kinds in one source; give one kind")
    return kinds.pop()(paths)


class JsonLines(base.Sharded):
    """`.jsonl` files with one document a line; the places of the lines are found once and kept."""

    def __init__(self, paths: Sequence[str]):
        """Raises InputError for a file without lines, or one behind a network."""
        places.only_local(list(paths), "lines with documents")
        self._lines: list[Any] = [_lines(path) for path in paths]
        for path, lines in zip(paths, self._lines, strict=True):
            if not len(lines):
                raise errors.InputError(f"{path}: holds no documents; leave it out")
        super().__init__(paths, [len(lines) for lines in self._lines])
        self._files = base.Files(paths)

    def __getitem__(self, index: int) -> Document:
        """Raises RecordError for a line that is no document, InfrastructureError where the disk fails."""
        shard, place = self._find(index)
        try:
            start, stop = (int(place) for place in self._table(shard)[place])
            if stop - start > LARGEST:
                raise ValueError(f"{stop - start:,} bytes, more than {LARGEST:,}")
            record = json.loads(self._files.read(shard, start, stop - start, "line"))
            folder = os.path.dirname(os.path.abspath(self.paths[shard]))
            return parse(record, str(index), lambda name: lambda: _read_below(folder, name))
        except (ValueError, RecursionError) as error:
            raise records.RecordError(f"{self.where(index)}: {error}") from error
        except OSError as error:
            raise errors.InfrastructureError(f"{self.where(index)}: cannot be read ({error}); is the disk still there?") from error

    def where(self, index: int) -> str:
        """File and document, for messages."""
        shard, place = self._find(index)
        return f"{self.paths[shard]}: document {place}"

    def _table(self, shard: int) -> Any:
        table = self._lines[shard]
        if table is None:
            table = self._lines[shard] = _lines(self.paths[shard])
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lines": [None] * len(self.paths)}


class ArrayRecords:
    """`.array_record` shards with one document a record, whose images may be bytes."""

    def __init__(self, paths: Sequence[str]):
        """Raises InputError for a shard that is damaged or empty."""
        self._records = array_record.ArrayRecord(paths)
        self.paths, self.fingerprint, self.where = self._records.paths, self._records.fingerprint, self._records.where

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Document:
        """Raises RecordError for a record that is damaged or no document."""
        record = self._records[index]
        try:
            return parse(record, str(index), None)
        except ValueError as error:
            raise records.RecordError(f"{self.where(index)}: {error}") from error


class Tars:
    """Tar shards with one document a key: KEY.json in one of the forms, with the images beside it."""

    def __init__(self, paths: Sequence[str]):
        """Raises InputError for a shard that is truncated or compressed, or holds nothing."""
        self._groups = groups.Groups(paths)
        self.paths, self.fingerprint, self.where = self._groups.paths, self._groups.fingerprint, self._groups.where

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Document:
        """Raises RecordError for a key without a document."""
        group = self._groups.group(index)

        def named(name: str) -> Image:
            own = name if name in group.spans else name.removeprefix(f"{group.key}.")
            return lambda: self._groups.read(index, group, own)

        try:
            return parse(json.loads(self._groups.read(index, group, "json")), group.key, named)
        except records.RecordError:
            raise
        except (ValueError, RecursionError) as error:
            raise records.RecordError(f"{self.where(index)}: {error}") from error


def parse(record: Any, key: str, named: Callable[[str], Image] | None) -> Document:
    """A document out of a record in one of the four forms.

    Args:
      key: where the record has none.
      named: makes an image of a name; None: there are none beside the record.

    Raises:
      ValueError: another form.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"is a {type(record).__name__}, not a map")
    if "items" in record:
        items, joint = _in_order(record["items"]), "\n\n"
    elif "text_list" in record:
        items, joint = _mmc4(record["text_list"], record.get("image_info", [])), " "
    elif "texts" in record and "images" in record:
        items, joint = _obelics(record["texts"], record["images"]), "\n\n"
    elif isinstance(record.get("text"), str):
        items, joint = [record["text"]], ""
    else:
        raise ValueError("has neither items, nor text_list, nor texts and images, nor a text")
    made: list[str | Image] = []
    for item in items:
        if not isinstance(item, str):
            made.append(_image(item, named))
        elif made and isinstance(made[-1], str):
            made[-1] = made[-1] + joint + item
        elif item.strip():
            made.append(item)
    return Document(str(record.get("key", key)), tuple(made))


def _in_order(items: Any) -> list[str | dict[str, Any]]:
    if not isinstance(items, (list, tuple)) or not all(isinstance(i, Mapping) and ("text" in i) != ("image" in i) for i in items):
        raise ValueError('its items are not a list of {"text": ...} and {"image": ...}')
    if not all(isinstance(item.get("text", ""), str) for item in items):
        raise ValueError("the text of an item is no string")
    return [item["text"] if "text" in item else dict(item) for item in items]


def _mmc4(texts: Any, infos: Any) -> list[str | dict[str, Any]]:
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise ValueError("its text_list is not a list of texts")
    before: dict[int, list[dict[str, Any]]] = {}
    for info in infos:
        place = info.get("matched_text_index") if isinstance(info, Mapping) else None
        if not isinstance(place, int) or not 0 <= place < len(texts):
            raise ValueError(f"matched_text_index {place!r:.20} of an image is none of its {len(texts)} texts")
        before.setdefault(place, []).append(dict(info) | {"image": info.get("image_name", info.get("raw_url"))})
    return [item for place, text in enumerate(texts) for item in (*before.get(place, ()), text)]


def _obelics(texts: Any, images: Any) -> list[str | dict[str, Any]]:
    if not isinstance(texts, (list, tuple)) or not isinstance(images, (list, tuple)) or len(texts) != len(images):
        raise ValueError("its texts and images are not two lists of the same length")
    items: list[str | dict[str, Any]] = []
    for text, image in zip(texts, images, strict=True):
        if (text is None) == (image is None) or not isinstance(text, str | None):
            raise ValueError("a place has not one of a text and an image, with null for the other")
        items.append({"image": image} if text is None else text)
    return items


def _image(item: Mapping[str, Any], named: Callable[[str], Image] | None) -> Image:
    value, encoded = item.get("image"), item.get("image_base64")
    if isinstance(encoded, str):
        return lambda: _decoded(encoded)
    if isinstance(value, bytes):
        return lambda: value
    if not isinstance(value, str) or named is None:
        raise ValueError(f"an image is {'not beside it' if isinstance(value, str) else f'a {type(value).__name__}, not a name'}")
    if "://" in value:
        raise ValueError(f"an image is an address, {base.printable(value):.80}; download the images, and name their files")
    return named(value)


def _decoded(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise records.RecordError(f"its image_base64 is not base64 ({error})") from error


def _read_below(folder: str, name: str) -> bytes:
    """A plain file below a folder; a name that leads elsewhere is refused."""
    root = os.path.realpath(folder)
    path = "" if "\0" in name else os.path.realpath(os.path.join(root, name))
    if not path.startswith(os.path.join(root, "")):
        raise records.RecordError(f"image {base.printable(name)} is not below the folder of its document")
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > LARGEST:
            raise OSError("no such file" if not os.path.isfile(path) else f"more than {LARGEST:,} bytes")
        with open(path, "rb") as file:
            return file.read(LARGEST)
    except OSError as error:
        raise records.RecordError(f"image {base.printable(name)}: {error.strerror or error}") from error


def _lines(path: str) -> np.ndarray:
    """int64[n, 2]: start and end of the lines of a file that are not empty."""

    def find() -> np.ndarray:
        ends = [np.zeros(0, np.int64)]
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            for start in range(0, size, _CHUNK):
                ends.append(start + np.flatnonzero(np.frombuffer(file.read(_CHUNK), np.uint8) == ord("\n")))
        stops = np.concatenate([*ends, np.full(1, size)])
        starts = np.concatenate([np.zeros(1, np.int64), stops[:-1] + 1])
        return np.stack([starts, stops], 1)[stops - starts > 1].ravel()  # the last line may lack its end; "\r" alone is empty

    stat = os.stat(path)
    return kept.array("lines", f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}", find).reshape(-1, 2)


def _kind(path: str, field: str) -> Callable[[Sequence[str]], Documents]:
    if path.endswith((".jsonl.gz", ".tgz", ".tar.gz", ".zst", ".zip")):
        raise errors.InputError(f"{field} {path}: compressed, and so without random access; unpack it first, such as gunzip {path}")
    if path.endswith(".jsonl"):
        return JsonLines
    if path.endswith(".tar"):
        return Tars
    if array_record.SUFFIX.search(path):
        return ArrayRecords
    raise errors.InputError(f"{field} {path}: documents are read from .jsonl, .tar and .array_record files, texts alone from .txt, too")
