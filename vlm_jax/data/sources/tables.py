"""Tables beside images: captions, labels and more by file name.

`metadata.csv`, `.tsv` or `.jsonl` (as `datasets` of Hugging Face has them) or `captions.csv`, `.tsv`, `.jsonl`, `.txt` (with commas,
as Flickr8k) have a column `file_name` or `image`, and `caption`, `captions` or `text`; an image on several lines has several
captions. Other columns are fields of the example: numbers where a whole column is whole numbers. `captions.json` is a map from file
name to a caption or a list of them.
"""

import csv
import json
import os
from collections.abc import Iterable
from typing import Any

from vlm_jax import errors
from vlm_jax.data.sources import base

NAMES = tuple(f"metadata.{form}" for form in ("jsonl", "csv", "tsv")) + tuple(
    f"captions.{form}" for form in ("json", "jsonl", "csv", "tsv", "txt")
)
LARGEST = 2**30
"""Bytes above which a table is not read."""
_FILES = ("file_name", "image", "filename")
_CAPTIONS = ("captions", "caption", "text")
_OURS = ("key", "label_name")
csv.field_size_limit(2**20)


def find(folder: str) -> str | None:
    """The table of a folder.

    Raises:
      InputError: several.
    """
    found = [os.path.join(folder, name) for name in NAMES if os.path.isfile(os.path.join(folder, name))]
    if len(found) > 1:
        raise errors.InputError(f"data {folder}: {' and '.join(map(os.path.basename, found))} both describe its images; keep one")
    return found[0] if found else None


def read(path: str, images: set[str], field: str = "data") -> dict[str, dict[str, Any]]:
    """Fields by image, in the order of the table, with `captions` as a list.

    Args:
      images: names of files below the table's folder; a name that is none of them is refused, so none leads elsewhere.

    Raises:
      InputError: no table of this form, or a name that is none of the images.
    """
    if os.path.getsize(path) > LARGEST:
        raise errors.InputError(f"{field} {path}: {os.path.getsize(path)} bytes, more than {LARGEST}; write shards of such a data set")
    found: dict[str, dict[str, Any]] = {}
    try:
        for number, row in enumerate(_rows(path), start=1):
            column = next((name for name in _FILES if isinstance(row.get(name), str)), None)
            if column is None:
                raise ValueError(f"row {number} has no {' or '.join(_FILES)}, it has {sorted(map(str, row))}")
            name = os.path.normpath(row[column]) if row[column] else ""
            if name not in images:
                raise ValueError(f"row {number}: {base.printable(row[column])!r} is none of the {len(images)} images of the folder")
            fields = {key: value for key, value in row.items() if key not in (*_CAPTIONS, column, *_OURS) and isinstance(key, str)}
            fields["captions"] = found.get(name, {}).get("captions", []) + _captions(row, number)
            found[name] = fields
    except (ValueError, csv.Error, RecursionError) as error:
        raise errors.InputError(f"{field} {path}: {error}") from error
    if not found:
        raise errors.InputError(f"{field} {path}: has no rows; leave it out")
    if not path.endswith((".json", ".jsonl")):
        _to_numbers(found)
    return found


def _rows(path: str) -> Iterable[dict[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        if path.endswith(".json"):
            content = json.load(file)
            if not isinstance(content, dict) or not all(isinstance(value, str | list) for value in content.values()):
                raise ValueError('must be a map such as {"1.jpg": ["a cat", "it sleeps"]}')
            yield from ({"file_name": name, "captions": value} for name, value in content.items())
        elif path.endswith(".jsonl"):
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is a {type(row).__name__}, not a map")
                    yield row
        else:
            rows = csv.DictReader(file, delimiter="\t" if path.endswith(".tsv") else ",", strict=True)
            for number, row in enumerate(rows, start=1):
                if None in row or None in row.values():
                    raise ValueError(f"row {number} has more or fewer columns than the first line; put captions with commas in quotes")
                yield row


def _captions(row: dict[str, Any], number: int) -> list[str]:
    captions = next((row[name] for name in _CAPTIONS if row.get(name)), [])
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"row {number}: captions {captions!r:.80} are no text and no list of texts")
    return [caption.strip() for caption in captions if caption.strip()]


def _to_numbers(found: dict[str, dict[str, Any]]) -> None:
    for column in {name for fields in found.values() for name in fields} - {"captions"}:
        values = [fields[column] for fields in found.values() if column in fields]
        if all(isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 16 for value in values):
            for fields in found.values():
                if column in fields:
                    fields[column] = int(fields[column])
