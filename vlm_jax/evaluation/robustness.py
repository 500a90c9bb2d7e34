"""Accuracy on several data sets with the same classes: how much of it is left where images are of another kind."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, intervals, predictions, zero_shot
from vlm_jax.evaluation import classes as classes_lib

REFERENCE = "reference"
"""Name of `data` beside the names of `shifted`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Robustness(base.Evaluator):
    """Zero-shot top-1 accuracy on a reference and on data sets with the same classes, such as ImageNet and its V2, Sketch, R and A.

    - `acc1_reference` and `acc1_<name>` of each shifted data set; `acc1_shifted` is their unweighted mean.
    - `acc1_drop_<name>` is the reference's less that of the data set, `acc1_drop` less the mean: the raw numbers of effective
      robustness (Taori et al. 2020), which compares them between models of equal accuracy on the reference.

    The intervals of drops take the data sets as drawn independently.
    """

    data: str = ""
    """Shards with images and labels: the reference."""
    shifted: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Shards of each further data set, by its name."""
    classes: str = ""
    """Files with the names and the templates or prompts of the classes of all data sets, see `data.classes`; empty: the reference brings
    them."""
    label: str = "label"
    """Field of a record with its class: an index into the names, or a name."""
    inner_norm: classes_lib.Inner = "normalize"
    """Whether the embedding of each prompt is normalised before the mean over a class, as in CLIP; GroupViT's code does not."""
    examples: int = 4
    """Misses and hits to show of each data set, so many."""

    task: ClassVar[str] = "zeroshot_robustness"

    def __call__(self, subject: base.Subject) -> base.Result:
        """Evaluates; every process of a run calls this and gets the same result.

        Raises:
          InputError: as `zero_shot.ZeroShot`; there is no shifted data set, or one is named `reference`.
        """
        if not self.shifted or REFERENCE in self.shifted:
            raise InputError(
                f"shifted {dict(self.shifted)}: name at least one more data set, none of them {REFERENCE!r}"
            )
        named = {REFERENCE: self.data, **self.shifted}
        opened = {name: base.open_records(data, self.limit) for name, data in named.items()}
        classes = classes_lib.read(self.classes, opened[REFERENCE][0])
        weights = classes_lib.embed(subject, classes, self.inner_norm, "robustness prompts")
        shown, drawn, hits = [], {}, {}
        found: dict[str, predictions.Predictions] = {}
        for i, (name, (source, count)) in enumerate(opened.items()):
            labels = classes_lib.Labels(classes, self.label, named[name], self.classes or self.data).one(source, count)
            images = subject.embed_records(source, count, f"robustness images: {name}")
            found[name] = predictions.Predictions.of(images, weights, labels)
            hits[name] = (found[name].ranks < 1).astype(np.float64)
            drawn[name] = intervals.sums(hits[name][:, None], seed=i)[:, 0] / count
            shown += zero_shot.examples(subject, source, found[name], classes.titles, self.examples, f"{name}: ")

        def combined(values: Mapping) -> dict:
            """By metric, out of something for each data set that can be added and multiplied."""
            mean = sum(values[name] for name in self.shifted) / len(self.shifted)
            drops = {f"acc1_drop_{name}": values[REFERENCE] - values[name] for name in self.shifted}
            return {"acc1_shifted": mean, "acc1_drop": values[REFERENCE] - mean, **drops}

        accuracy = {name: predicted.metrics()["acc1"] for name, predicted in found.items()}
        guessed = {name: predicted.chance()["acc1"] for name, predicted in found.items()}
        blind = {name: predicted.blind()["acc1"] for name, predicted in found.items()}
        spans = {f"acc1_{name}": intervals.of_mean(own, seed=i) for i, (name, own) in enumerate(hits.items())}
        spans |= {name: intervals.of_estimates(estimates) for name, estimates in combined(drawn).items()}
        columns = tuple(found[REFERENCE].metrics())
        rows = [[*(p.metrics()[column] for column in columns), len(p.labels)] for p in found.values()]
        return base.Result(
            metrics={f"acc1_{name}": value for name, value in accuracy.items()} | combined(accuracy),
            chance={f"acc1_{name}": value for name, value in guessed.items()} | combined(guessed),
            blind={f"acc1_{name}": value for name, value in blind.items()} | combined(blind),
            intervals=spans,
            tables={"data_sets": base.Table("data set", "measure", tuple(found), (*columns, "images"), np.array(rows))},
            examples=shown,
            note=f"{', '.join(f'{name}: {len(p.labels):,} images' for name, p in found.items())}; "
            f"{len(weights):,} classes. {self.note}".strip(),
        )
