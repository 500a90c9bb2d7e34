"""Vocabularies in the files of other tokenizers, and back: CLIP's merges, SentencePiece models."""

import dataclasses
import gzip
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from vlm_jax.errors import InputError
from vlm_jax.models.convert import files

_HEADER = "#version: 0.2"
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A vocabulary as we keep it, and how its texts are prepared."""

    suffix: Literal[".txt", ".model"]
    """Merges, or a SentencePiece model."""
    content: bytes
    pad: Literal["pad", "eos", "zero"]
    case: Literal["keep", "lower"]
    punctuation: Literal["keep", "strip"]


def read(folder: Path, family: str) -> Vocabulary | None:
    """The vocabulary of a directory with a tokenizer; None where there is none that we read.

    Gemma's, which SigLIP 2 has, defines a begin token that SigLIP 2 does not use; it is not read.

    Args:
      family: "clip" or "siglip", which decides how texts are padded and cleaned where tokenizer_config.json leaves it open.

    Raises:
      InputError: a file is damaged.
    """
    config = _config(folder)
    merges = _merges(folder)
    if merges is not None:
        return Vocabulary(".txt", merges, _pad(config, "eos" if (folder / "config.json").is_file() else "zero"), "keep", "keep")
    for name in ("spiece.model", "tokenizer.model", "sentencepiece.model"):
        if (folder / name).is_file():
            model = sentencepiece.SentencePieceProcessor()
            try:
                model.load_from_serialized_proto((folder / name).read_bytes())
            except RuntimeError as error:
                raise InputError(f"tokenizer {folder / name}: not a SentencePiece model ({error})") from None
            if model.bos_id() >= 0:
                return None  # ours would begin with it, SigLIP's texts do not
            lower = config.get("do_lower_case", family == "siglip")
            plain = "Siglip" in str(config.get("tokenizer_class", "Siglip" if family == "siglip" else ""))
            content = (folder / name).read_bytes()
            return Vocabulary(".model", content, _pad(config, "eos"), "lower" if lower else "keep", "strip" if plain else "keep")
    return None


def write_merges(folder: Path, source: Path, *, size: int, pad: int, length: int) -> None:
    """Writes transformers' tokenizer of CLIP.

    Args:
      source: CLIP's merges, as they are or gzipped; those beyond the vocabulary are left out.
      size: of the vocabulary.
      pad: the id that fills a text.
    """
    content = gzip.decompress(source.read_bytes()) if source.suffix == ".gz" else source.read_bytes()
    merges = content.decode().splitlines()[1:][: size - 2 * 256 - len(_SPECIAL)]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    bytes_ = [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable)))]
    tokens = [*bytes_, *(byte + "</w>" for byte in bytes_), *("".join(merge.split()) for merge in merges), *_SPECIAL]
    assert len(tokens) == size, "a vocabulary is 512 bytes, the merges and two special tokens"
    (folder / "merges.txt").write_text("\n".join([_HEADER, *merges]) + "\n", encoding="utf-8")
    files.write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    begin, end = _SPECIAL
    config = {"tokenizer_class": "CLIPTokenizer", "bos_token": begin, "eos_token": end, "unk_token": end, "pad_token": tokens[pad]}
    files.write_json(folder / "tokenizer_config.json", config | {"model_max_length": length})


def write_sentencepiece(folder: Path, source: Path, *, pad: Literal["pad", "eos", "zero"], length: int) -> None:
    """Writes transformers' tokenizer of SigLIP around a SentencePiece model: it lower-cases, strips punctuation, begins with no token."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(source))
    piece = model.id_to_piece({"pad": model.pad_id(), "eos": model.eos_id(), "zero": 0}[pad])
    (folder / "spiece.model").write_bytes(source.read_bytes())
    config = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "pad_token": piece}
    files.write_json(folder / "tokenizer_config.json", config | {"model_max_length": length})


def _merges(folder: Path) -> bytes | None:
    """merges.txt, or what tokenizer.json says of byte pairs with CLIP's end of words."""
    if (folder / "merges.txt").is_file():
        content = (folder / "merges.txt").read_bytes()
        try:
            content.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"tokenizer {folder / 'merges.txt'}: no merges of byte pairs ({error})") from None
        return content
    if not (folder / "tokenizer.json").is_file():
        return None
    content = files.read_json(folder / "tokenizer.json", "tokenizer")
    model: Any = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or model.get("type") != "BPE" or model.get("end_of_word_suffix") != "</w>":
        return None
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
    return "\n".join([_HEADER, *pairs, ""]).encode()


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    content = files.read_json(path, "tokenizer") if path.is_file() else {}
    if not isinstance(content, dict):
        raise InputError(f"tokenizer {path}: not a JSON object")
    return content


def _pad(config: dict[str, Any], otherwise: Any) -> Any:
    def name(key: str) -> str | None:
        token = config.get(key)
        return token.get("content") if isinstance(token, dict) else token

    if name("pad_token") is None:
        return otherwise
    if name("pad_token") == name("eos_token") or name("pad_token") in ("</s>", "<|endoftext|>"):
        return "eos"
    return "zero" if name("pad_token") == "!" else "pad"

