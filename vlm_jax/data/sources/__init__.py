"""Sources: data on disk as one sequence of examples, read at random.

An example is a map with `key` (str), `image` (encoded bytes), `captions` (list of str, possibly empty) and whatever else its
record has, see `base.Example`. To add a source, write a class as `base.Source` describes it and name its suffix here.
docs/data.md shows each.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence

from vlm_jax import errors
from vlm_jax.data import places
from vlm_jax.data.sources import (
    array_record,
    arrays,
    cifar,
    clip_benchmark,
    coco,
    columnar,
    columns,
    delimited,
    image_folder,
    json_lines,
    patterns,
    tfds,
)
from vlm_jax.data.sources.array_record import ArrayRecord
from vlm_jax.data.sources.base import Example, Source
from vlm_jax.data.sources.patterns import expand
from vlm_jax.data.sources.webdataset import WebDataset

__all__ = ["ArrayRecord", "Example", "Source", "WebDataset", "expand", "open_source"]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Files of a suffix."""

    source: Callable[..., Source]
    options: tuple[str, ...] = ()
    """What may stand behind a `#`; a source with options takes them and the name of the field."""

    def open(self, paths: Sequence[str], options: Mapping[str, str], field: str) -> Source:
        return self.source(paths, options, field) if self.options else self.source(paths)


_BY_SUFFIX = {
    ".tar": _Kind(WebDataset),
    ".array_record": _Kind(ArrayRecord),
    ".parquet": _Kind(columnar.Parquet, columns.OPTIONS),
    ".csv": _Kind(delimited.Delimited, columns.OPTIONS),
    ".tsv": _Kind(delimited.Delimited, columns.OPTIONS),
    ".jsonl": _Kind(json_lines.JsonLines, columns.OPTIONS),
    ".json": _Kind(coco.Coco, coco.OPTIONS),
    ".npz": _Kind(arrays.Arrays),
    ".bin": _Kind(cifar.Cifar),
}
_OPTIONS = {name for kind in _BY_SUFFIX.values() for name in kind.options}
_ADVICE = {
    (".tgz", ".tar.gz"): "a compressed tar has no random access; unpack it: `gunzip {0}` makes a .tar",
    (".tar.bz2", ".tar.xz", ".tar.zst"): "a compressed tar has no random access; unpack it to a .tar",
    (".csv.gz", ".tsv.gz", ".jsonl.gz", ".json.gz"): "unpack it: `gunzip {0}`",
    (".tfrecord",): "TFRecord has no random access without TensorFlow; tfds:FOLDER/SPLIT of a TFDS data set says how to convert it",
    (".arrow",): "name the folder that `datasets` saved",
    (".pkl", ".pickle", ".npy", ".pt"): "nothing is unpickled; save the arrays with np.savez",
    image_folder.SUFFIXES: "an image; name the folder that it is in",
}
"""What to do with files of other suffixes."""
_NUMBERED = re.compile(r"\d{5,}\.tar")


def open_source(pattern: str, field: str = "data") -> Source:
    """The source that a pattern names.

    - files with braces, lists, globs and `::`, see `expand`: tars, ArrayRecord shards, parquet, tables (`.csv`, `.tsv`, `.jsonl`), COCO's
      JSON, arrays (`.npz`, CIFAR's `.bin`); behind a `#` stands what is to be known of them, `pairs.csv#image=photo`;
    - a folder in CLIP_benchmark's `wds_*` layout, or one of its splits;
    - a folder that img2dataset filled with tars, or that `datasets` saved;
    - any other folder: images, in folders of their classes or beside a table of captions;
    - `tfds:NAME/SPLIT`, a prepared data set of TensorFlow Datasets.

    Raises:
      InputError: as `expand`; another suffix, two kinds at once, or data that are damaged, empty or of another form.
    """
    if pattern.startswith(tfds.SCHEME):
        return tfds.Tfds(pattern, field)
    pattern, options = patterns.options(pattern, _OPTIONS, field)
    folder = "" if "::" in pattern else places.locate(pattern.strip(), field)
    if os.path.isdir(folder):
        return _open_folder(folder, options, field)
    paths = patterns.expand(pattern, field)
    kinds = [_suffix(path) for path in paths]
    if "" in kinds:
        other = paths[kinds.index("")]
        advice = next((text.format(other) for ends, text in _ADVICE.items() if other.lower().endswith(ends) or ends[0] + "-" in other), "")
        raise errors.InputError(f"{field} {other}: none of {', '.join(_BY_SUFFIX)}{'; ' if advice else ''}{advice}")
    if len(set(kinds)) > 1:
        raise errors.InputError(f"{field} {pattern}: {' and '.join(sorted(set(kinds)))} files in one source; give one kind")
    kind = _BY_SUFFIX[kinds[0]]
    _check_options(pattern, options, kind.options, field)
    return kind.open(paths, options, field)


def _open_folder(folder: str, options: Mapping[str, str], field: str) -> Source:
    if columnar.is_saved(folder):
        _check_options(folder, options, columns.OPTIONS, field)
        return columnar.Saved(folder, options, field)
    _check_options(folder, options, (), field)
    if clip_benchmark.is_one(folder):
        return clip_benchmark.ClipBenchmark(folder, field)
    if tars := _numbered(folder):
        return WebDataset(tars)
    return image_folder.ImageFolder(folder, field)


def _check_options(pattern: str, options: Mapping[str, str], known: Sequence[str], field: str) -> None:
    other = next((name for name in options if name not in known), None)
    if other is not None:
        said = f"it takes {', '.join(f'{name}=' for name in known)}" if known else "it takes nothing behind a #"
        raise errors.InputError(f"{field} {pattern}#{other}={options[other]}: {said}")


def _numbered(folder: str) -> list[str]:
    """The tars of a folder that img2dataset filled: 00000.tar and so on. Others may be several data sets."""
    try:
        return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if _NUMBERED.fullmatch(name)]
    except OSError:
        return []  # what reads the folder says why


def _suffix(path: str) -> str:
    """One of those known; empty for others."""
    if array_record.SUFFIX.search(path):
        return ".array_record"
    return next((suffix for suffix in _BY_SUFFIX if path.lower().endswith(suffix)), "")
