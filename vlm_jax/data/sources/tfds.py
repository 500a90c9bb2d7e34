"""TensorFlow Datasets that are prepared as ArrayRecord, read without TensorFlow.

`tfds:NAME[/CONFIG][:VERSION]/SPLIT` is looked up in $TFDS_DATA_DIR, or ~/tensorflow_datasets; a folder of one version may stand in
place of the name, `tfds:/data/cifar10/3.0.2/test`. A part of a split is `test[:100]`. Nothing is downloaded, and nothing of the
program that made the data is imported.
"""

import json
import os
import re
import threading
from typing import Any

import numpy as np

from vlm_jax import errors
from vlm_jax.data import classes as class_names
from vlm_jax.data import records
from vlm_jax.data.sources import base

SCHEME = "tfds:"
_FORM = "tfds:cifar10/test"
_NAME = re.compile(r"([a-zA-Z]\w*)(?:/([\w.-]+))?(?::(\d+\.\d+\.\d+))?")
_SPLIT = re.compile(r"[\w+%\[\]:.-]+")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_CAPTIONS = ("captions", "caption", "text")
_FEATURE = "pythonClassName", "type"


class Tfds:
    """A split of a prepared data set; see the module.

    The feature `image`, or the only image there is, is the image, as it is encoded; texts are captions by the names `captions`,
    `caption` or `text`; the only class label is `label` with `label_name`, a list of class labels `labels`. Others keep their names.
    """

    def __init__(self, pattern: str, field: str = "data"):
        """Raises InputError for a data set that is not there, in another format, without images, or without such a split."""
        place, slash, self._split = pattern.removeprefix(SCHEME).strip().rpartition("/")
        if not slash or not place or not _SPLIT.fullmatch(self._split):
            raise errors.InputError(f"{field} {pattern}: name a data set and its split, {_FORM}")
        self._folder = _locate(os.path.expanduser(place), pattern, field)
        _check(self._folder, pattern, field)
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        try:
            opened = self._open()
        except Exception as error:  # its readers raise nearly every type
            raise errors.InputError(f"{field} {pattern}: cannot be opened ({error}); prepare it again") from error
        self._length = len(opened.source)
        self.paths = sorted({str(part.filename) for part in opened.instructions})
        missing = [path for path in self.paths if not os.path.isfile(path)]
        if missing:
            raise errors.InputError(f"{field} {missing[0]}: does not exist ({len(missing)} of {len(self.paths)}); prepare the data again")
        if not self._length:
            raise errors.InputError(f"{field} {pattern}: holds no records; name another split")
        if not opened.image:
            raise errors.InputError(f"{field} {pattern}: has no image, only {', '.join(sorted(opened.features))}")
        self.classes = class_names.Classes(tuple((name,) for name in opened.names)) if opened.names else None
        takes = [(os.path.basename(part.filename), part.skip, part.take) for part in opened.instructions]
        self.fingerprint = f"{base.fingerprint(self.paths, [self._length] + [0] * (len(self.paths) - 1))}, {takes}"

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> base.Example:
        """Raises RecordError for a damaged record."""
        if not 0 <= index < self._length:
            raise IndexError(f"example {index} of {self._length}")
        opened = self._opened or self._open()
        try:
            record = opened.source[index]
        except Exception as error:
            raise records.RecordError(f"{self.where(index)}: damaged ({error})") from error
        example = {name: _plain(value) for name, value in record.items()}
        image = example.pop(opened.image)
        captions = next((example.pop(name) for name in _CAPTIONS if name in example), [])
        captions = captions.get("text", []) if isinstance(captions, dict) else captions
        example["captions"] = [captions] if isinstance(captions, str) else captions
        if opened.label:
            label = example["label"] = example.pop(opened.label)
            if self.classes and isinstance(label, int) and 0 <= label < len(self.classes.names):
                example["label_name"] = self.classes.names[label][0]
        if opened.labels:
            example["labels"] = np.asarray(example.pop(opened.labels)).tolist()
        key = example.get("key")
        return example | {"key": key if isinstance(key, str) else str(index), "image": image}

    def where(self, index: int) -> str:
        """Folder, split and place, for messages."""
        return f"{self._folder}: {self._split} record {index}"

    def _open(self) -> "_Opened":
        with self._lock:
            if self._opened is None:
                self._opened = _Opened(self._folder, self._split)
            return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class _Opened:
    """The readers of a split, and which features are what."""

    def __init__(self, folder: str, split: str):
        import tensorflow_datasets as tfds  # half a second, for those who use it

        builder: Any = tfds.builder_from_directory(folder)
        self.features: dict[str, Any] = dict(builder.info.features or {})
        self.instructions = builder.info.splits[split].file_instructions
        pictures, labels, lists = (
            _of_kind(self.features, kind) for kind in (tfds.features.Image, tfds.features.ClassLabel, tfds.features.Sequence)
        )
        lists = [name for name in lists if isinstance(getattr(self.features[name], "feature", None), tfds.features.ClassLabel)]
        self.image = "image" if "image" in pictures else next(iter(pictures), "")
        self.label = _only("label", labels)
        self.labels = _only("labels", lists)
        of_classes = self.features[self.label] if self.label else self.features[self.labels].feature if self.labels else None
        self.names: list[str] | None = getattr(of_classes, "names", None)
        """Of the classes."""
        self.source = builder.as_data_source(split=split, decoders={name: tfds.decode.SkipDecoding() for name in pictures})


