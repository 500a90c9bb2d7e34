"""Vocabularies trained on the captions of a data set."""

import hashlib
import io
import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from vlm_jax import errors, files
from vlm_jax.data import records

_CAPTIONS = 200_000
"""Captions that a vocabulary is trained on, from the start of the shards."""


def train(
    texts: Iterable[str],
    size: int,
    *,
    threads: int = 1,
    algorithm: Literal["bpe", "unigram"] = "bpe",
    coverage: float = 1.0,
    rare: Literal["unknown", "bytes"] = "unknown",
) -> bytes:
    """A SentencePiece model of at most `size` pieces: pad 0, eos 1, unk 2, no bos.

    Args:
      algorithm: byte pair encoding (Sennrich et al. 2016), or the unigram language model (Kudo 2018).
      coverage: share of the characters of the texts that get pieces of their own, the frequent ones first.
      rare: what the others become: the unknown piece, or one of 256 pieces for each of their bytes.

    Raises:
      InputError: `size` is too small for the characters of the texts, or there is no text.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=algorithm,
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=coverage,
            byte_fallback=rare == "bytes",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=threads,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        raise errors.InputError(f"vocabulary of {size} pieces: {' '.join(str(error).split())}") from None
    return model.getvalue()


def size_asked(path: str) -> int | None:
    """The number of pieces of a tokenizer.path such as `captions:4096`; None where the path names a file.

    Raises:
      InputError: `captions:` without a number.
    """
    scheme, colon, size = path.partition(":")
    if scheme != "captions" or not colon:
        return None
    if not size.isdecimal():
        raise errors.InputError(f"tokenizer.path {path}: write the number of pieces, such as captions:4096")
    return int(size)


def captions_of(source: Any) -> Iterable[str]:
    """Those of the usable records; a training step replaces and counts the others."""
    for index in range(len(source)):
        try:
            captions = source[index]["captions"]
        except records.RecordError:
            continue
        yield from (caption for caption in captions if isinstance(caption, str))


def of_captions(source: Any, size: int) -> str:
    """The path of a model of `size` pieces trained on the captions of a source; made once and kept in the cache folder.

    Raises:
      InputError: as `train`, or the cache folder cannot be written.
    """
    root = Path(os.environ.get("VLM_JAX_CACHE") or Path.home() / ".cache" / "vlm_jax").absolute()
    name = hashlib.sha256(f"{source.fingerprint} {size}".encode()).hexdigest()[:12]
    path = root / f"captions-{name}.model"
    if not path.is_file():
        model = train(itertools.islice(captions_of(source), _CAPTIONS), size)
        try:
            root.mkdir(parents=True, exist_ok=True)
            files.write(path, model)
        except OSError as error:
            raise errors.InputError(f"cache folder {root}: {error.strerror}; set VLM_JAX_CACHE to one that can be written") from None
    return str(path)
