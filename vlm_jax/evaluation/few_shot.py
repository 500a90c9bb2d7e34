"""Linear classifiers on frozen features of a few images of each class: how soon a model has what it takes."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, classifier, intervals, labelled, probe

VALIDATION = 4
"""Images of each class on which the penalty is chosen, at most; with k shots no more than k (Zhou et al. 2022, CoOp)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotProbe(probe.Probe):
    """Logistic regression on k images of each class: the mean over several draws, for several k."""

    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Images of each class."""
    draws: int = 3
    """Draws of such images; each has the images of its smaller `shots` among those of its larger ones."""

    task: ClassVar[str] = "few_shot_linear_probe"

    def __post_init__(self):
        if not self.shots or min(self.shots) < 1 or list(self.shots) != sorted(set(self.shots)):
            raise InputError(f"shots {self.shots}: must be ascending numbers of images, at least 1")
        if self.draws < 1:
            raise InputError(f"draws {self.draws}: must be at least 1")
        super().__post_init__()

    def __call__(self, subject: base.Subject) -> base.Result:
        """Evaluates; every process of a run calls this and gets the same result.

        Raises:
          InputError: data is missing or malformed, a class has too few images, or features are not finite.
        """
        sets = labelled.read({"train": self.train, "data": self.data}, self.label, self.classes, self.limit)
        train, test = sets.parts
        orders = [_shuffled_by_class(train.labels, (self.seed, draw)) for draw in range(self.draws)]
        most = self.shots[-1] + min(self.shots[-1], VALIDATION)
        for own in orders[0]:
            if len(own) < most:
                raise InputError(
                    f"shots {self.shots[-1]}: class {sets.titles[train.labels[own[0]]]!r} has {len(own)} images in train {self.train}, and "
                    f"{most} are needed, {most - self.shots[-1]} of them to choose the penalty on; take fewer shots"
                )
        tested = test.features(subject, self.features, "probe: test images")
        known = train.features(subject, self.features, "probe: train images")

        right = np.zeros((len(self.shots), self.draws, len(test)), bool)
        limited = 0
        for row, k in enumerate(self.shots):
            for draw, order in enumerate(orders):
                learn = np.concatenate([own[:k] for own in order])
                choose = np.concatenate([own[self.shots[-1] :][: min(k, VALIDATION)] for own in order])
                learner = self.learner(known[learn], train.labels[learn], sets, subject)
                accuracy = functools.partial(learner.accuracy, features=known[choose], labels=train.labels[choose])
                penalty = classifier.sweep(accuracy)
                limited += learner.solutions[penalty].stopped == "limit"
                right[row, draw] = learner.predictions(penalty, tested, test.labels).ranks == 0
        return self._result(sets, right, known.shape[1], limited)

    def _result(self, sets: labelled.Sets, right: np.ndarray, width: int, limited: int) -> base.Result:
        """From what was right, bool [shots, draws, test images]."""
        train, test = sets.parts
        accuracy = right.mean(2)
        names = [f"acc1@{k}_shot{'s' if k > 1 else ''}" for k in self.shots]
        values = dict(zip(names, accuracy.mean(1).tolist(), strict=True))
        deviation = accuracy.std(1, ddof=1) if self.draws > 1 else np.zeros(len(names))
        lines = {"mean": accuracy.mean(1), "worst draw": accuracy.min(1), "best draw": accuracy.max(1)}
        columns = (*(f"acc1_of_draw_{draw + 1}" for draw in range(self.draws)), "acc1", "acc1_deviation")
        rows = np.concatenate([accuracy, accuracy.mean(1)[:, None], deviation[:, None]], 1)
        chance = 1 / len(sets.titles)
        told = [
            f"{labelled.told(self.features, width, self.scaling)}.",
            f"{len(test):,} images of {len(sets.titles):,} classes; mean over {self.draws} draws of the images to learn from. lambda is "
            f"chosen for each draw on min(k, {VALIDATION}) other images of each class.",
            f"L-BFGS stopped at its limit for {limited} of {right[..., 0].size} classifiers." if limited else "",
            self.note,
        ]
        return base.Result(
            metrics=values | {f"acc1_deviation@{n.partition('@')[2]}": float(d) for n, d in zip(names, deviation, strict=True)},
            tables={"draws": base.Table("images of each class", "draw", tuple(map(str, self.shots)), columns, rows)},
            chance=dict.fromkeys(names, chance),
            intervals={name: intervals.of_mean(of.mean(0)) for name, of in zip(names, right, strict=True)},
            blind=dict.fromkeys(names, labelled.blind(train.labels, test.labels, len(sets.titles))["acc1"]),
            figures={
                "shots": base.Lines(
                    "images of each class",
                    "accuracy",
                    {name: [(float(k), float(v)) for k, v in zip(self.shots, of, strict=True)] for name, of in lines.items()},
                    scale="log",
                )
            },
            note=" ".join(filter(None, told)),
        )


def _shuffled_by_class(labels: np.ndarray, seed: Sequence[int]) -> list[np.ndarray]:
    """The examples of each class that occurs in an order of their own."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
