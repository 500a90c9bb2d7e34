"""Text: strings to rows of token ids, with a SentencePiece model, CLIP's byte-level byte pair encoding, or a `tokenizer.json`."""

import abc
import dataclasses
import functools
import gzip
import html
import itertools
import os
import pathlib
import string
from collections.abc import Sequence
from typing import Literal

import ftfy
import numpy as np
import regex
import sentencepiece

from vlm_jax import errors, files
from vlm_jax.data import places

ROWS_CACHED = 2**16
"""Tokenised texts that a process remembers: captions come back every epoch."""
_CLIP_MERGES = 49152 - 256 - 2
"""CLIP uses the first 48894 merges of its file, which lists more."""
Part = Literal["first", "random", "block"]
"""Tokens of a text that is longer than a row: the first ones, random ones in their order, or a run from a random place."""
_START, _END = "<|startoftext|>", "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a run: a vocabulary file and the row length; `load` reads the file.

    Rows are [begin, if there is one] ids [end], cut to `length` with the end kept as the last id.
    """

    path: str
    """Vocabulary: a SentencePiece model (*.model), CLIP's merges (bpe*.txt or bpe*.txt.gz), a file of the tokenizers library
    (tokenizer.json), or `captions:4096` for a SentencePiece model of so many pieces trained on the captions of the training shards."""
    length: int = 64
    """Tokens in a row, begin and end included."""
    pad: Literal["pad", "eos", "zero"] = "pad"
    """What fills a row after its end: the vocabulary's own padding (its pad token, 0 for CLIP), the end token again (SigLIP, and CLIP in
    transformers), or 0."""
    case: Literal["keep", "lower"] = "keep"
    """lower: lower-case first; CLIP's encoding always does."""
    punctuation: Literal["keep", "strip"] = "keep"
    """strip: remove ASCII punctuation and collapse white space first (SigLIP)."""
    begin: str = "auto"
    """The token before a text: the vocabulary's own, if it has one (auto); none (SigLIP 2, whose vocabulary has one); or its name, such as
    <s>."""
    end: str = "auto"
    """The token after a text: the vocabulary's own (auto), or its name, such as </s>."""

    def load(self) -> "LoadedTokenizer":
        """Reads the vocabulary; a process keeps the last ones it read.

        Raises:
          InputError: no such file, another format, a length without room, or a padding the vocabulary does not have.
        """
        return _load(self)


    def keep(self, folder: str | os.PathLike, name: str) -> None:
        """Copies the vocabulary into a folder, so that what was trained with it can be moved."""
        path = self.load().config.path
        files.write(os.path.join(folder, name + _suffix(path)), pathlib.Path(path).read_bytes())

    def kept(self, folder: str | os.PathLike, name: str) -> "Tokenizer":
        """The tokenizer with the vocabulary that `keep` copied; as it is where there is no copy."""
        copies = [os.path.join(folder, name + suffix) for suffix in _SUFFIXES]
        return next((dataclasses.replace(self, path=copy) for copy in copies if os.path.isfile(copy)), self)


_SUFFIXES = (".model", ".txt.gz", ".txt", ".json")


def _suffix(path: str) -> str:
    return next(suffix for suffix in _SUFFIXES if path.endswith(suffix))