def _of_kind(features: dict[str, Any], kind: type) -> list[str]:
    return [name for name, feature in features.items() if type(feature) is kind]


def _only(name: str, found: list[str]) -> str:
    """The one of this name, or the only one; empty where there is no such."""
    return name if name in found else found[0] if len(found) == 1 else ""


def _locate(place: str, pattern: str, field: str) -> str:
    """The folder of a version."""
    if os.path.isfile(os.path.join(place, "dataset_info.json")):
        return os.path.abspath(place)
    match = _NAME.fullmatch(place)
    if match is None:
        raise errors.InputError(f"{field} {pattern}: {place} is no data set's name and no folder with a dataset_info.json; write {_FORM}")
    name, config, version = match.groups()
    root = os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    folder = os.path.join(root, name, *([config] if config else []))
    versions = [v for v in _folders(folder) if os.path.isfile(os.path.join(folder, v, "dataset_info.json")) and _VERSION.fullmatch(v)]
    if version and version not in versions:
        raise errors.InputError(f"{field} {pattern}: {folder} has the versions {', '.join(versions) or '(none)'}, not {version}")
    if not versions:
        configs = [c for c in _folders(folder) if any(_VERSION.fullmatch(v) for v in _folders(os.path.join(folder, c)))]
        if configs:
            some = f"tfds:{name}/{configs[0]}/..."
            raise errors.InputError(f"{field} {pattern}: {name} has the configurations {', '.join(configs)}; name one, {some}")
        raise errors.InputError(
            f"{field} {pattern}: not prepared in {root}; where TensorFlow is installed, run "
            f"`tfds build {name} --file_format=array_record`, or set TFDS_DATA_DIR to where it is"
        )
    return os.path.join(folder, version or max(versions, key=lambda v: tuple(map(int, v.split(".")))))


def _folders(folder: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if os.path.isdir(folder) else []


def _check(folder: str, pattern: str, field: str) -> None:
    """Refuses other formats, and features whose code would be imported from elsewhere."""
    info, features = (_json(os.path.join(folder, name), field) for name in ("dataset_info.json", "features.json"))
    form = info.get("fileFormat", "tfrecord")
    if form != "array_record":
        raise errors.InputError(
            f"{field} {pattern}: is prepared as {form}, which has no random access without TensorFlow; where that is installed, run "
            f"`tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record --out_dir={folder}-array_record`, "
            "and name that folder"
        )
    for name in _classes_of(features):
        if not name.startswith("tensorflow_datasets.core.features."):
            raise errors.InputError(f"{field} {pattern}: features.json wants the program {base.printable(name)!r}, which is not imported")


def _classes_of(content: Any) -> list[str]:
    """The Python classes that a description of features names, at any depth."""
    if isinstance(content, dict):
        own = [str(v) for k, v in content.items() if k in _FEATURE and isinstance(v, str)]
        return own + [name for value in content.values() for name in _classes_of(value)]
    return [name for value in content for name in _classes_of(value)] if isinstance(content, list) else []


def _json(path: str, field: str) -> dict[str, Any]:
    try:
        if os.path.getsize(path) > 2**26:
            raise ValueError("more than 64 MiB")
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}, not a map")
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise errors.InputError(f"{field} {path}: cannot be read ({error}); prepare the data again") from error


def _plain(value: Any) -> Any:
    """Text as str, numbers as Python's; other bytes and arrays as they are."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [_plain(part) for part in value.tolist()]
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0:
        return _plain(value.item()) if isinstance(value, np.ndarray) else value.item()
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    return value
