"""What embeddings look like beside their accuracy: their cosines, their calibration, their place in a map; in numpy."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from vlm_jax.evaluation import base, metrics

CALIBRATION_BINS = 15
"""As in Guo et al. 2017."""
SCALES = (1e-2, 1e4)
"""Between these the best scale is sought."""
_FINE, _BINS = 4000, 48
"""Cosines are counted in fine bins over [-1, 1]; neighbouring ones are then joined to at most so many over the range in use."""
_SEED = 0


def similarities(images: np.ndarray, texts: np.ndarray, pairs: np.ndarray) -> base.Histogram:
    """Cosines of matching pairs beside those of all other pairs.

    Exact, in blocks of `metrics.CHUNK_BYTES`; what is not a number is not counted.

    Args:
      images: L2-normalised embeddings [n, e].
      texts: L2-normalised embeddings [m, e].
      pairs: int [p, 2], (image, text) that match; one that stands there twice counts once.
    """
    pairs = np.unique(np.asarray(pairs, np.int64).reshape(-1, 2), axis=0)
    chunk = max(1, metrics.CHUNK_BYTES // (4 * max(1, len(texts))))
    every, matching = np.zeros(_FINE, np.int64), np.zeros(_FINE, np.int64)
    for start in range(0, len(images), chunk):
        cosines = images[start : start + chunk] @ texts.T
        first, last = np.searchsorted(pairs[:, 0], (start, start + chunk))
        own = cosines[pairs[first:last, 0] - start, pairs[first:last, 1]]
        every += _counted(cosines)
        matching += _counted(own)
    used = np.flatnonzero(every)
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, _FINE)
    width = -(-(high - low) // _BINS)
    bounds = np.arange(low, high + width, width)
    edges = np.minimum(bounds, _FINE) * (2 / _FINE) - 1

    def joined(counts):
        total = np.concatenate([[0], counts.cumsum()])
        return np.diff(total[np.minimum(bounds, _FINE)])

    return base.Histogram(
        "cosine", edges, {"matching pairs": joined(matching), "other pairs": joined(every - matching)}
    )


def _counted(cosines: np.ndarray) -> np.ndarray:
    flat = cosines.ravel()
    flat = flat[np.isfinite(flat)]
    fine = np.clip((flat + 1) * (_FINE / 2), 0, _FINE - 1).astype(np.int64)
    return np.bincount(fine, minlength=_FINE)


def calibration(cosines: np.ndarray, labels: np.ndarray, scale: float) -> base.Calibration:
    """Whether the probabilities softmax(scale * cosines) are right as often as they say (Guo et al. 2017).

    Confidence is the probability of the most probable class; the expected calibration error is the mean of
    |accuracy - confidence| over equal bins of it, weighted by their examples. The best scale, which is their temperature
    scaling, has the least cross-entropy between the bounds `SCALES`: where every example is right, the upper one.

    Args:
      cosines: [n, c] of examples with classes; rows that hold what is not a number are left out.
      labels: int [n].
      scale: what the model multiplies its cosines with, 1 / temperature.
    """
    cosines = np.asarray(cosines)
    kept = np.flatnonzero(np.isfinite(cosines).all(1))
    chunk = max(1, metrics.CHUNK_BYTES // (8 * cosines.shape[1]))
    blocks = [kept[k : k + chunk] for k in range(0, len(kept), chunk)]
    counts, hits, sums = np.zeros((3, CALIBRATION_BINS))
    for block in blocks:
        scores = cosines[block].astype(np.float64)
        top = scores.argmax(1)
        confidence = 1 / np.exp(scale * (scores - scores.max(1, keepdims=True))).sum(1)
        place = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
        counts += np.bincount(place, minlength=CALIBRATION_BINS)
        hits += np.bincount(place, top == labels[block], CALIBRATION_BINS)
        sums += np.bincount(place, confidence, CALIBRATION_BINS)
    with np.errstate(invalid="ignore"):
        accuracy, confidence = hits / counts, sums / counts
    return base.Calibration(
        edges=np.linspace(0, 1, CALIBRATION_BINS + 1),
        confidence=confidence,
        accuracy=accuracy,
        counts=counts.astype(np.int64),
        error=float(np.abs(hits - sums).sum() / counts.sum()) if len(kept) else float("nan"),
        scale=float(scale),
        best_scale=_best_scale(cosines, labels, blocks, float(scale)),
    )


def _best_scale(cosines: np.ndarray, labels: np.ndarray, blocks: Sequence[np.ndarray], start: float) -> float:
    """Newton's method within bounds that close in: the cross-entropy is convex in the scale."""
    low, high = SCALES
    at = min(max(start, low), high)
    for _ in range(60):
        slope = curvature = 0.0
        for block in blocks:
            scores = cosines[block].astype(np.float64)
            weights = np.exp(at * (scores - scores.max(1, keepdims=True)))
            weights /= weights.sum(1, keepdims=True)
            mean = (weights * scores).sum(1)
            slope += (mean - scores[np.arange(len(block)), labels[block]]).sum()
            curvature += (weights * np.square(scores - mean[:, None])).sum()
        low, high = (low, at) if slope > 0 else (at, high)
        step = at - slope / curvature if curvature > 0 else np.inf
        following = step if low < step < high else np.sqrt(low * high)
        if abs(following - at) <= 1e-6 * at or high / low < 1 + 1e-6:
            break
        at = following
    return float(at)


