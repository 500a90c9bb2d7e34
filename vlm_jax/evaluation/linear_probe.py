"""A linear classifier on frozen features: what a model knows, whether it has words for it or not."""

import dataclasses
from typing import ClassVar

import numpy as np

from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, classifier, labelled, probe


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe(probe.Probe):
    """Logistic regression on frozen features, its penalty chosen on validation images (Radford et al. 2021, appendix A.3)."""

    validation: str = ""
    """Shards on which the penalty is chosen. Empty: a share of `train`, drawn within each class."""
    validation_share: float = 0.2
    """That share. The final classifier learns from all of `train` and `validation` in either case."""
    examples: int = 8
    """Hits and misses to show, of each so many."""

    task: ClassVar[str] = "linear_probe"

    def __post_init__(self):
        if not 0 < self.validation_share < 1:
            raise InputError(f"validation_share {self.validation_share}: must lie between 0 and 1")
        super().__post_init__()

    def __call__(self, subject: base.Subject) -> base.Result:
        """Evaluates; every process of a run calls this and gets the same result, the same bits whenever it is repeated.

        Raises:
          InputError: data is missing or malformed, no image is left to choose the penalty on, or features are not finite.
        """
        named = {"train": self.train, "data": self.data} | ({"validation": self.validation} if self.validation else {})
        sets = labelled.read(named, self.label, self.classes, self.limit)
        train, test, *given = sets.parts
        first, choose = self._split(train, given)
        tested = test.features(subject, self.features, "probe: test images")
        parts = [train.features(subject, self.features, "probe: train images")]
        parts += [part.features(subject, self.features, "probe: validation images") for part in given]
        known, labels = np.concatenate(parts), np.concatenate([part.labels for part in (train, *given)])

        trial = self.learner(known[first], labels[first], sets, subject)
        points: dict[str, dict[float, float]] = {"validation": {}, "train": {}}

        def accuracy(penalty: float) -> float:
            for name, part in (("validation", choose), ("train", first)):
                points[name][penalty] = trial.accuracy(penalty, known[part], labels[part])
            return points["validation"][penalty]

        penalty = classifier.sweep(accuracy)
        final = self.learner(known, labels, sets, subject)
        solution = final.solve(penalty, trial.solutions[penalty])
        found = final.predictions(penalty, tested, test.labels)

        limited = sum(s.stopped == "limit" for s in trial.solutions.values())
        chosen_on = f"{len(choose):,} validation images" + ("" if given else " drawn from those")
        told = [
            f"{labelled.told(self.features, known.shape[1], self.scaling)}.",
            f"{len(test):,} images of {len(sets.titles):,} classes, {len(labels):,} to learn from.",
            f"lambda {penalty:.3g}, the best of {len(trial.solutions)} on {chosen_on}.",
            f"L-BFGS {'stopped at its limit' if solution.stopped == 'limit' else 'converged'} after "
            f"{solution.iterations:,} iterations{f'; {limited} of those tried stopped at their limit' if limited else ''}.",
            self.note,
        ]
        lines = {name: sorted(of.items()) for name, of in points.items()}
        return base.Result(
            metrics=found.metrics(),
            tables=found.tables(sets.titles),
            examples=labelled.shown(subject, test, found, sets.titles, self.examples),
            chance=found.chance(),
            intervals=found.intervals(),
            blind=labelled.blind(labels, test.labels, len(sets.titles)),
            figures={"penalty": base.Lines("lambda", "accuracy", lines, scale="log", chosen=penalty)},
            note=" ".join(told).strip(),
        )

    def _split(self, train: labelled.Labelled, given: list[labelled.Labelled]) -> tuple[np.ndarray, np.ndarray]:
        """What is learned from while the penalty is sought, and what it is chosen on, as places in train and validation joined."""
        if given:
            return np.arange(len(train)), len(train) + np.arange(len(given[0]))
        drawn = classifier.held_out(train.labels, self.validation_share, self.seed)
        if not len(drawn):
            raise InputError(
                f"train {self.train}: one image of each class, so none is left to choose the penalty on; name others in validation"
            )
        return np.setdiff1d(np.arange(len(train)), drawn), drawn
