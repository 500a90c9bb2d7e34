"""Vocabularies as the one file that language models of transformers come with: a `tokenizer.json` that begins texts, and ends none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, processors

from vlm_jax.errors import InputError
from vlm_jax.models.convert import files

_SPACE = "▁"
_BPE, _UNIGRAM = 2, 1
_UNKNOWN, _CONTROL, _USER, _BYTE = 2, 3, 4, 6
"""Kinds of pieces in a SentencePiece model."""


def of(source: Path, *, case: Literal["keep", "lower"], begin: int | None, added: Sequence[str] = ()) -> tokenizers.Tokenizer:
    """The tokenizer of a SentencePiece model (.model) or a `tokenizer.json`, which puts the begin token before a text.

    Args:
      begin: the id of the token before a text.
      added: names of tokens that come after the vocabulary.

    Raises:
      InputError: a kind of vocabulary that the file cannot express.
    """
    made = _of_sentencepiece(source) if source.suffix == ".model" else tokenizers.Tokenizer.from_file(str(source))
    made.no_truncation()
    made.no_padding()
    if case == "lower":
        parts = [normalizers.Lowercase(), *([] if made.normalizer is None else [made.normalizer])]
        made.normalizer = normalizers.Sequence(parts)  # pyright: ignore[reportAttributeAccessIssue]
    name = None if begin is None else made.id_to_token(begin)
    made.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A" if name is None else f"{name} $A", special_tokens=[] if name is None else [(name, begin)]
    )
    made.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in added])
    return made


def write(folder: Path, made: tokenizers.Tokenizer, *, begin: int | None, end: int, pad: int, length: int) -> None:
    """Writes tokenizer.json, and tokenizer_config.json that names the tokens which begin, end and fill texts."""
    made.save(str(folder / "tokenizer.json"))
    ids = {"bos_token": begin, "eos_token": end, "pad_token": pad}
    named = {name: made.id_to_token(i) for name, i in ids.items() if i is not None}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, "clean_up_tokenization_spaces": False}
    files.write_json(folder / "tokenizer_config.json", config | named)


def _of_sentencepiece(source: Path) -> tokenizers.Tokenizer:
    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    proto.ParseFromString(source.read_bytes())
    kind, rules = proto.trainer_spec.model_type, proto.normalizer_spec
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    unknown = next(i for i, piece in enumerate(proto.pieces) if piece.type == _UNKNOWN)
    falls_back = any(piece.type == _BYTE for piece in proto.pieces)
    if kind == _BPE:
        ids = {piece: i for i, (piece, _) in enumerate(pieces)}
        options: Any = {"unk_token": pieces[unknown][0], "fuse_unk": True, "byte_fallback": falls_back}
        made = tokenizers.Tokenizer(models.BPE(ids, _merges(proto.pieces, ids), **options))
    elif kind == _UNIGRAM:
        made = tokenizers.Tokenizer(models.Unigram(pieces, unknown, falls_back))
    else:
        raise InputError(f"tokenizer {source}: neither byte pairs nor unigrams, which tokenizer.json cannot express")
    if proto.trainer_spec.treat_whitespace_as_suffix or not rules.escape_whitespaces:
        raise InputError(f"tokenizer {source}: it marks spaces otherwise than before words, which tokenizer.json cannot express")
    own = [piece.piece for piece in proto.pieces if piece.type == _USER]
    if own:
        raise InputError(f"tokenizer {source}: its symbol {own[0]!r} is a text's own, and tokenizer.json would part it from its spaces")
    steps: list[Any] = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Replace(tokenizers.Regex("^ +| +$"), ""), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend(_SPACE)] if rules.add_dummy_prefix else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])  # pyright: ignore[reportAttributeAccessIssue]
    read: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    read += [decoders.Strip(" ", 1, 0)] if rules.add_dummy_prefix else []
    made.decoder = decoders.Sequence(read)  # pyright: ignore[reportAttributeAccessIssue]
    special = [piece.piece for piece in proto.pieces if piece.type in (_UNKNOWN, _CONTROL)]
    made.add_special_tokens([tokenizers.AddedToken(piece, normalized=False, special=True) for piece in special])
    return made


def _merges(pieces: Sequence[Any], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs of pieces that make another piece, the best of those first."""
    found = []
    for number, piece in enumerate(pieces):
        text = piece.piece
        if piece.type in (_UNKNOWN, _CONTROL, _BYTE):
            continue
        parts = [(text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in ids and text[i:] in ids]
        found += [(-piece.score, number, ids[left], ids[right], (left, right)) for left, right in parts]
    return [pair for *_, pair in sorted(found)]
