"""Trains a SentencePiece vocabulary on the captions of any source, or on text files with one text a line.

    python data/train_tokenizer.py 'shards/train-{00000..00041}.tar' captions.model --size 16384
    python data/train_tokenizer.py book.txt::captions.txt words.model --size 4096 --coverage 0.9995 --rare bytes --clean lower

Ids are those of every vocabulary of ours: pad 0, end 1, unknown 2, no begin. Prints how captions come out; `--help` lists every field.
Exit code 2 and one line where a value cannot be used.
"""

import itertools
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import sentencepiece
import tqdm
import tyro

from vlm_jax import errors, files
from vlm_jax.data import captions, places, sources, text, vocabulary
from vlm_jax.evaluation import terminal

SAMPLES = 8
"""Texts that are shown."""
_HELD = 2_000
"""Texts of which the lengths are told."""


@dataclass(frozen=True)
class Arguments:
    """Trains a SentencePiece vocabulary."""

    source: tyro.conf.Positional[str]
    """Captions of a source, in any form of docs/data.md, or text files (.txt), several joined by ::."""
    target: tyro.conf.Positional[str]
    """Where to write the vocabulary, a name that ends in .model."""
    size: int = 16_384
    """Pieces, fewer where the texts do not give so many."""
    algorithm: Literal["bpe", "unigram"] = "bpe"
    """Byte pair encoding, or the unigram language model."""
    coverage: float = 1.0
    """Share of the characters of the texts that get pieces of their own; below 1 for scripts of thousands of characters."""
    rare: Literal["unknown", "bytes"] = "unknown"
    """What the other characters become: the unknown piece, or a piece for each of their bytes, of which there are 256."""
    clean: captions.Cleaning = "none"
    """What is done to texts first; train with the same --data.clean."""
    texts: int = 1_000_000
    """Texts to train on, from the start; 0: all."""
    threads: int = 2
    """That train."""


def main() -> int:
    try:
        return _run(tyro.cli(Arguments, description=__doc__))
    except (errors.InputError, errors.InfrastructureError) as error:
        print(f"train_tokenizer: {error}", file=sys.stderr)
        return errors.exit_code(error)


def _run(arguments: Arguments) -> int:
    if not arguments.target.endswith(".model"):
        raise errors.InputError(f"target {arguments.target}: give a name that ends in .model, by which it is known")
    if not 0 < arguments.coverage <= 1:
        raise errors.InputError(f"coverage {arguments.coverage}: a share of the characters, above 0 and at most 1")
    for field, least in (("size", 4), ("texts", 0), ("threads", 1)):
        if getattr(arguments, field) < least:
            raise errors.InputError(f"{field} {getattr(arguments, field)}: must be at least {least}")
    with tqdm.tqdm(_texts(arguments.source), desc="texts", unit="texts", total=arguments.texts or None, mininterval=0.5) as bar:
        wanted = itertools.islice(bar, arguments.texts or None)
        read = [words for words in (captions.clean(own, arguments.clean) for own in wanted) if words]
    if not read:
        raise errors.InputError(f"source {arguments.source}: holds no text")
    model = vocabulary.train(
        read, arguments.size, threads=arguments.threads, algorithm=arguments.algorithm, coverage=arguments.coverage, rare=arguments.rare
    )
    try:
        files.write(arguments.target, model)
    except OSError as error:
        raise errors.InputError(f"target {arguments.target}: cannot be written ({error.strerror}); name a folder that exists") from error
    _show(arguments.target, read)
    return errors.DONE


def _texts(source: str) -> Iterator[str]:
    paths = [places.locate(part.strip(), "source") for part in source.split("::")]
    if not all(path.endswith(".txt") for path in paths):
        yield from vocabulary.captions_of(sources.open_source(source, "source"))
        return
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                yield from (line.strip() for line in file if line.strip())
        except OSError as error:
            raise errors.InputError(f"source {path}: cannot be read ({error.strerror}); check the path") from error


def _show(path: str, texts: list[str]) -> None:
    """What became of texts: pieces of some, lengths of many, and how much is unknown."""
    loaded = text.Tokenizer(path).load()
    pieces = sentencepiece.SentencePieceProcessor(model_file=path)
    chosen = random.Random(0).sample(texts, min(_HELD, len(texts)))
    for words in chosen[:SAMPLES]:
        print(terminal.plain(words[:200]))
        print(terminal.plain("    " + " | ".join(pieces.encode(words[:200], out_type=str))))
    encoded = [loaded.encode(words) for words in chosen]
    lengths = sorted(len(ids) for ids in encoded)
    unknown = sum(ids.count(pieces.unk_id()) for ids in encoded) / max(1, sum(lengths))
    half, most = lengths[len(lengths) // 2], lengths[len(lengths) * 99 // 100]
    print(f"vocabulary  {path}: {loaded.vocab_size:,} pieces; pad {loaded.pad_id}, end {loaded.eos_id}, unknown {pieces.unk_id()}")
    print(f"lengths     half of {len(lengths):,} texts have at most {half} tokens, 99 of 100 at most {most}, beside the end")
    print(f"unknown     {unknown:.3%} of the tokens")


if __name__ == "__main__":
    sys.exit(main())
