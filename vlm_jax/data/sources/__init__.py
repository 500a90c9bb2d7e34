"""Sources: data on disk as one sequence of examples, read at random.

An example is a map with `key` (str), `image` (encoded bytes), `captions` (list of str, possibly empty) and whatever else its
record has, see `base.Example`. To add a source, write a class as `base.Source` describes it and name its suffix here.
docs/data.md shows each.
"""

import os
import re
from collections.abc import Callable, Sequence

from vlm_jax import errors
from vlm_jax.data import places
from vlm_jax.data.sources import array_record, arrays, clip_benchmark, image_folder, patterns, tfds
from vlm_jax.data.sources.array_record import ArrayRecord
from vlm_jax.data.sources.base import Example, Source
from vlm_jax.data.sources.patterns import expand
from vlm_jax.data.sources.webdataset import WebDataset

__all__ = ["ArrayRecord", "Example", "Source", "WebDataset", "expand", "open_source"]

_BY_SUFFIX: dict[str, Callable[[Sequence[str]], Source]] = {
    ".tar": WebDataset,
    ".array_record": ArrayRecord,
    ".npz": arrays.Arrays,
}
"""Sources of files."""
_NUMBERED = re.compile(r"\d{5,}\.tar")


def open_source(pattern: str, field: str = "data") -> Source:
    """The source that a pattern names.

    - `.tar`, `.array_record` or `.npz` files, with braces, lists, globs and `::`, see `expand`;
    - a folder in CLIP_benchmark's `wds_*` layout, or one of its splits;
    - any other folder: images, in folders of their classes or beside a table of captions;
    - `tfds:NAME/SPLIT`, a prepared data set of TensorFlow Datasets.

    Raises:
      InputError: as `expand`; another suffix, two kinds at once, or data that are damaged, empty or of another form.
    """
    if pattern.startswith(tfds.SCHEME):
        return tfds.Tfds(pattern, field)
    folder = "" if "::" in pattern else places.locate(pattern.strip(), field)
    if os.path.isdir(folder):
        if clip_benchmark.is_one(folder):
            return clip_benchmark.ClipBenchmark(folder, field)
        if tars := _numbered(folder):
            return WebDataset(tars)
        return image_folder.ImageFolder(folder, field)
    paths = patterns.expand(pattern, field)
    kinds = [_suffix(path) for path in paths]
    if "" in kinds:
        other = paths[kinds.index("")]
        hint = "; unpack it to a .tar, compressed ones have no random access" if other.endswith((".tgz", ".gz")) else ""
        raise errors.InputError(f"{field} {other}: none of {', '.join(_BY_SUFFIX)}{hint}")
    if len(set(kinds)) > 1:
        raise errors.InputError(f"{field} {pattern}: {' and '.join(sorted(set(kinds)))} files in one source; give one kind")
    return _BY_SUFFIX[kinds[0]](paths)


def _numbered(folder: str) -> list[str]:
    """The tars of a folder that img2dataset filled: 00000.tar and so on. Others may be several data sets."""
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if _NUMBERED.fullmatch(name)]


def _suffix(path: str) -> str:
    """One of those known; empty for others."""
    if array_record.SUFFIX.search(path):
        return ".array_record"
    return next((suffix for suffix in _BY_SUFFIX if path.endswith(suffix)), "")
