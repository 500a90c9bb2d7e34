"""How close captions come to what people wrote of the same images: BLEU, ROUGE-L, CIDEr-D and CIDEr, on words.

All follow pycocoevalcap 1.2, with which COCO's server and papers count, given the words of `ptb.tokenize`. A candidate or a reference is
a list of words; the references of a candidate are a list of those.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from vlm_jax.errors import InputError

Words = Sequence[str]
ORDERS = (1, 2, 3, 4)
"""Lengths of n-grams."""
BETA = 1.2
"""How much more recall counts than precision in ROUGE-L."""
SIGMA = 6.0
"""Width, in words, of CIDEr-D's penalty on another length than the reference's."""


def bleu_counts(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """What BLEU is a function of, one row for each candidate; the sum of rows is that of a corpus.

    Returns:
      int [n, 10]: matches of n-grams for n = 1..4, each counted at most as often as one reference has it; n-grams of the candidate;
      its words; the words of the reference that is closest in length, the shorter of two.
    """
    check(candidates, references)
    rows = np.empty((len(candidates), 2 * len(ORDERS) + 2), np.int64)
    for row, candidate, own in zip(rows, candidates, references, strict=True):
        for k, n in enumerate(ORDERS):
            known = [_grams(reference, n) for reference in own]
            row[k] = sum(min(count, max(part.get(gram, 0) for part in known)) for gram, count in _grams(candidate, n).items())
            row[len(ORDERS) + k] = max(0, len(candidate) - n + 1)
        row[-2] = len(candidate)
        row[-1] = min((abs(len(reference) - len(candidate)), len(reference)) for reference in own)[1]
    return rows


def bleu(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 (Papineni et al. 2002): the geometric mean of the precisions, less for a corpus that is too short.

    Args:
      counts: [..., 10], as from `bleu_counts`: rows for each image's BLEU, their sum for that of the corpus. The first is hardly ever
        reported: it is near 0 wherever an image has no match of four words.

    Returns:
      [..., 4].
    """
    orders = len(ORDERS)
    precisions = (counts[..., :orders] + 1e-15) / (counts[..., orders : 2 * orders] + 1e-9)
    means = np.cumprod(precisions, -1) ** (1 / np.array(ORDERS))
    ratio = (counts[..., -2:-1] + 1e-15) / (counts[..., -1:] + 1e-9)
    return means * np.exp(np.minimum(0, 1 - 1 / ratio))


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """ROUGE-L of each candidate (Lin 2004), whose mean is that of a corpus: F of the longest common subsequence.

    Precision and recall are each the best over the references, which may be two different ones.

    Returns:
      [n], in 0..1.
    """
    check(candidates, references)
    found = np.zeros(len(candidates))
    for i, (candidate, own) in enumerate(zip(candidates, references, strict=True)):
        # one without words counts as one empty word, as it does there
        common = [_common(candidate or [""], reference or [""]) for reference in own]
        precision = max(common) / max(1, len(candidate))
        recall = max(n / max(1, len(reference)) for n, reference in zip(common, own, strict=True))
        if precision:
            found[i] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return found


@dataclasses.dataclass(frozen=True)
class DocumentFrequencies:
    """Of how many images' references each n-gram is one: what is said of all images says little of one."""

    images: int
    counts: Mapping[tuple[str, ...], int]

    def __post_init__(self):
        most = max(self.counts.values(), default=0)
        if not 1 <= self.images or most > self.images:
            raise InputError(f"images {self.images}: there must be one at least, and as many as an n-gram has, here {most}")

    @classmethod
    def of(cls, references: Iterable[Sequence[Words]]) -> "DocumentFrequencies":
        """Counts the n-grams of the references of each image once."""
        counts: collections.Counter[tuple[str, ...]] = collections.Counter()
        images = 0
        for own in references:
            images += 1
            counts.update(set().union(*(_runs(reference, n) for reference in own for n in ORDERS)))
        return cls(images, counts)

    @functools.cached_property
    def rarity(self) -> list[float]:
        """log(images / images whose references have it) of an n-gram that as many have as its place here; 0 are taken for 1."""
        return [math.log(self.images / max(1, count)) for count in range(self.images + 1)]

    def weights(self, words: Words, n: int) -> dict[tuple[str, ...], float]:
        """How often each n-gram occurs, times its rarity."""
        return {gram: count * self.rarity[self.counts.get(gram, 0)] for gram, count in _grams(words, n).items()}


def cider_d(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]], frequencies: DocumentFrequencies | None = None
) -> np.ndarray:
    """CIDEr-D of each candidate (Vedantam et al. 2015, section 5), whose mean is what papers report as CIDEr.

    Args:
      frequencies: of n-grams. None: those of these references, as papers have it; the number of one image then depends on which others
        are evaluated with it, and is 0 for one image alone. Those of a training set make the reward of self-critical training.

    Returns:
      [n], in 0..10.
    """
    return _cider(candidates, references, frequencies, min, SIGMA)


def cider(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]], frequencies: DocumentFrequencies | None = None
) -> np.ndarray:
    """The plain CIDEr of each candidate, without clipping and without a penalty on length: higher, and hardly ever what is reported.

    Arguments and result as of `cider_d`. Words are not stemmed.
    """
    return _cider(candidates, references, frequencies, lambda own, other: own, math.inf)


def check(candidates: Sequence[object], references: Sequence[Sequence[object]]) -> None:
    """Checks that there are candidates, and references of each.

    Raises:
      InputError: there are none, or other numbers of them.
    """
    if len(candidates) != len(references) or not len(candidates):
        raise InputError(f"candidates {len(candidates)}, references {len(references)}: give one list of references for each candidate")
    for i, own in enumerate(references):
        if isinstance(own, str) or not len(own):
            raise InputError(f"references of candidate {i}, {own!r:.60}: give a list with at least one")


def _cider(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    frequencies: DocumentFrequencies | None,
    match: Callable[[float, float], float],
    sigma: float,
) -> np.ndarray:
    """Ten times the mean cosine of the weights of n-grams, over references and over n.

    Args:
      match: what the weight of an n-gram counts, given that of the reference.
      sigma: width of the penalty on length.
    """
    check(candidates, references)
    frequencies = frequencies or DocumentFrequencies.of(references)
    found = np.zeros(len(candidates))
    for i, (candidate, own) in enumerate(zip(candidates, references, strict=True)):
        near = [math.exp(-(((len(candidate) - len(reference)) / sigma) ** 2) / 2) for reference in own]
        for n in ORDERS:
            mine = frequencies.weights(candidate, n)
            for reference, factor in zip(own, near, strict=True):
                theirs = frequencies.weights(reference, n)
                product = sum(match(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs)
                if product:
                    found[i] += factor * product / (_norm(mine) * _norm(theirs))
        found[i] *= 10 / len(ORDERS) / len(own)
    return found


def _grams(words: Words, n: int) -> collections.Counter[tuple[str, ...]]:
    """How often each n-gram occurs."""
    return collections.Counter(_runs(words, n))


def _runs(words: Words, n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[k:] for k in range(n)), strict=False)


def _norm(weights: Mapping[tuple[str, ...], float]) -> float:
    return math.sqrt(sum(weight * weight for weight in weights.values()))


def _common(first: Words, second: Words) -> int:
    """Length of the longest common subsequence, a bit for each word of the first (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for k, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << k
    everywhere = (1 << len(first)) - 1
    left = everywhere
    for word in second:
        here = left & places.get(word, 0)
        left = (left + here | left - here) & everywhere
    return len(first) - left.bit_count()