class LoadedTokenizer(abc.ABC):
    """A vocabulary in memory: texts to ids and back."""

    vocab_size: int
    bos_id: int | None
    eos_id: int
    pad_id: int

    def __init__(self, config: Tokenizer):
        self.config = config
        self.length = config.length
        self.row = functools.lru_cache(ROWS_CACHED)(self._row)
        """Text to int32[length], read-only; remembered."""

    @abc.abstractmethod
    def id_of(self, token: str) -> int | None:
        """The id of a token by its name; None where there is none."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text, without begin, end and padding."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids before the first end; begin, padding and what the vocabulary does not have are left out."""

    def named(self, field: Literal["begin", "end"], own: int | None) -> int | None:
        """The id that the configuration names for the begin or end; `own`, the vocabulary's, where it names none.

        Raises:
          InputError: the vocabulary does not have it.
        """
        name = getattr(self.config, field)
        if name == "auto":
            return own
        if name == "none" and field == "begin":
            return None
        found = self.id_of(name)
        if found is None:
            raise errors.InputError(f"tokenizer.{field} {name!r}: {os.path.basename(self.config.path)} has no such token")
        return found

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """int32[n, length]: one row a text."""
        rows = np.empty((len(texts), self.length), np.int32)
        for row, text in zip(rows, texts, strict=True):
            row[:] = self.row(text)
        return rows

    def part(self, text: str, tokens: Part, rng: np.random.Generator) -> np.ndarray:
        """A row with a random part of the text, where that is too long for one; else, and with "first", as `row`."""
        row = self.row(text)
        if tokens == "first" or int((row == self.eos_id).argmax()) < self.length - 1:
            return row
        ids, room = self.encode(text), self.length - 1 - (self.bos_id is not None)
        if len(ids) <= room:
            return row
        if tokens == "block":
            start = int(rng.integers(len(ids) - room + 1))
            return self._filled(ids[start : start + room])
        return self._filled([ids[i] for i in np.sort(rng.choice(len(ids), room, replace=False))])

    def __reduce__(self):
        return _load, (self.config,)

    def _row(self, text: str) -> np.ndarray:
        return self._filled(self.encode(text))

    def _filled(self, ids: Sequence[int]) -> np.ndarray:
        ids = [*([] if self.bos_id is None else [self.bos_id]), *ids]
        row = np.full(self.length, self.pad_id, np.int32)
        count = min(len(ids), self.length - 1)
        row[:count] = ids[:count]
        row[count] = self.eos_id
        row.setflags(write=False)
        return row

    def _clean(self, text: str) -> str:
        if not text.isascii():
            text = text.encode("utf-8", errors="replace").decode("utf-8")  # json can hold halves of surrogate pairs
        if self.config.case == "lower":
            text = text.lower()
        if self.config.punctuation == "strip":
            text = " ".join(text.translate(_NO_PUNCTUATION).split())
        return text

    def _content(self, ids: Sequence[int]) -> list[int]:
        ids = [int(i) for i in ids if i < self.vocab_size]
        if ids and ids[0] == self.bos_id:
            ids = ids[1:]
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        return [i for i in ids if i != self.bos_id]


class SentencePiece(LoadedTokenizer):
    """A SentencePiece model (Kudo and Richardson 2018), any algorithm."""

    def __init__(self, config: Tokenizer):
        super().__init__(config)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=config.path)
        except (RuntimeError, OSError) as error:
            raise errors.InputError(f"tokenizer.path {config.path}: not a SentencePiece model ({error})") from error
        name = os.path.basename(config.path)
        self.vocab_size = self._model.vocab_size()
        pad = self._model.pad_id()
        own = {"begin": self._model.bos_id(), "end": self._model.eos_id()}
        bos, eos = (self.named(field, None if own[field] < 0 else own[field]) for field in ("begin", "end"))
        if eos is None:
            raise errors.InputError(
                f"tokenizer.path {config.path}: the model defines no end piece (eos); name one in tokenizer.end, or train one that does"
            )
        if config.pad == "pad" and pad < 0:
            raise errors.InputError(f'tokenizer.pad "pad": {name} defines no pad piece; use "eos" or "zero"')
        self.bos_id, self.eos_id = bos, eos
        self.pad_id = {"pad": pad, "eos": eos, "zero": 0}[config.pad]

    def id_of(self, token: str) -> int | None:
        found = self._model.piece_to_id(token)
        return found if self._model.id_to_piece(found) == token else None

    def encode(self, text: str) -> list[int]:
        return self._model.encode(self._clean(text))

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([i for i in self._content(ids) if not self._model.is_control(i)])


