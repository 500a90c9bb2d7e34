"""npz files of big_vision: a ViT with class token, mean or attention pooling, or two towers `img/`, `txt/`.

There is no configuration beside them; sizes follow from the shapes, the rest is what big_vision always has (GELU by its tanh
approximation, epsilon 1e-6, pixels in [-1, 1]). The spelling of the first releases (2021) and stacked layers are read too.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.errors import InputError
from vlm_jax.models import text, vit
from vlm_jax.models.convert import layout
from vlm_jax.models.convert.mapping import (
    ARRAY,
    FLAX_LINEAR,
    FLAX_NORM,
    FLAX_PATCHES,
    NUMBER,
    UNBATCHED,
    Leaf,
    Table,
    below,
    flax_heads,
    flax_out,
)

_OLD_NAMES = {"LayerNorm_2": "LayerNorm_1", "MlpBlock_3": "MlpBlock_0", "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0"}
_OLD_POSITIONS = "Transformer/posembed_input/pos_embedding"


def attention_table(num_heads: int) -> Table:
    """Flax's attention."""
    heads = flax_heads(num_heads)
    return (("query", "query", heads), ("key", "key", heads), ("value", "value", heads), ("out", "out", flax_out(num_heads)))


def block_table(num_heads: int) -> Table:
    """One layer of big_vision's encoder."""
    return (
        ("LayerNorm_0", "attention_norm", FLAX_NORM),
        *below(attention_table(num_heads), "MultiHeadDotProductAttention_0/", "attention/"),
        ("LayerNorm_1", "mlp_norm", FLAX_NORM),
        ("MlpBlock_0/Dense_0", "mlp/up", FLAX_LINEAR),
        ("MlpBlock_0/Dense_1", "mlp/down", FLAX_LINEAR),
    )


def image_table(config: vit.Config, positions: str = "pos_embedding") -> Table:
    """A ViT."""
    lines: list[Any] = [
        ("embedding", "patch_embed", FLAX_PATCHES),
        *below(block_table(config.num_heads), "Transformer/encoderblock_{}/", "blocks/"),
        ("Transformer/encoder_norm", "norm", FLAX_NORM),
    ]
    if config.positions == "learned":
        lines.append((positions, "positions", UNBATCHED))
    if config.class_token != "none":
        lines.append(("cls", "class_token", UNBATCHED))
    if config.pool == "map":
        lines += [
            ("MAPHead_0/probe", "head/probe", UNBATCHED),
            *below(attention_table(config.num_heads), "MAPHead_0/MultiHeadDotProductAttention_0/", "head/attention/"),
            ("MAPHead_0/LayerNorm_0", "head/norm", FLAX_NORM),
            ("MAPHead_0/MlpBlock_0/Dense_0", "head/mlp/up", FLAX_LINEAR),
            ("MAPHead_0/MlpBlock_0/Dense_1", "head/mlp/down", FLAX_LINEAR),
        ]
    if config.representation_dim:
        lines.append(("pre_logits", "representation", FLAX_LINEAR))
    return lines


def text_table(config: text.Config) -> Table:
    """SigLIP's text tower."""
    return (
        ("Embed_0", "token_embed", (Leaf("/embedding", ("/embedding",)),)),
        ("pos_embedding", "positions", UNBATCHED),
        *below(block_table(config.num_heads), "Encoder_0/encoderblock_{}/", "blocks/"),
        ("Encoder_0/encoder_norm", "norm", FLAX_NORM),
        ("head", "projection", FLAX_LINEAR),
    )


