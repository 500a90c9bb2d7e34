"""What the files of another codebase say of a model: its towers in our words, its preprocessing, and the table of its names."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from vlm_jax.errors import InputError
from vlm_jax.models import attentional, captioner, resnet, vit
from vlm_jax.models import text as text_towers
from vlm_jax.models.convert import mapping

TRAINING = ("loop", "remat", "init", "position_resize", "pad_id")
"""Fields of our towers that change nothing of what their weights compute."""
CONVOLUTIONAL = ("stem_channels", "stem_depth")
"""Fields of a ViT that mean nothing where its stem is one of patches."""
Family = Literal["clip", "siglip", "image", "coca"]
"""Two towers with a scale, two towers with scale and bias, an image tower alone, an image tower and a decoder with a scale."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From an image file to what the image tower sees."""

    size: int
    """Side in pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["shortest", "squash", "longest"] = "shortest"
    """Which side becomes `resize_to`, the shorter, both or the longer; the center is cropped, or padded, to `size`."""
    resize_to: int = 0
    """0: `size`."""
    fill: tuple[int, int, int] = (0, 0, 0)
    """Colour of the padding, 0 to 255."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A model in the layout of another codebase."""

    family: Family
    image: vit.Config | resnet.Config | attentional.Config
    text: text_towers.Config | captioner.Config | None = None
    preprocessing: Preprocessing
    table: mapping.Table
    """Their names and ours; ours begin with `image/`, `text/`, or are `log_scale` and `bias`."""
    ignore: str = r"(?!)"
    """Their names that are no parameters."""
    heads: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Classes of the linear heads that the weights have on top of the image tower, by name; arrays `heads/<name>/kernel` and `bias`."""
    notes: tuple[str, ...] = ()
    """What was decided where the files leave a choice."""

    def like(self) -> dict[str, Any]:
        """Shapes and dtypes of our parameters by path."""
        shapes = {f"image/{path}": x for path, x in parameters(self.image).items()}
        if self.text is not None:
            shapes |= {f"text/{path}": x for path, x in parameters(self.text).items()}
            shapes["log_scale"] = jax.ShapeDtypeStruct((), np.float32)
        for name, classes in self.heads.items():
            shapes[f"heads/{name}/kernel"] = jax.ShapeDtypeStruct((self.image.output_dim, classes), np.float32)
            shapes[f"heads/{name}/bias"] = jax.ShapeDtypeStruct((classes,), np.float32)
        if self.family == "siglip":
            shapes["bias"] = jax.ShapeDtypeStruct((), np.float32)
        return shapes

    def to_ours(self, theirs: Mapping[str, np.ndarray], *, allow: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Our parameters by path; raises as `mapping.to_ours`."""
        return mapping.to_ours(self.table, theirs, self.like(), allow=allow, ignore=self.ignore)

    def to_theirs(self, ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Their arrays by name; raises as `mapping.to_theirs`."""
        return mapping.to_theirs(self.table, ours)


def refuse_differences(model: Layout, made: Layout, name: str) -> None:
    """Raises InputError for the first field of the model that is lost when it is written and read again."""
    for part in ("image", "text", "preprocessing"):
        have, get = getattr(model, part), getattr(made, part)
        unused = CONVOLUTIONAL if getattr(have, "stem", None) == "patch" else ()
        for field in () if have is None else have.__dataclass_fields__:
            ours, theirs = getattr(have, field), getattr(get, field, None)
            same = ours == theirs or (field == "resize_to" and {ours, theirs} <= {0, model.preprocessing.size})
            if field not in (*TRAINING, *unused) and not same:
                raise InputError(f"{part}.{field} {ours!r}: {name} has no place for it, only for {theirs!r}")


def refuse_changes(have: Any, get: Any, name: str, prefix: str = "") -> None:
    """Raises InputError for the first field of a configuration, or of one within it, that is lost when it is written and read again."""
    unused = CONVOLUTIONAL if getattr(have, "stem", None) == "patch" else ()
    for field in dataclasses.fields(have):
        ours, theirs = getattr(have, field.name), getattr(get, field.name)
        if dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
            refuse_changes(ours, theirs, name, f"{prefix}{field.name}.")
        elif field.name not in (*TRAINING, *unused) and ours != theirs:
            raise InputError(f"{prefix}{field.name} {ours!r}: {name} has no place for it, only for {theirs!r}")


def border(image_size: int, patch_size: int) -> Literal["refuse", "leave_out"]:
    """What a convolution over patches does to pixels that make no whole one."""
    return "leave_out" if image_size % patch_size else "refuse"


def parameters(config: Any) -> dict[str, Any]:
    """Shapes and dtypes of what `config.build` makes, by path."""
    state = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0))))[1])
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


class Fields:
    """A JSON object of a configuration, with defaults; errors name the field."""

    def __init__(self, values: Any, name: str, defaults: Mapping[str, Any]):
        if not isinstance(values, dict):
            raise InputError(f"{name}: not a JSON object")
        self._given = {key: x for key, x in values.items() if x is not None}
        self._values, self.name = dict(defaults) | self._given, name

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raise InputError(f"{self.name}.{key} is missing")
        return self._values[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or another where the field is missing or null."""
        return self._values.get(key, default)

    def renamed(self, **aliases: str) -> "Fields":
        """With fields that have two names under the second one.

        Raises:
          InputError: both are given, and differ.
        """
        values = dict(self._values)
        for alias, name in aliases.items():
            if alias in values:
                value = values.pop(alias)
                if name in self._given and values[name] != value:
                    raise InputError(f"{self.name}.{alias} {value!r} and {name} {values[name]!r} are two names of one field: remove one")
                values[name] = value
        return Fields(values, self.name, {})

    def filled(self, **defaults: Any) -> "Fields":
        """With defaults for more fields."""
        return Fields(self._values, self.name, defaults)

    def integer(self, key: str) -> int:
        """A whole number above 0.

        Raises:
          InputError: it is something else, or missing.
        """
        value = self[key]
        if isinstance(value, (list, tuple)) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value < math.inf or value != int(value):
            raise InputError(f"{self.name}.{key} {value!r}: a whole number above 0 is needed")
        return int(value)

    def number(self, key: str) -> float:
        """A finite number above 0.

        Raises:
          InputError: it is something else, or missing.
        """
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise InputError(f"{self.name}.{key} {value!r}: a number above 0 is needed")
        return float(value)

    def values(self, key: str, length: int) -> list[Any]:
        """A list of so many values.

        Raises:
          InputError: it is something else.
        """
        if not isinstance(self[key], (list, tuple)) or len(self[key]) != length:
            raise InputError(f"{self.name}.{key} {self[key]!r}: a list of {length} is needed")
        return [*self[key]]

    def choice(self, key: str, choices: Mapping[str, str]) -> str:
        """What one of the known words stands for.

        Raises:
          InputError: it is another word.
        """
        value = self[key]
        if not isinstance(value, str) or value not in choices:
            raise InputError(f"{self.name}.{key} {value!r} is not supported; {', '.join(choices)} are")
        return choices[value]

    def require(self, **values: Any) -> None:
        """Fields that, where they are given, must have the one value that is supported.

        Raises:
          InputError: one has another.
        """
        for key, value in values.items():
            if self.get(key, value) != value:
                raise InputError(f"{self.name}.{key} {self[key]!r} is not supported, only {value!r}")

    def only(self, *known: str) -> None:
        """Raises InputError for a field that is not known: it may change what the weights mean."""
        unknown = sorted(self._values.keys() - set(known))
        if unknown:
            raise InputError(f"{self.name}.{unknown[0]} {self._values[unknown[0]]!r} is not known, and may change the model")


def triple(value: Any, name: str) -> tuple[float, float, float]:
    """Three numbers, one a color.

    Raises:
      InputError: it is something else.
    """
    if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(isinstance(x, (int, float)) for x in value):
        raise InputError(f"{name} {value!r}: three numbers are needed")
    red, green, blue = map(float, value)
    return red, green, blue
