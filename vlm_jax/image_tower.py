"""Image towers alone, such as ViTs that were trained to classify: what a run starts from, and what transformers takes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vlm_jax import config as configs
from vlm_jax import files as whole
from vlm_jax import imported
from vlm_jax.errors import InputError
from vlm_jax.models import vit
from vlm_jax.models.convert import card, files, hugging_face, layout, pretrained
from vlm_jax.training import tree

_PREPARED = {"mean": "--system.mean", "std": "--system.std", "resize": "--data.image.resize", "interpolation": "--data.image.interpolation"}
"""Fields of a preprocessing, and the flags that set them for a run."""
_USAGE = "from transformers import AutoImageProcessor, ViTModel\n\nmodel = ViTModel.from_pretrained(folder, add_pooling_layer={pooler})"
_LIMITS = (
    "It was trained to tell images apart, and repeats the associations of its data, among them those about people. It is no basis for "
    "decisions about persons."
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a run may start from."""

    leaves: Mapping[str, Any]
    """Parameters and buffers by our paths: `image/...`, of two towers also `text/...`, `log_scale`, `bias`; classifiers as `heads/...`;
    of a language model `lm/...`."""
    preprocessing: layout.Preprocessing | None
    """How the images of that model were prepared; None where it has none."""


def weights_of_others(path: str, assumed_size: int | None = None) -> Weights | None:
    """The weights of `hf:DIR`, `open_clip:DIR` or `big_vision:FILE.npz`, of an image tower or a language model alone, too; None where the
    path is ours.

    Args:
      assumed_size: of the images in pixels, for weights that do not tell.

    Raises:
      InputError: the files hold no model that can be read.
    """
    origin = imported.foreign(path)
    if origin is None:
        return None
    found = pretrained.load(origin, assumed_size=assumed_size)
    return Weights({name: jnp.asarray(x) for name, x in found.params.items()}, found.layout.preprocessing)


def prepared_differently(there: layout.Preprocessing | None, config: configs.Config) -> str:
    """In words how a run prepares images otherwise than those of its initial weights were; "" where it does not."""
    here = imported.preprocessing_of(config)
    if there is None or here is None:
        return ""
    different = [field for field in _PREPARED if getattr(there, field) != getattr(here, field)]
    if not different:
        return ""
    was, now = (", ".join(f"{field} {_text(getattr(x, field))}" for field in different) for x in (there, here))
    flags = " ".join(f"{_PREPARED[field]} {_text(getattr(there, field))}" for field in different)
    return f"its images were prepared with {was}, those of this run are with {now}: set {flags}, above all where the tower is frozen"


def export(
    path: str, target: Path, *, allow: Sequence[str] = (), image_size: int | None = None, weights: str = "auto"
) -> tuple[int, tuple[str, ...]]:
    """Writes the image tower of any model as a directory of transformers' ViTModel; returns its number of parameters, and notes.

    A projection to the common space and classifiers are left out: the output is what they would take.

    Raises:
      InputError: ViTModel cannot hold the tower; nothing is written then.
    """
    model, params, facts, notes = _of_any(path, allow, image_size, weights)
    kept = {name: np.asarray(x) for name, x in params.items() if name.startswith("image/") and not name.startswith("image/projection/")}
    left = sorted({name.split("/")[0] if name.startswith("heads") else "image/projection" for name in params.keys() - kept.keys()})
    notes += tuple(f"left out, for which ViTModel has no place: {name}" for name in left)
    made, contents = hugging_face.write(model)
    arrays = made.to_theirs(kept)
    target.mkdir(parents=True, exist_ok=True)
    files.write_safetensors(target / "model.safetensors", arrays, format="pt")
    for name, content in contents.items():
        files.write_json(target / name, content)
    usage = _USAGE.format(pooler=bool(model.image.representation_dim) if isinstance(model.image, vit.Config) else False)
    text = card.text(
        target.name, library="transformers", usage=usage, facts=facts, results=(), notes=notes, limits=_LIMITS, kind="image tower"
    )
    whole.write_text(target / "README.md", text)
    return sum(x.size for x in arrays.values()), notes


def _of_any(
    path: str, allow: Sequence[str], image_size: int | None, weights: str
) -> tuple[layout.Layout, dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """The layout of a tower alone, parameters of the image part and heads, facts for a card, and notes."""
    if imported.is_ours(Path(path)):
        source = imported.load(path, weights=weights)
        system: Any = source.config.system
        tower, seen = getattr(system, "image", None), imported.preprocessing_of(source.config)
        params = {name: x for name, x in tree.flatten(source.variables).items() if name.startswith("image/")}
        facts, notes = imported.facts_of(source), source.notes
    else:
        found = pretrained.load(imported.foreign(path) or path, allow=allow, image_size=image_size)
        tower, seen = getattr(found.layout, "image", None), found.layout.preprocessing
        params = {name: x for name, x in found.params.items() if name.startswith(("image/", "heads/"))}
        facts, notes = {"weights": found.source}, found.layout.notes
    if not isinstance(tower, vit.Config) or seen is None:
        raise InputError(f"source {path}: it has no ViT as image tower, and ViTModel of transformers is one")
    alone = dataclasses.replace(tower, projection_dim=0)
    return layout.Layout(family="image", image=alone, preprocessing=seen, table=()), params, facts, tuple(notes)


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
