"""Classification by the nearest images of known class: what features are worth without learning anything from them."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.data import pipeline
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, labelled, metrics, predictions
from vlm_jax.ops.sharding import BATCH_AXES

P = jax.P


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearestNeighbours(base.Evaluator):
    """The k nearest images vote for their class, each with weight exp(cosine / temperature) (Wu et al. 2018; Caron et al. 2021)."""

    data: str = ""
    """Shards with the images and labels to be tested on."""
    train: str = ""
    """Shards with the images and labels that vote."""
    neighbours: int = 20
    """Images that vote, k; DINO reports 20."""
    temperature: float = 0.07
    """Of the weights: small ones let the very nearest decide."""
    label: str = "label"
    """Field of a record with its class: an index, or a name."""
    classes: str = ""
    """Files with the names of the classes, see `data.classes`. Empty: those that `train` brings, or the labels that it has."""
    features: labelled.Features = "pooled"
    """What is compared: what the image tower pools before its projection, normalised for the cosine, or the embedding."""
    examples: int = 8
    """Hits and misses to show with their nearest images, of each so many."""

    task: ClassVar[str] = "nearest_neighbours"

    def __post_init__(self):
        if self.neighbours < 1 or self.temperature <= 0:
            raise InputError(f"neighbours {self.neighbours}, temperature {self.temperature}: both must be positive")

    def __call__(self, subject: base.Subject) -> base.Result:
        """Evaluates; every process of a run calls this and gets the same result.

        Raises:
          InputError: data is missing or malformed.
        """
        sets = labelled.read({"train": self.train, "data": self.data}, self.label, self.classes, self.limit)
        train, test = sets.parts
        tested = metrics.normalize(test.features(subject, self.features, "probe: test images"))
        known = metrics.normalize(train.features(subject, self.features, "probe: train images"))
        k = min(self.neighbours, len(known))
        cosines, nearest = search(known, tested, k, subject.compiled.mesh)

        ranks, predicted = np.empty((2, len(test)), np.int64)
        chunk = max(1, metrics.CHUNK_BYTES // (8 * len(sets.titles)))
        for first in range(0, len(test), chunk):
            part = slice(first, first + chunk)
            scores = votes(cosines[part], train.labels[nearest[part]], len(sets.titles), self.temperature)
            ranks[part] = metrics.label_ranks(scores, test.labels[part])
            predicted[part] = scores.argmax(1)
        none = np.zeros((len(sets.titles), 0))
        found = predictions.Predictions(tested, none, test.labels, ranks, predicted)
        return base.Result(
            metrics=found.metrics(),
            tables=found.tables(sets.titles),
            examples=self._examples(subject, sets, found, cosines, nearest),
            chance=found.chance(),
            intervals=found.intervals(),
            blind=labelled.blind(train.labels, test.labels, len(sets.titles)),
            note=f"{labelled.told(self.features, known.shape[1], 'none')}, compared by cosine. {len(test):,} images of "
            f"{len(sets.titles):,} classes, by the votes of {k} of {len(train):,} at temperature {self.temperature:g}. "
            f"{self.note}".strip(),
        )

    def _examples(
        self,
        subject: base.Subject,
        sets: labelled.Sets,
        found: predictions.Predictions,
        cosines: np.ndarray,
        nearest: np.ndarray,
    ) -> list[base.Example]:
        """Hits and misses with the five nearest images."""
        train, test = sets.parts
        right = found.ranks == 0
        chosen = {
            group: base.spread(np.flatnonzero(of), self.examples) for group, of in (("misses", ~right), ("hits", right))
        }
        queries = [i for of in chosen.values() for i in of]
        pictures, beside = (
            {i: base.thumbnail(image) for i, _, image in pipeline.read(part.source, subject.transform, indices=indices)}
            for part, indices in ((test, queries), (train, sorted({int(i) for i in nearest[queries, :5].ravel()})))
        )
        shown = []
        for group, indices in chosen.items():
            for i in indices:
                answers = tuple(
                    base.Entry(
                        sets.titles[train.labels[j]],
                        beside[int(j)],
                        float(cosine),
                        "right" if train.labels[j] == test.labels[i] else "wrong",
                    )
                    for cosine, j in zip(cosines[i, :5], nearest[i, :5], strict=True)
                )
                query = base.Entry(image=pictures[i])
                shown.append(base.Example(group, query, answers, base.Entry(sets.titles[test.labels[i]])))
        return shown


def votes(cosines: np.ndarray, labels: np.ndarray, num_classes: int, temperature: float) -> np.ndarray:
    """Scores [n, c] from cosines [n, k] and classes int [n, k] of the nearest; only their order within a row means something."""
    weights = np.exp((cosines.astype(np.float64) - cosines.max(1, keepdims=True)) / temperature)
    scores = np.zeros((len(cosines), num_classes))
    np.add.at(scores, (np.arange(len(cosines))[:, None], labels), weights)
    return scores


def search(
    known: np.ndarray, queries: np.ndarray, k: int, mesh: jax.sharding.Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of `known` for each query, best first and the first of equal ones: cosines [m, k] and indices int [m, k].

    Exact; `known` is split over the devices, queries pass in blocks, so that no device holds more than `metrics.CHUNK_BYTES` of cosines.

    Args:
      known: unit vectors [n, d], n at least k; every process passes all of them.
      queries: unit vectors [m, d].
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = -(-len(known) // shards)
    block = min(len(queries), max(1, metrics.CHUNK_BYTES // (4 * rows)))
    padded = np.zeros((rows * shards, known.shape[1]), np.float32)
    padded[: len(known)] = known
    split = jax.NamedSharding(mesh, P(BATCH_AXES))
    placed = jax.make_array_from_callback(padded.shape, split, lambda index: padded[index])
    nearest = _nearest(mesh, k)
    found = []
    for first in range(0, len(queries), block):
        part = np.zeros((block, queries.shape[1]), np.float32)
        part[: len(queries) - first] = queries[first : first + block]
        found.append([np.asarray(x) for x in nearest(part, placed, len(known))])
    cosines, indices = (np.concatenate(of)[: len(queries)] for of in zip(*found, strict=True))
    return cosines, indices


@functools.lru_cache(maxsize=8)
def _nearest(mesh: jax.sharding.Mesh, k: int):
    """From queries [q, d], known [n, d] in shards and how many of those there are, to cosines and indices [q, k]."""

    def own(queries, known, count):
        index = jax.lax.axis_index(BATCH_AXES) * len(known) + jnp.arange(len(known))
        cosines = jnp.matmul(queries, known.T, precision="highest")
        best, place = jax.lax.top_k(jnp.where(index < count, cosines, -jnp.inf), min(k, len(known)))
        best, place = (jax.lax.all_gather(x, BATCH_AXES, axis=1, tiled=True) for x in (best, index[place]))
        best, chosen = jax.lax.top_k(best, k)
        return best, jnp.take_along_axis(place, chosen, axis=1)

    specs = (P(), P(BATCH_AXES), P())
    return jax.jit(jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False))
