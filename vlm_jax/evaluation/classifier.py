"""Learns a linear classifier from features, for any number of penalties, and seeks the penalty that CLIP's authors would take."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import numpy as np

from vlm_jax.evaluation import logistic, predictions

Scaling = Literal["none", "standardize"]
"""Whether features get mean 0 and deviation 1 over the images learned from."""
EXPONENTS = (6, 4, 2, 0, -2, -4, -6)
"""Of ten: the penalties that are tried first, strongest first."""
STEPS = (1.0, 0.5, 0.25, 0.125)
"""Powers of ten between the best penalty so far and the two that are tried next."""


class Learner:
    """Images to learn from; only the classes that occur among them are ever answered."""

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        mesh: jax.sharding.Mesh,
        *,
        scaling: Scaling,
        precision: logistic.Precision,
        max_iterations: int,
    ):
        """Every process passes all examples: features [n, d], labels int [n].

        Raises:
          InputError: a feature is not a finite number.
        """
        self._num_classes, self._max_iterations = num_classes, max_iterations
        self._shift, self._scale = np.zeros(features.shape[1]), np.ones(features.shape[1])
        if scaling == "standardize":
            self._shift, deviation = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
            self._scale = np.where(deviation > 0, deviation, 1)
        self._classes, places = np.unique(labels, return_inverse=True)
        scaled = features if scaling == "none" else self._scaled(features)
        self._problem = logistic.Problem(scaled, places, len(self._classes), mesh, precision)
        self.solutions: dict[float, logistic.Solution] = {}
        """By penalty, as far as they were asked for."""

    def solve(self, penalty: float, start: logistic.Solution | None = None) -> logistic.Solution:
        """The classifier of one penalty, solved once; the search begins at `start`, or else at that of the nearest penalty known."""
        if penalty not in self.solutions:
            if start is None and self.solutions:
                start = self.solutions[min(self.solutions, key=lambda other: abs(math.log(other / penalty)))]
            self.solutions[penalty] = self._problem.solve(penalty, max_iterations=self._max_iterations, start=start)
        return self.solutions[penalty]

    def predictions(self, penalty: float, features: np.ndarray, labels: np.ndarray) -> predictions.Predictions:
        """What the classifier of one penalty answers for images [m, d] with labels int [m]."""
        solution = self.solve(penalty)
        weights = np.zeros((self._num_classes, features.shape[1] + 1))
        weights[:, -1] = -np.inf  # the score of a class that was never seen
        weights[self._classes] = np.concatenate([solution.weights.T, solution.bias[:, None]], 1)
        images = np.concatenate([self._scaled(features), np.ones((len(features), 1))], 1)
        return predictions.Predictions.of(images, weights, labels)

    def accuracy(self, penalty: float, features: np.ndarray, labels: np.ndarray) -> float:
        """The share of images that the classifier of one penalty answers rightly."""
        return self.predictions(penalty, features, labels).metrics()["acc1"]

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        return (features.astype(np.float64) - self._shift) / self._scale


def sweep(accuracy: Callable[[float], float]) -> float:
    """The penalty of the best accuracy, sought as CLIP's authors did (Radford et al. 2021, appendix A.3).

    First every second power of ten from 1e-6 to 1e6, then in halved steps on either side of the best so far, down to eight
    penalties a decade. Of equally good penalties the strongest is taken.
    """
    found = {float(exponent): accuracy(10.0**exponent) for exponent in EXPONENTS}

    def best() -> float:
        return max(found, key=lambda exponent: (found[exponent], exponent))

    for step in STEPS:
        centre = best()
        for exponent in (centre + step, centre - step):
            if abs(exponent) <= max(EXPONENTS) and exponent not in found:
                found[exponent] = accuracy(10.0**exponent)
    return 10.0 ** best()


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Indices int [m], ascending: so large a share of the examples of every class, but never all of one class.

    At least one is drawn of each class that has two, so the share of small classes is larger.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for c in np.unique(labels):
        own = np.flatnonzero(labels == c)
        count = min(max(round(share * len(own)), 1), len(own) - 1)
        drawn.append(rng.permutation(own)[:count])
    return np.sort(np.concatenate(drawn))