class BytePairs(LoadedTokenizer):
    """CLIP's lower-cased byte-level byte pair encoding (Radford et al. 2021), ids as in its `simple_tokenizer`.

    Vocabulary: 256 byte characters, the same at the end of a word, one entry a merge, start, end. The two special tokens are
    recognised in a text as in the original.
    """

    def __init__(self, config: Tokenizer):
        super().__init__(config)
        merges = _read_merges(config.path)
        self._bytes = _byte_characters()
        characters = list(self._bytes.values())
        vocabulary = characters + [c + "</w>" for c in characters] + ["".join(pair) for pair in merges] + [_START, _END]
        self._ids = {token: i for i, token in enumerate(vocabulary)}
        self._tokens = vocabulary
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._characters = {character: byte for byte, character in self._bytes.items()}
        self._word_ids = functools.lru_cache(ROWS_CACHED)(self._merge)
        self.vocab_size = len(vocabulary)
        bos, eos = self.named("begin", self._ids[_START]), self.named("end", self._ids[_END])
        assert eos is not None, "CLIP's vocabulary has an end"
        self.bos_id, self.eos_id = bos, eos
        self.pad_id = self.eos_id if config.pad == "eos" else 0

    def id_of(self, token: str) -> int | None:
        return self._ids.get(token)

    def encode(self, text: str) -> list[int]:
        return [i for word in _WORDS.findall(_clip_clean(self._clean(text))) for i in self._word_ids(word)]

    def decode(self, ids: Sequence[int]) -> str:
        joined = "".join(self._tokens[i] for i in self._content(ids)).replace("</w>", " ")
        return bytes(self._characters.get(c, 32) for c in joined).decode("utf-8", errors="replace").strip()

    def _merge(self, word: str) -> tuple[int, ...]:
        """Joins the pair of lowest rank, all its occurrences, until no pair has a rank."""
        if word in (_START, _END):
            return (self._ids[word],)
        parts = [self._bytes[byte] for byte in word.encode("utf-8")]
        parts[-1] += "</w>"
        while len(parts) > 1:
            pair = min(itertools.pairwise(parts), key=lambda p: self._ranks.get(p, len(self._ranks)))
            if pair not in self._ranks:
                break
            merged, i = [], 0
            while i < len(parts):
                if i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        return tuple(self._ids[part] for part in parts)


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACE = regex.compile(r"\s+")
_WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


@functools.lru_cache(8)
def _load(config: Tokenizer) -> LoadedTokenizer:
    if not config.path:
        raise errors.InputError(
            "tokenizer.path is empty: give a SentencePiece model (*.model), CLIP's merges (bpe*.txt.gz) or a tokenizer.json"
        )
    config = dataclasses.replace(config, path=places.locate(config.path, "tokenizer.path"))
    if not os.path.isfile(config.path):
        raise errors.InputError(f"tokenizer.path {config.path}: no such file")
    if config.length < 3:
        raise errors.InputError(f"tokenizer.length {config.length}: begin, a token and the end need at least 3")
    if config.path.endswith(".model"):
        return SentencePiece(config)
    if config.path.endswith((".txt", ".txt.gz")):
        return BytePairs(config)
    if config.path.endswith(".json"):
        from vlm_jax.data import tokenizer_json  # which is made of this module's parts

        return tokenizer_json.TokenizerJson(config)
    raise errors.InputError(
        f"tokenizer.path {config.path}: neither a SentencePiece model (*.model), nor merges (*.txt, *.txt.gz), nor a tokenizer.json"
    )


def mended(text: str) -> str:
    """Text with encodings mended and HTML unescaped twice."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text  # as these two would leave it, slowly
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _clip_clean(text: str) -> str:
    """Mends, collapses white space, lower-cases."""
    return _SPACE.sub(" ", mended(text)).strip().lower()


def _read_merges(path: str) -> list[tuple[str, str]]:
    """The first 48894 merges of the file, whose first line is a header that names a version."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.endswith(".gz") else open(path, encoding="utf-8") as file:
            lines = file.read().split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise errors.InputError(f"tokenizer.path {path}: cannot be read as merges ({error})") from error
    if "#version" not in lines[0]:
        raise errors.InputError(f"tokenizer.path {path}: not a merges file, its first line has no #version header")
    lines = lines[1:-1] if lines[-1] == "" else lines[1:]
    merges = []
    for number, line in enumerate(lines[:_CLIP_MERGES], start=2):
        pair = line.split()
        if len(pair) != 2:
            raise errors.InputError(f"tokenizer.path {path}: line {number} is not a pair of tokens")
        merges.append((pair[0], pair[1]))
    return merges


def _byte_characters() -> dict[int, str]:
    """Bytes to printable characters: 188 stand for themselves, the others get 256 and up in byte order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
