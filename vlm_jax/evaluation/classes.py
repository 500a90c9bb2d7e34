"""Classes of images: the vectors that their prompts have, and the labels of records."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from vlm_jax.data import classes as class_names
from vlm_jax.data import sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, metrics

Classes = class_names.Classes
Inner = Literal["normalize", "none"]
"""Whether the embedding of each prompt is normalised before the mean over the prompts of a class, as in CLIP."""


def read(path: str, source: sources.Source | None = None) -> Classes:
    """The classes of files, see `data.classes`; those that the data bring themselves give what no file gives.

    Raises:
      InputError: there are neither, or a file is missing or malformed.
    """
    return class_names.read(path, getattr(source, "classes", None))


def embed(subject: base.Subject, classes: Classes, inner: Inner = "normalize", label: str = "prompts") -> np.ndarray:
    """A unit vector for each class, [c, e]: the mean of its prompts; a sentence that several classes have is embedded once."""
    groups = classes.prompts()
    texts = list(dict.fromkeys(text for group in groups for text in group))
    place = {text: i for i, text in enumerate(texts)}
    method = "embed_text" if inner == "normalize" else "project_text"
    found = subject.embed_texts(texts, label, method)
    return np.stack([metrics.class_weights(found[[place[text] for text in group]], inner) for group in groups])


@dataclasses.dataclass(frozen=True)
class Labels:
    """Reads the classes of records from one of their fields."""

    classes: Classes
    field: str
    """Holds an index into the names or a name; for `several` a list of them."""
    data: str
    """Where the records are, for messages."""
    file: str
    """Where the names are, for messages."""

    def one(self, source: sources.Source, count: int) -> np.ndarray:
        """int [n]: the class of each of the first `count` records.

        Raises:
          InputError: a record has no such field, or something else than a class in it.
        """
        examples = (source[i] for i in range(count))
        return np.array([self._index(self._value(example), self._name(example)) for example in examples])

    def several(self, source: sources.Source, count: int) -> np.ndarray:
        """bool [n, c]: which classes each of the first `count` records has; it may have none.

        Raises:
          InputError: a record has no such field, or something else than a list of classes in it.
        """
        truth = np.zeros((count, len(self.classes.names)), bool)
        for i in range(count):
            example = source[i]
            values, name = self._value(example), self._name(example)
            if not isinstance(values, list | tuple | np.ndarray):
                raise InputError(f"{self.field} {values!r:.80} of {name}: must be a list of classes, possibly empty")
            truth[i, [self._index(value, name) for value in values]] = True
        return truth

    def _name(self, example: Mapping[str, Any]) -> str:
        return f"record {example.get('key', '')!r} of {self.data}"

    def _value(self, example: Mapping[str, Any]) -> Any:
        if example.get(self.field) is None:
            raise InputError(
                f"label {self.field!r}: {self._name(example)} has no such field, it has {sorted(example)}; name the field with the class"
            )
        return example[self.field]

    def _index(self, value: Any, record: str) -> int:
        if isinstance(value, str):
            found = self.classes.indices.get(value, [])
            if len(found) != 1:
                what = "is none" if not found else f"is {len(found)}"
                raise InputError(
                    f"{self.field} {value!r} of {record} {what} of the names in {self.file}: use names that occur once, or indices"
                )
            return found[0]
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise InputError(f"{self.field} {value!r} of {record}: a label is an index or the name of a class")
        total = len(self.classes.names)
        if not 0 <= value < total:
            raise InputError(
                f"{self.field} {value} of {record}: {self.file} has {total} classes, so labels are 0 to "
                f"{total - 1}; add the missing names or mend the labels"
            )
        return int(value)