def unify(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters under the names of today, a layer at a time: without the state of an optimizer, stacked layers apart."""
    if any(name.startswith("params/") for name in weights):
        weights = {name.removeprefix("params/"): x for name, x in weights.items() if name.startswith("params/")}
    unified: dict[str, np.ndarray] = {}
    for name, x in weights.items():
        name = "/".join(_OLD_NAMES.get(part, part) if "encoderblock" in name else part for part in name.split("/"))
        if re.search(r"/encoderblock/", name):
            unified |= {name.replace("/encoderblock/", f"/encoderblock_{i}/"): layer for i, layer in enumerate(x)}
        else:
            unified[name] = x
    return unified


def read(weights: Mapping[str, np.ndarray], image_size: int | None = None, assumed_size: int | None = None) -> layout.Layout:
    """The layout of unified weights.

    Args:
      image_size: in pixels; needed where there is no table of positions to tell.
      assumed_size: taken where neither tells.

    Raises:
      InputError: they are not big_vision's, or `image_size` is needed or contradicts them.
    """
    two = any(name.startswith("img/") for name in weights)
    part = {name.removeprefix("img/"): x for name, x in weights.items() if not two or name.startswith("img/")}
    notes = ["big_vision's activation (tanh GELU), epsilon (1e-6) and pixels in [-1, 1] are taken; the file does not say"]
    if "embedding/kernel" not in part or "Transformer/encoder_norm/scale" not in part:
        raise InputError("weights: not big_vision's, which have embedding/kernel and Transformer/encoder_norm/scale")
    if "MAPHead_0/probe" in part:
        pool = "map"
    else:
        pool = "cls" if "cls" in part else "gap"
    old = _OLD_POSITIONS in part
    positions = part.get(_OLD_POSITIONS if old else "pos_embedding")
    patch = part["embedding/kernel"].shape[0]
    if positions is not None:
        count = positions.shape[1] - (1 if old and "cls" in part else 0)
        side = math.isqrt(count)
        if side**2 != count:
            raise InputError(f"weights: {count} positions are not those of a square grid")
        if image_size not in (None, side * patch):
            raise InputError(f"image_size {image_size}: the weights have positions for {side * patch} pixels")
        image_size = side * patch
    image_size = image_size or assumed_size
    if image_size is None:
        raise InputError("image_size: the weights have no table of positions that would tell; give --image-size")
    image = vit.Config(
        image_size=image_size,
        patch_size=patch,
        **_sizes(part, "Transformer/"),
        pool=pool,
        class_token="none" if "cls" not in part else "positioned" if old else "unpositioned",
        positions="sincos2d" if positions is None else "learned",
        position_resize="bilinear",
        representation_dim=part["pre_logits/bias"].size if "pre_logits/bias" in part else 0,
    )
    seen = layout.Preprocessing(
        size=image_size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="squash", interpolation="bilinear"
    )
    table = below(image_table(image, _OLD_POSITIONS if old else "pos_embedding"), "img/" if two else "", "image/")
    if not two:
        heads = {"head": part["head/bias"].size} if "head/bias" in part else {}
        table += [("head", "heads/head", FLAX_LINEAR)] if heads else []
        return layout.Layout(family="image", image=image, preprocessing=seen, table=table, heads=heads, notes=tuple(notes))
    words = {name.removeprefix("txt/"): x for name, x in weights.items() if name.startswith("txt/")}
    if "Embed_0/embedding" not in words or "pos_embedding" not in words or "head/bias" not in words:
        raise InputError("weights: txt/ is not SigLIP's text tower, which has Embed_0, pos_embedding and head")
    tower = text.Config(
        vocab_size=words["Embed_0/embedding"].shape[0],
        length=words["pos_embedding"].shape[1],
        **_sizes(words, "Encoder_0/"),
        pool="last",
        projection_dim=words["head/bias"].size,
        projection_bias="learned",
    )
    biased = "b" in weights
    lines = [*table, *below(text_table(tower), "txt/", "text/"), ("t", "log_scale", _number(weights, "t"))]
    if biased:
        lines.append(("b", "bias", _number(weights, "b")))
    family: layout.Family = "siglip" if biased else "clip"
    return layout.Layout(family=family, image=image, text=tower, preprocessing=seen, table=lines, notes=tuple(notes))


def _number(weights: Mapping[str, np.ndarray], name: str) -> Any:
    """big_vision writes [1]; older files a scalar."""
    return NUMBER if name in weights and weights[name].shape == (1,) else ARRAY


def _sizes(weights: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    block = re.compile(re.escape(prefix) + r"encoderblock_(\d+)/")
    numbers = {int(found[1]) for name in weights if (found := block.match(name))}
    first = f"{prefix}encoderblock_0/"
    try:
        width, heads, _ = weights[f"{first}MultiHeadDotProductAttention_0/query/kernel"].shape
        mlp_dim = weights[f"{first}MlpBlock_0/Dense_0/kernel"].shape[1]
    except (KeyError, ValueError):
        raise InputError(f"weights: {first} is not a layer of big_vision's encoder") from None
    return {"width": width, "depth": max(numbers) + 1, "mlp_dim": mlp_dim, "num_heads": heads}
