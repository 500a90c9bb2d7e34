"""Multinomial logistic regression with an L2 penalty, solved to convergence on the devices of a mesh."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize
import threadpoolctl

from vlm_jax.errors import InputError
from vlm_jax.evaluation import metrics
from vlm_jax.ops.sharding import BATCH_AXES

P = jax.P
Precision = Literal["float64", "float32"]
"""What the devices compute in. In float32, the widest type of a TPU's hardware, weights are good to 1e-3 instead of 1e-6."""
_TOLERANCE = {"float64": 1e-8, "float32": 1e-5}
"""Of the largest slope, relative to the loss, in coordinates in which no second derivative exceeds 1."""
_MEMORY = 20
"""Steps that L-BFGS remembers."""


@dataclasses.dataclass(frozen=True)
class Solution:
    """A classifier whose scores are x @ weights + bias."""

    weights: np.ndarray
    """[d, c], float64."""
    bias: np.ndarray
    """[c], float64, with mean 0."""
    iterations: int
    stopped: Literal["converged", "rounding", "limit"]
    """Where the solver ended: at the minimum, where rounding hides any further descent, or at the limit of iterations."""


class Problem:
    """Examples to be told apart, kept on the devices, to be solved for any number of penalties.

    The objective is scikit-learn's: ||W||^2 / 2 + C sum_i CE_i with C = 1 / penalty and a bias without penalty. It is convex, and
    minimised by L-BFGS (Liu & Nocedal 1989) in other coordinates: features are centred, which moves only the bias, and
    W = T V with T T' the inverse of Boehning's bound on the second derivatives (1992), C X'X / 2 + 1. So neither the scale of
    a feature nor the correlation of several slows convergence, and the objective stays what it is.
    """

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        mesh: jax.sharding.Mesh,
        precision: Precision = "float64",
    ):
        """Every process passes all examples.

        Args:
          features: [n, d].
          labels: int [n], each of the classes at least once: a class without an example has no finite bias.

        Raises:
          InputError: a feature is not a finite number.
        """
        bad = np.flatnonzero(~np.isfinite(features).all(1))
        if len(bad):
            raise InputError(
                f"features of {len(bad):,} of {len(features):,} images are not finite: the checkpoint is broken, or its "
                "precision overflows; evaluate an earlier one, or in float32"
            )
        self._num_classes, self._precision = num_classes, precision
        self._size, width = features.shape
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        most = max(1, metrics.CHUNK_BYTES // (8 * num_classes))
        chunks = -(-self._size // (most * shards))
        rows = -(-self._size // (chunks * shards)) * shards
        self._shift = features.mean(0, dtype=np.float64)
        self._gram = np.zeros((width, width))
        centred = np.zeros((chunks * rows, width), precision)
        for first in range(0, self._size, rows):
            part = features[first : first + rows].astype(np.float64) - self._shift
            centred[first : first + len(part)] = part
            self._gram += part.T @ part
        padded = np.full(chunks * rows, -1, np.int32)
        padded[: self._size] = labels
        self._compiled, self._whole = _compiled(mesh), jax.NamedSharding(mesh, P())
        split = jax.NamedSharding(mesh, P(None, BATCH_AXES))
        with self._x64():
            self._features = _put(centred.reshape(chunks, rows, width), split)
            self._labels = _put(padded.reshape(chunks, rows), split)

    def solve(self, penalty: float, *, max_iterations: int = 1000, start: Solution | None = None) -> Solution:
        """The classifier for one penalty, lambda = 1 / C.

        Args:
          start: where to begin, such as the solution for another penalty; None: at zero.
        """
        width = len(self._gram)
        ridge = penalty / self._size  # of the objective divided by C and the number of examples
        bound = 0.5 * self._gram / self._size + ridge * np.eye(width)
        scale = np.sqrt(bound.diagonal())
        jitter = width * np.finfo(self._precision).eps * np.eye(width)  # for features that depend on one another
        factor = np.linalg.cholesky(bound / np.outer(scale, scale) + jitter) * scale[:, None]
        transform = scipy.linalg.solve_triangular(factor, np.eye(width), lower=True, trans=1)
        first = np.zeros((width + 1, self._num_classes))
        if start is not None:
            first[:-1], first[-1] = factor.T @ start.weights, start.bias + self._shift @ start.weights
        with self._x64():
            placed = _put(transform.astype(self._precision), self._whole)
        last = np.inf, np.inf

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal last
            with self._x64():
                at = _put(flat.reshape(first.shape).astype(self._precision), self._whole)
                value, slope = self._compiled(at, placed, ridge, self._size, self._features, self._labels)
            slope = np.asarray(slope, np.float64).ravel()
            last = float(value), float(np.abs(slope).max())
            return last[0], slope

        def converged() -> bool:
            return last[1] <= _TOLERANCE[self._precision] * min(1.0, last[0])

        before = np.inf

        def stop(intermediate_result: scipy.optimize.OptimizeResult) -> None:
            nonlocal before
            value = float(intermediate_result.fun)
            if converged() or before - value <= np.finfo(self._precision).eps * value:
                raise StopIteration
            before = value

        limits = {"maxiter": max_iterations, "maxfun": 20 * max_iterations, "maxcor": _MEMORY, "ftol": 0, "gtol": 0}
        with _blas().limit(limits=1):
            found = scipy.optimize.minimize(
                objective, first.ravel(), jac=True, method="L-BFGS-B", callback=stop, options=limits
            )
        at = found.x.reshape(first.shape)
        weights = transform @ at[:-1]
        bias = at[-1] - self._shift @ weights
        stopped = "converged" if converged() else "limit" if found.status == 1 else "rounding"
        return Solution(weights, bias - bias.mean(), int(found.nit), stopped)

    def _x64(self):
        return jax.enable_x64(self._precision == "float64")


def _objective(at, transform, ridge, size, features, labels):
    """Mean cross-entropy + ridge ||W||^2 / 2 and its slope, at [V; bias], [d + 1, c]; rows with label -1 are padding."""
    dot = functools.partial(jnp.matmul, precision="highest")
    weights, bias = dot(transform, at[:-1]), at[-1]

    def add(total, part):
        x, y = part
        logs = jax.nn.log_softmax(dot(x, weights) + bias)
        right = jax.nn.one_hot(y, at.shape[1], dtype=at.dtype)
        rest = jnp.where(y[:, None] >= 0, jnp.exp(logs) - right, 0)
        return (total[0] - (logs * right).sum(), total[1] + dot(x.T, rest), total[2] + rest.sum(0)), None

    start = jnp.zeros((), at.dtype), jnp.zeros_like(weights), jnp.zeros_like(bias)
    (loss, slope, bias_slope), _ = jax.lax.scan(add, start, (features, labels))
    slope = dot(transform.T, slope / size + ridge * weights)
    return loss / size + 0.5 * ridge * jnp.square(weights).sum(), jnp.concatenate([slope, bias_slope[None] / size])


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    """Keeps L-BFGS, whose matrices are tiny, from a thread pool: on cores that are busy that takes 30 times as long."""
    return threadpoolctl.ThreadpoolController().select(user_api="blas")


@functools.lru_cache(maxsize=8)
def _compiled(mesh: jax.sharding.Mesh):
    return jax.jit(_objective, out_shardings=jax.NamedSharding(mesh, P()))


def _put(array: np.ndarray, sharding: jax.NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
