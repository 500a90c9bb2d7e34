"""CIFAR's binary version: `data_batch_1.bin`, `test_batch.bin` of CIFAR-10, `train.bin`, `test.bin` of CIFAR-100.

Records of one size: the label, or a coarse and a fine one, then 32 x 32 pixels of red, of green and of blue. The names of the classes are
in `batches.meta.txt` or `fine_label_names.txt` beside the files. The Python version is pickles and is not read.
"""

import os
from collections.abc import Sequence

import numpy as np

from vlm_jax import errors
from vlm_jax.data import classes as class_names
from vlm_jax.data import places, records
from vlm_jax.data.sources import arrays, base

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_CLASSES = {1: 10, 2: 100}
"""By the number of labels of a record."""
_NAMES = {1: "batches.meta.txt", 2: "fine_label_names.txt"}


class Cifar(base.Sharded):
    """Files of records, one after another; see the module."""

    def __init__(self, paths: Sequence[str], field: str = "data"):
        """Raises InputError for a file of another size, or whose first label is beyond its classes."""
        places.only_local(list(paths), "CIFAR's files", field)
        sizes = base.each(os.path.getsize, paths)
        self._labels = next((n for n in _CLASSES if all(size and size % (n + _PIXELS) == 0 for size in sizes)), 0)
        if not self._labels:
            raise errors.InputError(
                f"{field} {paths[0]}: {sizes[0]} bytes are no records of CIFAR-10 ({1 + _PIXELS} each) nor of CIFAR-100 ({2 + _PIXELS})"
            )
        super().__init__(paths, [size // (self._labels + _PIXELS) for size in sizes])
        names = os.path.join(os.path.dirname(paths[0]), _NAMES[self._labels])
        found = class_names.lines(names, field) if os.path.isfile(names) else []
        self.classes = class_names.Classes(tuple((name,) for name in found if name)) if found else None
        self._files = base.Files(paths)

    def __getitem__(self, index: int) -> base.Example:
        """Raises RecordError for a label that no class has, InfrastructureError where the disk fails."""
        shard, place = self._find(index)
        size = self._labels + _PIXELS
        try:
            data = np.frombuffer(self._files.read(shard, place * size, size, "image"), np.uint8)
        except ValueError as error:
            raise records.RecordError(f"{self.where(index)}: {error}") from error
        except OSError as error:
            raise errors.InfrastructureError(f"{self.where(index)}: cannot be read ({error}); is the disk still there?") from error
        label = int(data[self._labels - 1])
        if label >= _CLASSES[self._labels]:
            raise records.RecordError(f"{self.where(index)}: label {label} of {_CLASSES[self._labels]} classes; not CIFAR's file")
        pixels = data[self._labels :].reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)
        found: base.Example = {"key": str(index), "captions": [], "label": label, "image": arrays.bitmap(pixels)}
        if self._labels == 2:
            found["coarse_label"] = int(data[0])
        if self.classes and label < len(self.classes.names):
            found["label_name"] = self.classes.names[label][0]
        return found

    def where(self, index: int) -> str:
        """File and place, for messages."""
        shard, place = self._find(index)
        return f"{self.paths[shard]}: image {place}"
