"""Captions: which one of an example is taken, and what is done to it first."""

import concurrent.futures
import functools
import string
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import tqdm

from vlm_jax.data import kept, records, sources
from vlm_jax.data import text as tokenizers

Rule = Literal["random", "first", "key", "all"]
"""Which caption of an example: a random one, the first, one that follows from its key, or each in its turn."""
Cleaning = Literal["none", "whitespace", "lower", "canonical"]
"""whitespace: encodings mended, HTML unescaped twice, white space collapsed; lower: and lower-cased (CLIP); canonical: and underscores
made spaces, ASCII punctuation left out (SigLIP)."""
_READERS = 8
"""Threads that read records to count their captions: waiting for disks, not computing."""
_NO_PUNCTUATION = str.maketrans({"_": " "} | {mark: "" for mark in string.punctuation if mark != "_"})


def clean(text: str, how: Cleaning) -> str:
    """A caption in the form that has this name."""
    if how == "none":
        return text
    words = tokenizers.mended(text)
    if how != "whitespace":
        words = words.lower()
    if how == "canonical":
        words = words.translate(_NO_PUNCTUATION)
    return " ".join(words.split())


def choose(example: Mapping[str, Any], rule: Rule | int, how: Cleaning, rng: np.random.Generator | None) -> str:
    """The caption of an example by a rule or by number, cleaned.

    Args:
      rng: draws where the rule is "random", and in place of a number that the example does not have; None: the first caption.

    Raises:
      RecordError: no captions, or something else in their place.
    """
    captions = example.get("captions")
    if not captions:
        raise records.RecordError("has no caption")
    if not isinstance(captions, (list, tuple)):
        raise records.RecordError(f"its captions are a {type(captions).__name__}, not a list")
    choice = 0
    if rule == "key":
        choice = zlib.crc32(str(example.get("key", "")).encode()) % len(captions)
    elif isinstance(rule, int) and rule < len(captions):
        choice = rule
    elif rule != "first" and rng is not None and len(captions) > 1:
        choice = int(rng.integers(len(captions)))
    if not isinstance(captions[choice], str):
        raise records.RecordError(f"caption {choice} is a {type(captions[choice]).__name__}, not a string")
    words = clean(captions[choice], how)
    if not words:
        raise records.RecordError(f"caption {choice} is empty")
    return words


@functools.lru_cache(16)
def ends(source: sources.Source) -> np.ndarray:
    """int64[n]: how many captions the records up to each have; one that cannot be read counts as one. Counted once, and kept."""

    def count_one(index: int) -> int:
        try:
            return max(1, len(source[index]["captions"]))
        except (records.RecordError, TypeError):
            return 1

    def count() -> np.ndarray:
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
            counts = pool.map(count_one, range(len(source)))
            told = tqdm.tqdm(counts, total=len(source), desc="counting captions", unit="records", mininterval=1, delay=2)
            return np.cumsum(np.fromiter(told, np.int64, len(source)))

    return kept.array("captions", source.fingerprint, count)


def find(source: sources.Source, index: int) -> tuple[int, int]:
    """The record, and the number of its caption, of example `index` where each caption is an example."""
    before = ends(source)
    record = int(np.searchsorted(before, index, side="right"))
    return record, index - (int(before[record - 1]) if record else 0)