def embedding_map(
    parts: Mapping[str, np.ndarray],
    titles: Mapping[str, Sequence[str]] | None,
    limit: int = 2000,
    method: Literal["pca", "tsne"] = "pca",
) -> base.Scatter:
    """Embeddings of several groups in two dimensions, the same ones for the same embeddings.

    PCA keeps the directions of the largest variance; t-SNE (van der Maaten & Hinton 2008) keeps neighbours together, and
    distances between its islands mean nothing. Fewer than ten points, or of fewer than two dimensions, are always placed by PCA.

    Args:
      parts: [n, e] for each group; rows that hold what is not a number are left out.
      titles: for each group what is said of its points.
      limit: points in all; of larger groups so many are drawn evenly that small groups stay whole.
      method: "tsne" takes seconds for 2,000 points.

    Raises:
      ValueError: a group has another number of titles than points.
    """
    taken = {name: np.flatnonzero(np.isfinite(part).all(1)) for name, part in parts.items()}
    for name in taken if titles else ():
        if titles and len(titles.get(name, ())) != len(parts[name]):
            raise ValueError(f"titles of {name!r}: {len(titles.get(name, ()))}, but {len(parts[name])} points")
    left, shares = limit, {}
    for k, name in enumerate(sorted(taken, key=lambda name: len(taken[name]))):
        shares[name] = min(len(taken[name]), left // (len(taken) - k))
        left -= shares[name]
    taken = {name: np.array(base.spread(indices, shares[name]), int) for name, indices in taken.items()}
    drawn = [parts[name][indices].astype(np.float64) for name, indices in taken.items() if len(indices)]
    placed, how = _placed(np.concatenate(drawn) if drawn else np.zeros((0, 2)), method)
    return base.Scatter(
        method=how,
        points=placed,
        groups=tuple(name for name, indices in taken.items() for _ in indices),
        titles=tuple(str(titles[name][i]) for name, indices in taken.items() for i in indices) if titles else (),
    )


def _placed(points: np.ndarray, method: Literal["pca", "tsne"]) -> tuple[np.ndarray, str]:
    """Places [n, 2] and how they came about."""
    from sklearn import decomposition, manifold  # a second of imports that a run without a map is spared

    components = min(2, *points.shape)
    if method == "tsne" and len(points) >= 10 and components == 2:
        tsne = manifold.TSNE(perplexity=min(30, len(points) / 4), init="pca", random_state=_SEED, n_jobs=1)
        return tsne.fit_transform(points), "t-SNE"
    placed = np.zeros((len(points), 2))
    if len(points) < 2 or not components or not np.ptp(points, axis=0).any():
        return placed, "PCA"
    pca = decomposition.PCA(components, svd_solver="full")
    placed[:, :components] = pca.fit_transform(points)
    return placed, f"PCA, {100 * pca.explained_variance_ratio_.sum():.0f}\N{NARROW NO-BREAK SPACE}% of the variance"
