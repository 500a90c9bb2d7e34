"""Columns: which of a row is its image, its captions and its key; the same for CSV, JSON lines, parquet and Arrow.

    pairs.csv                                    columns of the names below, whatever their case
    pairs.csv#image=photo&caption=title,alt      named: captions from two columns, one of an example each
    pairs.csv#root=/data/photos                  where the paths of images begin; else in the folder of the file
    pairs.csv#key=id                             what names an example in messages

An image is its encoded bytes, `{"bytes": ..., "path": ...}` as Hugging Face's datasets have it, base64 (plain, or as in
`data:image/png;base64,...`) or a path. A path leads nowhere but below the root.
"""

import base64
import binascii
import dataclasses
import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax import errors
from vlm_jax.data import places
from vlm_jax.data.sources import base, image_folder

OPTIONS = ("image", "caption", "key", "root")
IMAGES = (
    *("image", "file_name", "filename", "filepath", "file_path", "image_path", "img", "jpg", "jpeg", "png", "webp"),
    *("image_bytes", "image_base64", "bytes", "base64", "path", "file"),
)
CAPTIONS = ("captions", "caption", "text", "title")
FIRST = 16
"""Rows of a file of which one must have its image, before a run begins."""
_KEYS = ("key", "__key__")
_ADDRESSES = ("url", "image_url", "img_url", "urls", "image_urls", "link", "coco_url")
_BASE64 = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "SUkqA", "TU0AK")
"""How JPEG, PNG, WebP, GIF, BMP and TIFF begin in base64."""
_OURS = ("key", "image", "captions", "label_name")


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns that have a meaning; the others are fields of an example."""

    image: str
    captions: tuple[str, ...]
    key: str
    """Empty: the path of the image, or else the place of the row."""

    @property
    def taken(self) -> frozenset[str]:
        """Those that are no fields."""
        return frozenset({self.image, self.key, *self.captions, *_OURS})


def choose(names: Sequence[str], options: Mapping[str, str], path: str, field: str, likely: Sequence[str] = ()) -> Columns:
    """The columns of a file: those that the options name, or those of the usual names.

    Args:
      likely: columns that the file itself says are images.

    Raises:
      InputError: no column of images, or a named one that is not there.
    """
    asked = [options[name] for name in ("image", "key") if name in options]
    asked += options["caption"].split(",") if "caption" in options else []
    missing = [name for name in asked if name not in names]
    if missing:
        raise errors.InputError(f"{field} {path}: has no column {missing[0]!r}; it has {_listed(names)}")
    lower = {name.lower(): name for name in reversed(names)}
    image = options.get("image") or next(iter(likely), "") or next((lower[name] for name in IMAGES if name in lower), "")
    captions = options["caption"].split(",") if "caption" in options else [lower[name] for name in CAPTIONS if name in lower][:1]
    if not image:
        address = next((lower[name] for name in _ADDRESSES if name in lower), "")
        if address:
            raise errors.InputError(f"{field} {path}: {to_download(path, address, captions)}")
        raise errors.InputError(
            f"{field} {path}: none of its columns is known to be the image; name it, '{path}#image=COLUMN'. It has {_listed(names)}"
        )
    key = options.get("key") or next((lower[name] for name in _KEYS if name in lower), "")
    return Columns(image, tuple(captions), key)


def to_download(path: str, column: str, captions: Sequence[str]) -> str:
    """What to do with a file of addresses."""
    form = os.path.splitext(path)[1].removeprefix(".") or "parquet"
    caption = f" --caption_col {captions[0]}" if captions else ""
    return (
        f"holds addresses of images (column {column}) and no images, and nothing is downloaded here; download them with "
        f"`img2dataset --url_list {path} --input_format {form} --url_col {column}{caption} --output_format webdataset "
        "--output_folder shards`"
    )


def example(row: Mapping[str, Any], columns: Columns, images: "Below", place: str) -> base.Example:
    """The example of a row.

    Raises:
      ValueError: no image, or captions that are no text.
      OSError: an image that is not there or cannot be read.
    """
    found = {name: value for name, value in row.items() if name not in columns.taken}
    found["captions"] = captions(row, columns)
    value = row.get(columns.image)
    path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) and not is_embedded(value) else None
    key = row.get(columns.key) if columns.key else None
    found["key"] = str(key if key not in (None, "") else path or place)
    found["image"] = _image(value, images)
    return found


def captions(row: Mapping[str, Any], columns: Columns) -> list[str]:
    """Those of a row, without empty ones; ValueError where they are no text."""
    found: list[str] = []
    for name in columns.captions:
        value = row.get(name)
        value = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(caption, str) for caption in value):
            raise ValueError(f"captions {value!r:.80} are no text and no list of texts")
        found += [caption.strip() for caption in value if caption.strip()]
    return found


class Below:
    """Files below a folder, which may be a remote one, and no others."""

    def __init__(self, root: str):
        self.root = root.rstrip("/") if places.is_remote(root) else os.path.realpath(root)

    def inside(self, name: str) -> str:
        """The path below the folder; ValueError for a name that leads elsewhere."""
        if places.is_remote(name):
            raise ValueError(f"image {base.printable(name)!r:.200} is an address, and nothing is downloaded here; img2dataset does")
        below = posixpath.normpath(name)
        if below.startswith("/") and not places.is_remote(self.root):
            below = os.path.relpath(below, self.root)
        if below.startswith(("/", "../")) or below in ("..", "."):
            raise ValueError(
                f"image {base.printable(name)!r:.200} lies outside of {self.root}"
            )
        return below

    def path(self, name: str) -> str:
        """Where a file is; ValueError as `inside`, or for a link that leads elsewhere."""
        found = posixpath.join(self.root, self.inside(name))
        if not places.is_remote(found) and not os.path.realpath(found).startswith(os.path.join(self.root, "")):
            raise ValueError(f"image {base.printable(name)!r:.200} is a link that leads out of {self.root}")
        return found

    def read(self, name: str) -> bytes:
        """The bytes of a file; ValueError as `path`, OSError where it is not there or cannot be read."""
        path = self.path(name)
        if places.is_remote(path):
            return places.read(path, 0, image_folder.LARGEST)
        return image_folder.read(path)


def _image(value: Any, images: Below) -> bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("has no image" if value is None or value == "" else f"its image is a {type(value).__name__}")
    if not is_embedded(value):
        return images.read(value)
    try:
        return base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"image in base64: {error}") from error


def is_embedded(value: str) -> bool:
    """Whether a text is an image rather than a path."""
    return value.startswith("data:") or (value.startswith(_BASE64) and not value.lower().endswith(image_folder.SUFFIXES))


def check_first(names: Sequence[str], images: Below, path: str, field: str) -> None:
    """Says before the first step what would be wrong with every row.

    Raises:
      InputError: addresses in place of paths, or none of these first images is there.
    """
    wrong = ""
    for name in names:
        try:
            if is_embedded(name) or places.is_file(images.path(name)):
                return
            wrong = wrong or f"{base.printable(images.path(name))} does not exist"
        except (ValueError, OSError) as error:
            wrong = wrong or str(error)
    if wrong:
        raise errors.InputError(
            f"{field} {path}: {wrong}. Say where paths begin, '{path}#root=FOLDER', or which column they are in, '#image=COLUMN'"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(base.printable(name) for name in names)[:300] or "no columns"
