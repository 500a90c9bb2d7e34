"""Zero-shot classification: the class whose prompts lie nearest to the image (Radford et al. 2021, section 3.1)."""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from vlm_jax.data import pipeline, places, sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, metrics


@dataclasses.dataclass(frozen=True)
class Classes:
    """Names and prompts of the classes, in the order of their labels."""

    names: tuple[tuple[str, ...], ...]
    """For each class its name, then further names (synonyms)."""
    templates: tuple[str, ...]
    """Sentences in which `{}` (or `{c}`) stands for the name."""

    @property
    def titles(self) -> tuple[str, ...]:
        """The first name of each class, with the index where several classes have the same."""
        first = [names[0] for names in self.names]
        counts = collections.Counter(first)
        return tuple(name if counts[name] == 1 else f"{name} ({i})" for i, name in enumerate(first))

    @functools.cached_property
    def indices(self) -> Mapping[str, list[int]]:
        """For each name the classes that have it."""
        found = collections.defaultdict(list)
        for i, names in enumerate(self.names):
            for name in dict.fromkeys(names):
                found[name].append(i)
        return found

    def prompts(self) -> list[list[str]]:
        """For each class the sentences of all its names in all templates."""
        return [
            [
                template.replace("{}" if "{}" in template else "{c}", name)
                for name in names
                for template in self.templates
            ]
            for names in self.names
        ]


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """Top-1 and top-5 accuracy and mean recall over classes, with prompt ensembles and without training."""

    data: str = ""
    """Shards with images and labels."""
    classes: str = ""
    """JSON file {"names": ["tench", ["crane", "crane bird"], ...], "templates": ["a photo of a {}.", ...]}."""
    label: str = "label"
    """Field of a record with its class: an index into the names, or a name."""
    limit: int = 0
    """Take only so many records from the start. 0: all."""
    every: int = 0
    """Steps from one evaluation to the next. 0: the run's eval_every."""
    note: str = ""
    """A sentence for the report, such as what a simpler model would reach."""
    examples: int = 8
    """Hits and misses to show, of each so many."""

    task: ClassVar[str] = "zeroshot_classification"

    def __call__(self, subject: base.Subject) -> base.Result:
        """Evaluates; every process of a run calls this and gets the same result.

        Raises:
          InputError: a file is missing or malformed, there are no records, or a label is none of the classes.
        """
        classes = read_classes(self.classes)
        source, count = base.open_records(self.data, self.limit)
        labels = np.array([self._label(source[i], classes) for i in range(count)])

        prompts = classes.prompts()
        texts = subject.embed_texts([text for group in prompts for text in group], "zero-shot prompts")
        ends = np.cumsum([len(group) for group in prompts])
        weights = np.stack([metrics.class_weights(part) for part in np.split(texts, ends[:-1])])
        images = subject.embed_records(source, count, "zero-shot images")

        scores = images @ weights.T
        ranks = metrics.label_ranks(scores, labels)
        counts = metrics.confusion(labels, scores.argmax(1), len(weights))
        values = {"acc1": float((ranks < 1).mean()), "mean_per_class_recall": metrics.mean_per_class_recall(counts)}
        chance = {"acc1": 1 / len(weights), "mean_per_class_recall": 1 / len(weights)}
        if len(weights) > 5:
            values["acc5"] = float((ranks < 5).mean())
            chance["acc5"] = 5 / len(weights)
        present = np.flatnonzero(counts.sum(1))
        table = base.Table(
            "true class", "predicted class", tuple(classes.titles[i] for i in present), classes.titles, counts[present]
        )
        return base.Result(
            metrics=values,
            tables={"confusion": table},
            examples=[
                *self._examples(subject, source, np.flatnonzero(ranks > 0), "misses", scores, labels, classes.titles),
                *self._examples(subject, source, np.flatnonzero(ranks == 0), "hits", scores, labels, classes.titles),
            ],
            chance=chance,
            note=f"{count:,} images, {len(weights):,} classes ({len(present):,} of them occur), {len(texts):,} prompts. "
            f"{self.note}".strip(),
        )

    def _label(self, example: Mapping[str, Any], classes: Classes) -> int:
        record = f"record {example.get('key', '')!r} of {self.data}"
        value = example.get(self.label)
        if value is None:
            raise InputError(
                f"label {self.label!r}: {record} has no such field, it has {sorted(example)}; name the field with the class"
            )
        if isinstance(value, str):
            found = classes.indices.get(value, [])
            if len(found) != 1:
                what = "is none" if not found else f"is {len(found)}"
                raise InputError(
                    f"{self.label} {value!r} of {record} {what} of the names in {self.classes}: use names that occur once, or indices"
                )
            return found[0]
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise InputError(f"{self.label} {value!r} of {record}: a label is an index or the name of a class")
        if not 0 <= value < len(classes.names):
            raise InputError(
                f"{self.label} {value} of {record}: {self.classes} has {len(classes.names)} classes, so labels are 0 to "
                f"{len(classes.names) - 1}; add the missing names or mend the labels"
            )
        return int(value)

    def _examples(
        self,
        subject: base.Subject,
        source: sources.Source,
        indices: np.ndarray,
        group: str,
        scores: np.ndarray,
        labels: np.ndarray,
        titles: tuple[str, ...],
    ) -> list[base.Example]:
        shown = []
        for i, _, image in pipeline.read(source, subject.transform, indices=base.spread(indices, self.examples)):
            top = np.argsort(-scores[i], kind="stable")[:5]
            answers = tuple(
                base.Entry(titles[c], score=float(scores[i, c]), verdict="right" if c == labels[i] else "wrong")
                for c in top
            )
            shown.append(
                base.Example(group, base.Entry(image=base.thumbnail(image)), answers, base.Entry(titles[labels[i]]))
            )
        return shown


def read_classes(path: str) -> Classes:
    """Reads names and templates of classes from a JSON file.

    Raises:
      InputError: the file is missing, or not of the form that `ZeroShot.classes` tells.
    """
    form = '{"names": ["cat", ["dog", "hound"]], "templates": ["a photo of a {}."]}'
    if not path:
        raise InputError(f"classes '': name a JSON file such as {form}")
    try:
        content = json.loads(pathlib.Path(places.locate(path, "classes")).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"classes {path!r} cannot be read ({error.strerror}): name a JSON file such as {form}"
        ) from error
    except ValueError as error:
        raise InputError(f"classes {path!r} is not JSON ({error}): it looks like {form}") from error
    names = content.get("names") if isinstance(content, dict) else None
    if not isinstance(names, list) or not names:
        raise InputError(f"classes {path!r}: names must be a list with at least one class, as in {form}")
    names = [[name] if isinstance(name, str) else name for name in names]
    for i, group in enumerate(names):
        if (
            not isinstance(group, list)
            or not group
            or not all(isinstance(name, str) and name.strip() for name in group)
        ):
            raise InputError(
                f"classes {path!r}: names[{i}] {group!r} must be a name or a list of names, none of them empty"
            )
    templates = content.get("templates", ["{}"])
    if not isinstance(templates, list) or not templates:
        raise InputError(f"classes {path!r}: templates must be a list with at least one sentence, as in {form}")
    for template in templates:
        if not isinstance(template, str) or not ("{}" in template or "{c}" in template):
            raise InputError(
                f"classes {path!r}: template {template!r} must be a sentence with {{}} in the place of the name"
            )
    return Classes(tuple(tuple(group) for group in names), tuple(templates))
