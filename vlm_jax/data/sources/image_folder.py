"""Folders of images: each in the folder of its class, or with a table of captions beside them.

    root/cat/1.jpg  root/dog/sub/2.png     `label` and `label_name`: the folders in root, sorted by name, are the classes
    root/1.jpg  root/1.txt                 captions of one image, one a line
    root/metadata.csv, root/sub/2.png      a table of captions, labels and more, by file name

Hidden files and folders are left out. So are links that lead out of the root, with a warning.
"""

import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from typing import Any

from vlm_jax import errors
from vlm_jax.data import classes as class_names
from vlm_jax.data import records
from vlm_jax.data.sources import base, tables

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
LARGEST = 2**28
"""Bytes of an image or its captions above which it is not read."""
_DEEPEST = 32
"""Folders in folders; deeper ones are a mistake or a loop."""


class ImageFolder:
    """The images under a folder, in the order of their names; see the module."""

    def __init__(self, root: str, field: str = "data"):
        """Raises InputError for no images, images beside folders of classes, a folder that cannot be listed, or a malformed table."""
        self.root, self.classes = os.path.abspath(root), None
        outside: list[str] = []
        sizes = dict(_scan(self.root, field, outside))
        names = [name for name in sizes if name.lower().endswith(SUFFIXES)]
        self._beside = {os.path.splitext(name)[0] for name in sizes if name.endswith(".txt")}
        if outside:
            logging.getLogger(__name__).warning(
                "%s: %d links that are broken or lead out of the folder are left out, first %s", root, len(outside), outside[0]
            )
        if not names:
            shards = " or ".join(sorted({os.path.splitext(name)[1] for name in sizes} & {".tar", ".npz"}))
            hint = f"; name its shards by a pattern, {os.path.join(root, '*' + shards)}" if shards else f", {', '.join(SUFFIXES)}"
            raise errors.InputError(f"{field} {root}: the folder holds no images{hint}")
        self._rows: dict[str, dict[str, Any]] = {}
        table = tables.find(self.root)
        if table is not None:
            self._rows = tables.read(table, set(names), field)
            if len(self._rows) < len(names):
                logging.getLogger(__name__).warning("%s: %d of %d images are not in it", table, len(names) - len(self._rows), len(names))
            names = [name for name in names if name in self._rows]
            self._beside.clear()
        elif any("/" in name for name in names):
            flat = next((name for name in names if "/" not in name), None)
            if flat is not None:
                raise errors.InputError(f"{field} {root}: {flat} lies beside folders of classes; move it into the one of its class")
            folders = sorted({name.partition("/")[0] for name in names})
            self.classes = class_names.Classes(tuple((folder,) for folder in folders))
        self.names = names
        """Of the images, below the root."""
        self.paths = [os.path.join(self.root, name) for name in names] + ([table] if table else [])
        self._labels = {names[0]: i for i, names in enumerate(self.classes.names)} if self.classes else {}
        told = hashlib.sha256(repr([(name, sizes[name]) for name in (*names, *sorted(f"{n}.txt" for n in self._beside))]).encode())
        told.update(repr(sorted(self._rows.items())).encode())
        total = sum(sizes[name] for name in names)
        self.fingerprint = f"{len(names)} examples in a folder, {total} bytes, {told.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> base.Example:
        """Raises RecordError for a file that cannot be read, is gone, or is a giant."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        name = self.names[index]
        stem, _ = os.path.splitext(name)
        example: base.Example = {"captions": [], **self._rows.get(name, {})}
        try:
            if stem in self._beside:
                text = read(os.path.join(self.root, f"{stem}.txt")).decode("utf-8-sig")
                example["captions"] = [line.strip() for line in text.splitlines() if line.strip()]
            example["image"] = read(self.paths[index])
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise records.RecordError(f"{self.where(index)}: cannot be read ({why})") from error
        if self._labels:
            folder = name.partition("/")[0]
            example |= {"label": self._labels[folder], "label_name": folder}
        return example | {"key": name}

    def where(self, index: int) -> str:
        """The file, for messages."""
        return base.printable(self.paths[index])


def _scan(root: str, field: str, outside: list[str], below: str = "", depth: int = 0) -> Iterator[tuple[str, int]]:
    """Names below the root and sizes of the plain files that are not hidden; what no file or folder stands behind goes to `outside`."""
    folder = os.path.join(root, below)
    if depth > _DEEPEST:
        raise errors.InputError(f"{field} {folder}: more than {_DEEPEST} folders deep; name the one that holds the data")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise errors.InputError(f"{field} {folder}: cannot be listed ({error.strerror}); check its permissions") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        name = f"{below}{entry.name}"
        if entry.is_symlink():
            real = os.path.realpath(entry.path)
            inside = os.path.commonpath([os.path.realpath(root), real]) == os.path.realpath(root)
            if not inside or not os.path.isfile(real):
                outside.append(base.printable(name))
                continue
        if entry.is_dir(follow_symlinks=False):
            yield from _scan(root, field, outside, f"{name}/", depth + 1)
        elif entry.is_file():
            yield name, entry.stat().st_size


def read(path: str) -> bytes:
    """The bytes of a plain file; ValueError for what is none or a giant, OSError where it cannot be read."""
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # what became a pipe since does not wait for a writer
    with os.fdopen(opened, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("no plain file any more")
        if found.st_size > LARGEST:
            raise ValueError(f"{found.st_size:,} bytes, more than {LARGEST:,}")
        return file.read(LARGEST)
