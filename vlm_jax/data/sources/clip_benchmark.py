"""CLIP_benchmark's `wds_*` layout: folders of WebDataset tars with class names and templates, as its hub has them.

    wds_cifar10/classnames.txt                          a name a line, in the order of the labels
    wds_cifar10/zeroshot_classification_templates.txt   a sentence a line, {c} in the place of the name
    wds_cifar10/test/nshards.txt                        the number of tars
    wds_cifar10/test/0.tar ...                          s0000000.webp (or jpg, png) with s0000000.cls, .npy or .txt

`cls` is the index of the class, `npy` a vector with one number a class (positive: the image has it), `txt` captions, one a line.
"""

import os
from collections.abc import Mapping

import numpy as np

from vlm_jax import errors
from vlm_jax.data import classes as class_names
from vlm_jax.data import npy
from vlm_jax.data.sources import base, webdataset

_SHARDS = "nshards.txt"
_SPLIT = "test"
_MOST = 1_000_000


def is_one(folder: str) -> bool:
    """Whether a folder has this layout, or is a split of one."""
    return any(os.path.isfile(os.path.join(folder, name, _SHARDS)) for name in ("", _SPLIT)) or (
        os.path.isfile(os.path.join(folder, class_names.NAMES)) and bool(_splits(folder))
    )


class ClipBenchmark(webdataset.WebDataset):
    """The split `test` of a folder, or the split that is named, `wds_cifar10/train`."""

    _kinds = ("image", "txt", "json", "cls", "npy")

    def __init__(self, folder: str, field: str = "data"):
        """Raises InputError for a split or a tar that is not there, or what is no number, no names or no templates."""
        folder = os.path.normpath(folder)
        root, split = folder, os.path.join(folder, _SPLIT)
        if os.path.isfile(os.path.join(folder, _SHARDS)):
            root, split = os.path.dirname(os.path.abspath(folder)), folder
        elif not os.path.isfile(os.path.join(split, _SHARDS)):
            raise errors.InputError(f"{field} {folder}: has no split {_SPLIT}; name one, {os.path.join(folder, _splits(folder)[0])}")
        paths = [os.path.join(split, f"{i}.tar") for i in range(_number(os.path.join(split, _SHARDS), field))]
        missing = [path for path in paths if not os.path.isfile(path)]
        if missing:
            raise errors.InputError(
                f"{field} {missing[0]}: does not exist ({len(missing)} of {len(paths)} tars of {_SHARDS} are missing); load them again"
            )
        super().__init__(paths)
        self.classes = class_names.folder(root, field)

    def _with_more(self, example: base.Example, members: Mapping[str, bytes]) -> base.Example:
        if "npy" in members:
            found = npy.parse(members["npy"])
            if found.ndim != 1 or found.dtype.kind not in "biuf":
                raise ValueError(f"npy {found.dtype}{list(found.shape)}: must be a vector with one number a class")
            example["labels"] = np.flatnonzero(found > 0).tolist()
        label = example.get("label")
        if self.classes and isinstance(label, int) and 0 <= label < len(self.classes.names):
            example["label_name"] = self.classes.names[label][0]
        return example

    def _captions(self, text: str) -> list[str]:
        return [line.strip() for line in text.splitlines() if line.strip()]


def _splits(folder: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if os.path.isfile(os.path.join(entry.path, _SHARDS)))


def _number(path: str, field: str) -> int:
    with open(path, "rb") as file:
        text = file.read(32).decode("ascii", errors="replace").strip()
    if not text.isdecimal() or not 0 < int(text) <= _MOST:
        raise errors.InputError(f"{field} {path}: {text!r} is no number of tars, from 1 to {_MOST}")
    return int(text)
