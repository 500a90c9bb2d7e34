"""Labelled data sets to learn from and to be tested on: what the probes have in common."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from vlm_jax.data import classes as class_names
from vlm_jax.data import sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, classifier, predictions, zero_shot
from vlm_jax.evaluation import classes as classes_lib

Features = Literal["pooled", "projected"]
"""What a probe sees: what the image tower pools, before its projection and not normalised, or the L2-normalised embedding."""
METHODS: dict[Features, base.ImageMethod] = {"pooled": "image_features", "projected": "embed_image"}


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Images, each of one class."""

    source: sources.Source
    labels: np.ndarray
    """int [n]."""

    def __len__(self) -> int:
        return len(self.labels)

    def features(self, subject: base.Subject, kind: Features, label: str) -> np.ndarray:
        """[n, d], float32, in order; every process gets all of them."""
        return subject.embed_records(self.source, len(self), label, METHODS[kind])


@dataclasses.dataclass(frozen=True)
class Sets:
    """What there is to learn from, further sets, and the classes of all of them."""

    titles: tuple[str, ...]
    parts: tuple[Labelled, ...]


def read(named: Mapping[str, str], label: str, classes: str, limit: int) -> Sets:
    """Opens data sets of the same classes; the first is learned from.

    Args:
      named: shards of each by the field that names them.
      label: field of a record with its class, an index or a name.
      classes: files with the names, see `data.classes`; empty: those that the first set brings, or the labels that it has.
      limit: records of each, from the start; 0: all.

    Raises:
      InputError: a set is missing or empty, a label is none of the classes, or there is nothing to tell apart.
    """
    for field, data in named.items():
        if not data:
            raise InputError(f"{field} '': name shards with images and labels; a probe learns from some and is tested on others")
    opened = [base.open_records(data, limit) for data in named.values()]
    slim = [_without_images(source, count, label) for source, count in opened]
    if classes or getattr(opened[0][0], "classes", None) is not None:
        found = classes_lib.read(classes, opened[0][0])
    else:
        found = _classes_of(slim[0], label)
    file = classes or next(iter(named.values()))
    labels = [
        classes_lib.Labels(found, label, data, file).one(typing.cast(sources.Source, part), len(part))
        for data, part in zip(named.values(), slim, strict=True)
    ]
    parts = tuple(Labelled(source, ids) for (source, _), ids in zip(opened, labels, strict=True))
    if len(np.unique(labels[0])) < 2:
        field, data = next(iter(named.items()))
        raise InputError(f"{field} {data}: all of its {len(labels[0]):,} records are of one class; give data with several")
    return Sets(found.titles, parts)


def told(features: Features, width: int, scaling: classifier.Scaling) -> str:
    """What a probe sees, for its note."""
    name = "Features before the projection" if features == "pooled" else "L2-normalised embeddings"
    return f"{name}, {width:,} values{', standardised' if scaling == 'standardize' else ''}"


def blind(train: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, float]:
    """What is reached by always answering with the most frequent classes among those learned from, best first."""
    order = np.argsort(-np.bincount(train, minlength=num_classes), kind="stable")
    place = np.argsort(order, kind="stable")[labels]
    present = np.unique(labels)
    found = {"acc1": float((place < 1).mean()), "mean_per_class_recall": float((present == order[0]).mean())}
    return found | ({"acc5": float((place < 5).mean())} if num_classes > 5 else {})


def shown(
    subject: base.Subject, test: Labelled, found: predictions.Predictions, titles: tuple[str, ...], count: int
) -> list[base.Example]:
    """Hits, misses and confused pairs as of `zero_shot.examples`, without scores, which are no cosines."""
    return [
        dataclasses.replace(e, answers=tuple(dataclasses.replace(answer, score=None) for answer in e.answers))
        for e in zero_shot.examples(subject, test.source, found, titles, count)
    ]


def _without_images(source: sources.Source, count: int, label: str) -> list[dict[str, typing.Any]]:
    """Records with the values of `key` and `label` only, so that a pass over the data is not made twice."""
    examples = (source[i] for i in range(count))
    return [{name: e[name] if name in ("key", label) else None for name in e} for e in examples]


def _classes_of(examples: Sequence[dict[str, typing.Any]], label: str) -> class_names.Classes:
    """Names in alphabetical order, or indices up to the largest one."""
    values = [e.get(label) for e in examples]
    if all(isinstance(value, str) for value in values):
        return class_names.Classes(tuple((name,) for name in sorted({str(value) for value in values})))
    largest = max((int(value) for value in values if isinstance(value, int | np.integer)), default=-1)
    return class_names.Classes(tuple((str(i),) for i in range(largest + 1)))
