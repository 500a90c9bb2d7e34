"""Language models alone, as transformers takes them: out of a run, such as that of configs/lm_text.py, or of its own directories."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax import files as whole
from vlm_jax import imported
from vlm_jax.data import text as tokenizers
from vlm_jax.errors import InputError
from vlm_jax.models import lm
from vlm_jax.models.convert import card, decoders, fast_tokenizer, files
from vlm_jax.training import tree

_USAGE = "from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained(folder)"
_LIMITS = (
    "It was trained to continue texts, and repeats what its data say, true or not, and their associations, among them those about people. "
    "It is no source of facts, and was not tuned to refuse anything."
)


_PROBES = ("A red circle on a blue square.", "  Two   cats; 3 birds!  ", "naïve café — 東京 ½", "line \n break\ttab", "abababab 🙂", "")
"""Texts that a tokenizer must read alike before it is written."""
_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "generation_config.json",
)  # fmt: skip
"""What directories of transformers have beside the weights, and what is handed on as it is."""
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def export(path: str, target: Path, *, allow: Sequence[str] = (), weights: str = "auto") -> tuple[int, tuple[str, ...]]:
    """Writes the language model of a run, with its tokenizer, as a directory of transformers; returns its number of parameters, and notes.

    Raises:
      InputError: there is none, or no class of transformers holds it; nothing is written then.
    """
    source = imported.load(path, allow=allow, weights=weights)
    config = getattr(source.config.system, "lm", None)
    if not isinstance(config, lm.Config):
        raise InputError(f"source {path}: system {type(source.config.system).__name__} has no language model")
    made, content = decoders.write(config)
    variables = tree.flatten(source.variables)
    arrays = made.to_theirs({name.removeprefix("lm/"): np.asarray(x) for name, x in variables.items() if name.startswith("lm/")})
    target.mkdir(parents=True, exist_ok=True)
    files.write_safetensors(target / "model.safetensors", arrays, format="pt")
    origin = imported.foreign(path) or Path(path)
    folder = origin if origin.is_dir() else origin.parent
    if files.model_type(folder) in decoders.FAMILIES:
        ids, notes = _hand_on(folder, target), ()
    else:
        with source.tokenizer() as tokenizer:
            ids, notes = write_tokenizer(tokenizer, target, rows=config.vocab_size)
    files.write_json(target / "config.json", content | ids)
    facts = {name: fact for name, fact in imported.facts_of(source).items() if name != "image size"}
    text = card.text(
        target.name, library="transformers", usage=_USAGE, facts=facts, results=(), notes=notes, limits=_LIMITS, kind="language model"
    )
    whole.write_text(target / "README.md", text)
    return sum(x.size for x in arrays.values()), notes


def write_tokenizer(
    tokenizer: tokenizers.Tokenizer, target: Path, *, rows: int, added: Sequence[str] = ()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Writes the tokenizer of a run, which begins texts there as here and ends none; returns its ids for config.json, and notes.

    Args:
      rows: of the model's token table.
      added: names of the tokens that come after these rows.
    """
    if not tokenizer.path:
        return {}, ("no tokenizer is written: there is none",)
    loaded = tokenizer.load()
    ids: dict[str, Any] = dict(zip(_IDS, (loaded.bos_id, loaded.eos_id, loaded.pad_id), strict=True))
    notes = [] if loaded.vocab_size == rows else [f"the tokenizer has {loaded.vocab_size} tokens, of the model's {rows} rows"]
    source = Path(loaded.config.path)
    if source.suffix not in (".model", ".json") or tokenizer.punctuation != "keep":
        return ids, (*notes, f"no tokenizer is written: transformers has none for {source.name} that strips punctuation or ends no text")
    try:
        made = fast_tokenizer.of(source, case=tokenizer.case, begin=loaded.bos_id, added=added)
    except InputError as error:
        return ids, (*notes, f"no tokenizer is written: {error}")
    wrong = [text for text in _PROBES if made.encode(text, add_special_tokens=False).ids != loaded.encode(text)]
    wrong += [name for number, name in enumerate(added) if made.token_to_id(name) != rows + number]
    if wrong:
        return ids, (*notes, f"no tokenizer is written: transformers would read {wrong[0]!r} otherwise")
    fast_tokenizer.write(target, made, begin=loaded.bos_id, end=loaded.eos_id, pad=loaded.pad_id, length=tokenizer.length)
    return ids, tuple(notes)


def _hand_on(origin: Path, target: Path) -> dict[str, Any]:
    """Copies the tokenizer that lies beside weights of transformers; returns what config.json says of its tokens."""
    for name in _FILES:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, target / name)
    theirs = files.read_json(origin / "config.json", "configuration")
    return {name: theirs[name] for name in _IDS if name in theirs}
