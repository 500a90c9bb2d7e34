"""Pretrained weights from a file or directory, whatever codebase wrote it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vlm_jax.errors import InputError
from vlm_jax.models.convert import big_vision, decoders, files, hugging_face, idefics, layout, open_clip


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model of another codebase in our words."""

    layout: layout.Layout | idefics.Layout | decoders.Layout
    params: dict[str, np.ndarray]
    """By our paths: `image/...`, `text/...`, `log_scale`, `bias`, `heads/...`; of Idefics those of `models.flamingo`, of a language model
    `lm/...`. Numpy arrays, in the dtypes of our parameters."""
    source: str
    """The file that was read."""
    dtypes: tuple[str, ...]
    """That the file had."""
    missing: tuple[str, ...]
    """Paths that were allowed to be missing; not in `params`."""


def load(
    path: str | Path, *, allow: Sequence[str] = (), image_size: int | None = None, assumed_size: int | None = None
) -> Pretrained:
    """Reads weights, checks them against the configuration beside them, and gives them our names.

    A directory with open_clip_config.json is open_clip's, with config.json Hugging Face's; an npz is big_vision's.

    Args:
      allow: regular expressions of whole names of theirs that may be unknown, missing or of a wider dtype.
      image_size: in pixels, for weights that do not tell; where they do, it must be theirs.
      assumed_size: in pixels, where neither tells; otherwise it is not looked at.

    Raises:
      InputError: nothing readable is there, or configuration and weights disagree; the message names the array or field.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"source {path}: no such file or directory")
    file = files.locate(path)
    weights = files.read(file)
    try:
        if file.suffix == ".npz":
            weights = big_vision.unify(weights)
            found = big_vision.read(weights, image_size, assumed_size)
        elif (file.parent / open_clip.NAME).is_file():
            found = open_clip.read(file.parent, weights)
        elif (file.parent / "config.json").is_file():
            weights = hugging_face.fold(weights)
            found = _transformers(file.parent, weights)
        else:
            raise InputError(
                f"no {open_clip.NAME} or config.json beside it; the weights do not tell heads, activation and preprocessing"
            )
        prefix = "lm/" if isinstance(found, decoders.Layout) else ""
        params = {prefix + name: x for name, x in found.to_ours(weights, allow=allow).items()}
    except InputError as error:
        raise InputError(f"source {file}: {error}") from None
    return Pretrained(
        layout=found,
        params=params,
        source=str(file),
        dtypes=tuple(sorted({str(x.dtype) for x in weights.values()})),
        missing=tuple(sorted({prefix + name for name in found.like()} - params.keys())),
    )


def _transformers(folder: Path, weights: Mapping[str, np.ndarray]) -> layout.Layout | idefics.Layout | decoders.Layout:
    """The layout that a directory of transformers describes."""
    kind = files.model_type(folder)
    if kind in decoders.FAMILIES:
        return decoders.parse(files.read_json(folder / "config.json", "configuration"), weights)
    return idefics.read(folder) if kind == "idefics" else hugging_face.read(folder, weights)
