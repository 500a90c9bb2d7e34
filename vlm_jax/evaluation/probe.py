"""What the linear probes share: what they learn from, and how."""

import dataclasses

import numpy as np

from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, classifier, labelled, logistic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe(base.Evaluator):
    """Logistic regression on frozen features."""

    data: str = ""
    """Shards with the images and labels to be tested on."""
    train: str = ""
    """Shards with the images and labels to learn from."""
    label: str = "label"
    """Field of a record with its class: an index, or a name."""
    classes: str = ""
    """Files with the names of the classes, see `data.classes`. Empty: those that `train` brings, or the labels that it has."""
    features: labelled.Features = "pooled"
    """What is learned from: what the image tower pools before its projection, as in CLIP's paper, or the L2-normalised embedding."""
    scaling: classifier.Scaling = "none"
    """Whether features get mean 0 and deviation 1 over the images learned from, so that the penalty means the same for each."""
    precision: logistic.Precision = "float64"
    """What the solver computes in; a TPU is much faster in float32."""
    max_iterations: int = 1000
    """Of L-BFGS, for one penalty."""
    seed: int = 0
    """Of the draw of images."""

    def __post_init__(self):
        if self.max_iterations < 1:
            raise InputError(f"max_iterations {self.max_iterations}: must be at least 1")

    def learner(
        self, features: np.ndarray, labels: np.ndarray, sets: labelled.Sets, subject: base.Subject
    ) -> classifier.Learner:
        """The classifiers of these features, float [n, d], and labels, int [n], one for each penalty."""
        return classifier.Learner(
            features,
            labels,
            len(sets.titles),
            subject.compiled.mesh,
            scaling=self.scaling,
            precision=self.precision,
            max_iterations=self.max_iterations,
        )
