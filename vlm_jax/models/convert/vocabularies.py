"""Vocabularies in the files of other tokenizers, and back: CLIP's merges, SentencePiece models, `tokenizer.json`."""

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any, Literal

import sentencepiece
import tokenizers

from vlm_jax.errors import InputError
from vlm_jax.models.convert import files

_HEADER = "#version: 0.2"
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A vocabulary as we keep it, and how its texts are prepared."""

    suffix: Literal[".txt", ".model", ".json"]
    """Merges, a SentencePiece model, or a file of the tokenizers library."""
    content: bytes
    pad: Literal["pad", "eos", "zero"]
    case: Literal["keep", "lower"]
    punctuation: Literal["keep", "strip"]
    begin: str = "auto"
    end: str = "auto"


def read(folder: Path, family: str) -> Vocabulary | None:
    """The vocabulary of a directory with a tokenizer; None where there is none that we read.

    How texts are prepared is said by tokenizer_config.json and by `tokenizer_kwargs` of open_clip_config.json. SigLIP's texts begin with no
    token, whatever the vocabulary has, and are filled on the right. SigLIP 2 lower-cases them; open_clip also strips their punctuation
    for it, transformers does not, and neither do we with its directories.

    Args:
      family: "clip", "siglip", "idefics" or "language", which decides what these files leave open.

    Raises:
      InputError: a file is damaged.
    """
    config = _config(folder)
    merges = None if family in ("idefics", "language") else _merges(folder)
    if merges is not None:
        return Vocabulary(".txt", merges, _pad(config, "eos" if (folder / "config.json").is_file() else "zero"), "keep", "keep")
    for name in ("spiece.model", "tokenizer.model", "sentencepiece.model"):
        if (folder / name).is_file():
            model = sentencepiece.SentencePieceProcessor()
            try:
                model.load_from_serialized_proto((folder / name).read_bytes())
            except RuntimeError as error:
                raise InputError(f"tokenizer {folder / name}: not a SentencePiece model ({error})") from None
            content = (folder / name).read_bytes()
            begin = "auto" if model.bos_id() < 0 else _begin(config, family, "auto")
            return Vocabulary(".model", content, _pad(config, "eos"), *_cleaning(folder, config, family), begin)
    if (folder / "tokenizer.json").is_file():
        begin, end = _begin(config, family, _template(folder)[0]), _name(config, "eos_token") or _template(folder)[1]
        content = (folder / "tokenizer.json").read_bytes()
        return Vocabulary(".json", content, _pad(config, "pad"), *_cleaning(folder, config, family), begin, end)
    if family == "language" and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        content = _byte_pairs(folder, add_prefix_space=bool(config.get("add_prefix_space")))
        return Vocabulary(".json", content, "eos", "keep", "keep", _begin(config, family, "none"), _name(config, "eos_token") or "auto")
    return None


def without_added(vocabulary: Vocabulary, size: int) -> Vocabulary:
    """Without the added tokens of a `tokenizer.json` from this number on, which are a model's own and no text."""
    if vocabulary.suffix != ".json":
        return vocabulary
    content = json.loads(vocabulary.content)
    content["added_tokens"] = [token for token in content.get("added_tokens", []) if token["id"] < size]
    return dataclasses.replace(vocabulary, content=json.dumps(content, ensure_ascii=False).encode())


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


def write_tokenizer_json(folder: Path, source: Path, *, end: int, pad: int, length: int) -> None:
    """Writes transformers' tokenizer of SigLIP 2 around a `tokenizer.json`: it lower-cases, begins with no token.

    Args:
      end, pad: ids of the tokens that end and fill a text.
    """
    (folder / "tokenizer.json").write_bytes(source.read_bytes())
    model = tokenizers.Tokenizer.from_file(str(source))
    config = {"tokenizer_class": "Siglip2Tokenizer", "eos_token": model.id_to_token(end), "pad_token": model.id_to_token(pad)}
    flags = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right", "model_max_length": length}
    files.write_json(folder / "tokenizer_config.json", config | flags)


def _byte_pairs(folder: Path, *, add_prefix_space: bool) -> bytes:
    """A `tokenizer.json` of GPT-2's two files."""
    try:
        made = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"tokenizer {folder / 'vocab.json'}, merges.txt: no byte pairs ({error})") from None
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = tokenizers.decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return made.to_str().encode()


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


def _name(config: dict[str, Any], key: str) -> str | None:
    """The name of a special token."""
    token = config.get(key)
    return token.get("content") if isinstance(token, dict) else token


def _begin(config: dict[str, Any], family: str, otherwise: str) -> str:
    if family == "siglip" or config.get("add_bos_token") is False:
        return "none"
    return (_name(config, "bos_token") or "auto") if config.get("add_bos_token") else otherwise


def _template(folder: Path) -> tuple[str, str]:
    """The tokens that tokenizer.json puts before and after a text, as fields of `Vocabulary`."""
    content: Any = files.read_json(folder / "tokenizer.json", "tokenizer")
    processor = content.get("post_processor") if isinstance(content, dict) else None
    parts = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    single = next((part["single"] for part in parts if isinstance(part, dict) and part.get("type") == "TemplateProcessing"), [])
    names = [item.get("SpecialToken", {}).get("id") for item in single]
    return (names[0] or "none", names[-1] or "auto") if names else ("none", "auto")


def _cleaning(folder: Path, config: dict[str, Any], family: str) -> tuple[Any, Any]:
    """Whether texts are lower-cased and their punctuation stripped, as fields of `Vocabulary`."""
    file = folder / "open_clip_config.json"
    theirs: Any = files.read_json(file, "open_clip") if file.is_file() else {}
    for key in ("model_cfg", "text_cfg", "tokenizer_kwargs"):
        theirs = theirs.get(key) or {} if isinstance(theirs, dict) else {}
    if isinstance(theirs, dict) and theirs.get("clean"):
        lower, plain = theirs["clean"] in ("canonicalize", "lower"), theirs["clean"] == "canonicalize"
    else:
        kind = str(config.get("tokenizer_class", "Siglip" if family == "siglip" else ""))
        lower = config.get("do_lower_case", family == "siglip")
        plain = kind.removesuffix("Fast") in ("Siglip", "SiglipTokenizer")
    return "lower" if lower else "keep", "strip" if plain else "keep"


def _pad(config: dict[str, Any], otherwise: Any) -> Any:
    pad = _name(config, "pad_token")
    if pad is None:
        return otherwise
    if pad == _name(config, "eos_token") or pad in ("</s>", "<|endoftext|>"):
        return "eos"
    return "zero" if pad == "!" else "pad"
