"""Language models alone, as transformers takes them: out of a run, such as that of configs/lm_text.py, or of its own directories."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax import files as whole
from vlm_jax import imported
from vlm_jax.errors import InputError
from vlm_jax.models import lm
from vlm_jax.models.convert import card, decoders, files
from vlm_jax.training import tree

_USAGE = "from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained(folder)"
_LIMITS = (
    "It was trained to continue texts, and repeats what its data say, true or not, and their associations, among them those about people. "
    "It is no source of facts, and was not tuned to refuse anything."
)


def export(path: str, target: Path, *, allow: Sequence[str] = (), weights: str = "auto") -> tuple[int, tuple[str, ...]]:
    """Writes the language model of a run as a directory of transformers; returns its number of parameters, and notes.

    The tokenizer is not written: its file lies in the run's directory.

    Raises:
      InputError: there is none, or no class of transformers holds it; nothing is written then.
    """
    config, params, facts = _of_any(path, allow, weights)
    made, content = decoders.write(config)
    arrays = made.to_theirs(params)
    target.mkdir(parents=True, exist_ok=True)
    files.write_safetensors(target / "model.safetensors", arrays, format="pt")
    files.write_json(target / "config.json", content)
    notes = ("no tokenizer is written",)
    text = card.text(
        target.name, library="transformers", usage=_USAGE, facts=facts, results=(), notes=notes, limits=_LIMITS, kind="language model"
    )
    whole.write_text(target / "README.md", text)
    return sum(x.size for x in arrays.values()), notes


def _of_any(path: str, allow: Sequence[str], weights: str) -> tuple[lm.Config, dict[str, np.ndarray], dict[str, Any]]:
    """Configuration, parameters by path and facts for a card."""
    if not imported.is_ours(Path(path)):
        origin = imported.foreign(path) or Path(path)
        if not decoders.describes(origin):
            raise InputError(f"source {path}: neither a run of ours nor a directory with a language model of transformers")
        config, params = decoders.load(origin, allow=allow)
        return config, params, {"weights": str(origin)}
    source = imported.load(path, weights=weights)
    system: Any = source.config.system
    config = getattr(system, "lm", None)
    if not isinstance(config, lm.Config):
        raise InputError(f"source {path}: system {type(system).__name__} has no language model")
    variables = tree.flatten(source.variables)
    params = {name.removeprefix("lm/"): np.asarray(x) for name, x in variables.items() if name.startswith("lm/")}
    return config, params, {"system": type(system).__name__, "steps": source.step, "batch size": source.config.batch_size}
