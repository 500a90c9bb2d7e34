"""Directories of Hugging Face transformers: CLIPModel, SiglipModel, Siglip2Model at its own grid, ViTModel, DeiTModel, with classifiers.

`read` takes config.json and preprocessor_config.json, `write` makes them; both use the same tables. Names on disk are those of
transformers 4, which version 5 still writes; the names that version 5 has in memory are read too.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax.errors import InputError
from vlm_jax.models import text, vit
from vlm_jax.models.convert import files, layout
from vlm_jax.models.convert.mapping import (
    ARRAY,
    EMBEDDING,
    FUSED,
    LINEAR,
    LINEAR_WITHOUT_BIAS,
    NORM,
    NUMBER,
    PATCHES,
    PATCHES_WITHOUT_BIAS,
    TABLE,
    TOKEN,
    UNBATCHED,
    WITHOUT_SECOND,
    Table,
    below,
)

ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "relu": "relu",
}
_IGNORE = r".*embeddings\.position_ids"
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
RESAMPLE = {name: number for number, name in _RESAMPLE.items()}
"""Of preprocessor_config.json, by our words."""
_HEADS = ("classifier", "cls_classifier", "distillation_classifier")
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip text": {
        "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
        "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": 49407,
    },
    "clip vision": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224,
        "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
    "siglip text": {
        "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    },
    "siglip vision": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224,
        "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_patches": 256,
    },
    "vit": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224,
        "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    },
}  # fmt: skip
"""What transformers takes for a field that config.json leaves out."""

_BLOCK: Table = (
    ("layer_norm1", "attention_norm", NORM),
    ("self_attn.q_proj", "attention/query", LINEAR),
    ("self_attn.k_proj", "attention/key", LINEAR),
    ("self_attn.v_proj", "attention/value", LINEAR),
    ("self_attn.out_proj", "attention/out", LINEAR),
    ("layer_norm2", "mlp_norm", NORM),
    ("mlp.fc1", "mlp/up", LINEAR),
    ("mlp.fc2", "mlp/down", LINEAR),
)
_TEXT: Table = (
    ("text_model.embeddings.token_embedding", "text/token_embed", EMBEDDING),
    ("text_model.embeddings.position_embedding", "text/positions", TABLE),
    *below(_BLOCK, "text_model.encoder.layers.{}.", "text/blocks/"),
    ("text_model.final_layer_norm", "text/norm", NORM),
)
CLIP: Table = (
    ("vision_model.embeddings.class_embedding", "image/class_token", TOKEN),
    ("vision_model.embeddings.patch_embedding", "image/patch_embed", PATCHES_WITHOUT_BIAS),
    ("vision_model.embeddings.position_embedding", "image/positions", TABLE),
    ("vision_model.pre_layrnorm", "image/pre_norm", NORM),
    *below(_BLOCK, "vision_model.encoder.layers.{}.", "image/blocks/"),
    ("vision_model.post_layernorm", "image/norm", NORM),
    ("visual_projection", "image/projection", LINEAR_WITHOUT_BIAS),
    *_TEXT,
    ("text_projection", "text/projection", LINEAR_WITHOUT_BIAS),
    ("logit_scale", "log_scale", ARRAY),
)
_SIGLIP: Table = (
    ("vision_model.embeddings.position_embedding", "image/positions", TABLE),
    *below(_BLOCK, "vision_model.encoder.layers.{}.", "image/blocks/"),
    ("vision_model.post_layernorm", "image/norm", NORM),
    ("vision_model.head.probe", "image/head/probe", UNBATCHED),
    ("vision_model.head.attention.", "image/head/attention", FUSED),
    ("vision_model.head.attention.out_proj", "image/head/attention/out", LINEAR),
    ("vision_model.head.layernorm", "image/head/norm", NORM),
    ("vision_model.head.mlp.fc1", "image/head/mlp/up", LINEAR),
    ("vision_model.head.mlp.fc2", "image/head/mlp/down", LINEAR),
    *_TEXT,
    ("text_model.head", "text/projection", LINEAR),
    ("logit_scale", "log_scale", NUMBER),
    ("logit_bias", "bias", NUMBER),
)
SIGLIP: Table = (("vision_model.embeddings.patch_embedding", "image/patch_embed", PATCHES), *_SIGLIP)
SIGLIP2: Table = (("vision_model.embeddings.patch_embedding", "image/patch_embed", LINEAR), *_SIGLIP)
_VIT_BLOCK: Table = (
    ("layernorm_before", "attention_norm", NORM),
    ("attention.attention.query", "attention/query", LINEAR),
    ("attention.attention.key", "attention/key", LINEAR),
    ("attention.attention.value", "attention/value", LINEAR),
    ("attention.output.dense", "attention/out", LINEAR),
    ("layernorm_after", "mlp_norm", NORM),
    ("intermediate.dense", "mlp/up", LINEAR),
    ("output.dense", "mlp/down", LINEAR),
)
_VIT_BLOCK_IN_MEMORY: Table = (
    ("layernorm_before", "attention_norm", NORM),
    ("attention.q_proj", "attention/query", LINEAR),
    ("attention.k_proj", "attention/key", LINEAR),
    ("attention.v_proj", "attention/value", LINEAR),
    ("attention.o_proj", "attention/out", LINEAR),
    ("layernorm_after", "mlp_norm", NORM),
    ("mlp.fc1", "mlp/up", LINEAR),
    ("mlp.fc2", "mlp/down", LINEAR),
)


def vit_table(*, blocks: str, pooler: str, tokens: int = 1, heads: Iterable[str] = (), prefix: str = "") -> Table:
    """ViTModel and DeiTModel, with what stands on top.

    Args:
      blocks: the names of transformers "4", or those "5" has in memory.
      pooler: "tanh" or "none".
      tokens: 1, or 2 with DeiT's distillation token, which is a register of ours.
      heads: names of linear classifiers; the prefix does not stand before them.
    """
    layers = (_VIT_BLOCK, "encoder.layer.{}.") if blocks == "4" else (_VIT_BLOCK_IN_MEMORY, "layers.{}.")
    trunk: Table = (
        ("embeddings.cls_token", "image/class_token", UNBATCHED),
        *([("embeddings.distillation_token", "image/registers", UNBATCHED)] if tokens == 2 else []),
        ("embeddings.position_embeddings", "image/positions", UNBATCHED if tokens == 1 else WITHOUT_SECOND),
        ("embeddings.patch_embeddings.projection", "image/patch_embed", PATCHES),
        *below(layers[0], layers[1], "image/blocks/"),
        ("layernorm", "image/norm", NORM),
        *([("pooler.dense", "image/representation", LINEAR)] if pooler == "tanh" else []),
    )
    return (*below(trunk, prefix, ""), *((name, f"heads/{name}", LINEAR) for name in heads))


def fold(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """DeiT's weights with the position of the distillation token added to the token: the same model, with registers as ours have them."""
    folded = dict(weights)
    for token in [name for name in weights if name.endswith("embeddings.distillation_token")]:
        positions = token.replace("distillation_token", "position_embeddings")
        if positions in weights and weights[positions].ndim == 3 and weights[positions].shape[1] > 2:
            moved = np.array(weights[positions])
            folded[token] = weights[token] + moved[:, 1:2]
            moved[:, 1] = 0
            folded[positions] = moved
    return folded


def read(folder: Path, names: Mapping[str, Any]) -> layout.Layout:
    """The layout that config.json of a directory describes.

    Args:
      names: the arrays of its weights, or anything with their shapes; decides between spellings, and which parts there are.

    Raises:
      InputError: no or another kind of configuration.
    """
    config = files.read_json(folder / "config.json", "configuration")
    file = folder / "preprocessor_config.json"
    return parse(config, files.read_json(file, "preprocessing") if file.is_file() else None, names)


def parse(config: Any, preprocessor: Any, names: Mapping[str, Any]) -> layout.Layout:
    """As `read`, of the content of the files; `preprocessor` may be None.

    Raises:
      InputError: as `read`.
    """
    readers = {"clip": _read_clip, "siglip": _read_siglip, "siglip2": _read_siglip, "vit": _read_vit, "deit": _read_vit}
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in readers:
        raise InputError(f"config.json: model_type {kind!r} is not supported; {', '.join(readers)} are")
    return readers[kind](config, preprocessor, names)


def _read_clip(config: dict, preprocessor: Any, names: Mapping[str, Any]) -> layout.Layout:
    theirs = layout.Fields(config, "config.json", {"projection_dim": 512, "text_config": {}, "vision_config": {}})
    vision = layout.Fields(theirs["vision_config"], "vision_config", _DEFAULTS["clip vision"])
    words = layout.Fields(theirs["text_config"], "text_config", _DEFAULTS["clip text"])
    end = words.integer("eos_token_id")
    notes = ["the text is taken at its largest id (eos_token_id 2 is transformers' sign for that)"] if end == 2 else []
    dim = theirs.integer("projection_dim")
    return layout.Layout(
        family="clip",
        image=vit.Config(
            **_vision(vision),
            pool="cls",
            class_token="positioned",
            patch_bias="none",
            pre_norm="layer_norm",
            projection_dim=dim,
        ),
        text=text.Config(
            **_text(words),
            attention="causal",
            pool="argmax" if end == 2 else "eos",
            eos_id=None if end == 2 else end,
            projection_dim=dim,
        ),
        preprocessing=preprocessing(preprocessor, vision.integer("image_size"), CLIP_MEAN, CLIP_STD, notes),
        table=CLIP,
        ignore=_IGNORE,
        notes=tuple(notes),
    )


def _read_siglip(config: dict, preprocessor: Any, names: Mapping[str, Any]) -> layout.Layout:
    theirs = layout.Fields(config, "config.json", {"text_config": {}, "vision_config": {}})
    vision = layout.Fields(theirs["vision_config"], "vision_config", _DEFAULTS["siglip vision"])
    vision.require(vision_use_head=True)
    words = layout.Fields(theirs["text_config"], "text_config", _DEFAULTS["siglip text"])
    notes, fields, table = [], _vision(vision, patches="image" if config["model_type"] == "siglip" else "number"), SIGLIP
    if config["model_type"] == "siglip2":
        table = SIGLIP2
        fields["position_resize"] = "bilinear"
        notes.append(f"images are {fields['image_size']} pixels square, the grid that the positions are kept in")
    return layout.Layout(
        family="siglip",
        image=vit.Config(**fields, pool="map"),
        text=text.Config(
            **_text(words),
            pool="last",
            projection_dim=int(words.get("projection_size") or words.integer("hidden_size")),
            projection_bias="learned",
        ),
        preprocessing=preprocessing(preprocessor, fields["image_size"], (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), notes),
        table=table,
        ignore=_IGNORE,
        notes=tuple(notes),
    )


def _read_vit(config: dict, preprocessor: Any, names: Mapping[str, Any]) -> layout.Layout:
    theirs = layout.Fields(config, "config.json", _DEFAULTS["vit"])
    theirs.require(qkv_bias=True)
    kind = config["model_type"]
    notes: list[str] = []
    fields = _vision(theirs)
    prefix = f"{kind}." if any(name.startswith(f"{kind}.") for name in names) else ""
    pooler, dim = "none", 0
    if f"{prefix}pooler.dense.weight" in names:
        theirs.require(pooler_act="tanh")
        pooler, dim = "tanh", int(theirs.get("pooler_output_size") or fields["width"])
        notes.append("the tanh layer of the pooler is kept; classifiers that were fine-tuned do not use it")
    if kind == "deit":
        notes.append("the distillation token is a register, with its position added to it")
    found = [name for name in _HEADS if f"{name}.weight" in names]
    imagenet = _IMAGENET if kind == "deit" else ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return layout.Layout(
        family="image",
        image=vit.Config(
            **fields, pool="cls", class_token="positioned", registers=1 if kind == "deit" else 0, representation_dim=dim
        ),
        preprocessing=preprocessing(preprocessor, fields["image_size"], *imagenet, notes),
        table=vit_table(
            blocks="5" if any(name.startswith(f"{prefix}layers.") for name in names) else "4",
            pooler=pooler,
            tokens=2 if kind == "deit" else 1,
            heads=found,
            prefix=prefix,
        ),
        heads={name: names[f"{name}.weight"].shape[0] for name in found},
        notes=tuple(notes),
    )


def _tower(fields: layout.Fields) -> dict[str, Any]:
    return {
        "width": fields.integer("hidden_size"),
        "depth": fields.integer("num_hidden_layers"),
        "mlp_dim": fields.integer("intermediate_size"),
        "num_heads": fields.integer("num_attention_heads"),
        "activation": fields.choice("hidden_act", ACTIVATIONS),
        "norm_epsilon": fields.number("layer_norm_eps"),
    }


def _vision(fields: layout.Fields, patches: str = "image") -> dict[str, Any]:
    fields.require(num_channels=3)
    patch = fields.integer("patch_size")
    if patches == "number":
        side = math.isqrt(fields.integer("num_patches"))
        if side**2 != fields.integer("num_patches"):
            raise InputError(f"{fields.name}.num_patches {fields['num_patches']}: not a square")
        size = side * patch
    else:
        size = fields.integer("image_size")
    return _tower(fields) | {"image_size": size, "patch_size": patch, "border": layout.border(size, patch)}


def _text(fields: layout.Fields) -> dict[str, Any]:
    return _tower(fields) | {
        "vocab_size": fields.integer("vocab_size"),
        "length": fields.integer("max_position_embeddings"),
    }


def preprocessing(
    theirs: Any,
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    notes: list[str],
) -> layout.Preprocessing:
    """What preprocessor_config.json says; without one what the model was published with."""
    if theirs is None:
        notes.append(f"no preprocessor_config.json: mean {mean}, std {std} and a bicubic resize are assumed")
        return layout.Preprocessing(size=size, mean=mean, std=std, resize="squash" if mean == (0.5, 0.5, 0.5) else "shortest")
    fields = layout.Fields(theirs, "preprocessor_config.json", {"image_mean": mean, "image_std": std, "resample": 3})
    fields.require(do_resize=True, do_rescale=True, do_normalize=True)
    if fields["resample"] not in _RESAMPLE:
        raise InputError(f"preprocessor_config.json: resample {fields['resample']} is not supported; 2 (bilinear) and 3 (bicubic) are")
    side, resize = _side(fields.get("size", size), "shortest" if fields.get("do_center_crop", False) else "squash")
    crop = _side(fields.get("crop_size", side), "squash")[0] if fields.get("do_center_crop", False) else side
    if crop != size:
        raise InputError(f"preprocessor_config.json: images of {crop} pixels, and image_size {size} in config.json: make them the same")
    if resize == "shortest" and not fields.get("do_center_crop", False):
        raise InputError("preprocessor_config.json: shortest_edge without do_center_crop gives images that are not square")
    return layout.Preprocessing(
        size=size,
        mean=layout.triple(fields["image_mean"], "image_mean"),
        std=layout.triple(fields["image_std"], "image_std"),
        resize=resize,
        resize_to=0 if side == crop else side,
        interpolation=_RESAMPLE[fields["resample"]],  # pyright: ignore[reportArgumentType]
    )


def _side(value: Any, number: Any) -> tuple[int, Any]:
    """The side, and which sides get it: transformers writes a shortest edge, height and width, or once wrote a number."""
    if isinstance(value, int):
        return value, number
    if isinstance(value, dict) and "shortest_edge" in value:
        return int(value["shortest_edge"]), "shortest"
    if isinstance(value, dict) and "height" in value and value["height"] == value.get("width"):
        return int(value["height"]), "squash"
    raise InputError(f"preprocessor_config.json: size {value!r} is not supported: one side, shortest_edge, or equal height and width")


def write(model: layout.Layout) -> tuple[layout.Layout, Mapping[str, Any]]:
    """The layout with the table of transformers, and the content of config.json and preprocessor_config.json by file name.

    Raises:
      InputError: transformers has no class for this model; the field is named.
    """
    if not isinstance(model.image, vit.Config):
        raise InputError("image: transformers has no class for CLIP's modified ResNets; export to open_clip")
    makers = {"clip": _clip_json, "siglip": _siglip_json, "image": _vit_json}
    config = makers[model.family](model)
    contents = {"config.json": config, "preprocessor_config.json": _preprocessor_json(model)}
    names = {"pooler.dense.weight": None} if model.image.representation_dim else {}
    made = parse(config, contents["preprocessor_config.json"], names)
    layout.refuse_differences(model, made, config["architectures"][0])
    return made, contents


def activation_name(activation: str, field: str) -> str:
    """What transformers calls an activation of ours.

    Raises:
      InputError: it has none such.
    """
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if activation not in names:
        raise InputError(f"{field} {activation!r}: transformers has no name for it; it has {', '.join(sorted(names))}")
    return names[activation]


def _tower_json(config: vit.Config | text.Config) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "intermediate_size": config.mlp_dim,
        "num_attention_heads": config.num_heads,
        "hidden_act": activation_name(config.activation, "activation"),
        "layer_norm_eps": config.norm_epsilon,
    }


def _image_json(config: Any) -> dict[str, Any]:
    return _tower_json(config) | {"image_size": config.image_size, "patch_size": config.patch_size, "num_channels": 3}


def _text_json(config: text.Config) -> dict[str, Any]:
    return _tower_json(config) | {"vocab_size": config.vocab_size, "max_position_embeddings": config.length}


def _clip_json(model: layout.Layout) -> dict[str, Any]:
    assert isinstance(model.text, text.Config)
    end = 2 if model.text.pool == "argmax" else model.text.eos_id
    dim = model.image.projection_dim
    begin = {"bos_token_id": 0 if end == 2 else max((end or 1) - 1, 0), "eos_token_id": end, "pad_token_id": 1}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": dim,
        "text_config": {"model_type": "clip_text_model", **_text_json(model.text), "projection_dim": dim, **begin},
        "vision_config": {"model_type": "clip_vision_model", **_image_json(model.image), "projection_dim": dim},
    }


def _siglip_json(model: layout.Layout) -> dict[str, Any]:
    assert isinstance(model.text, text.Config)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}  # the model uses none; the defaults exceed small vocabularies
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {
            "model_type": "siglip_text_model",
            **_text_json(model.text),
            "projection_size": model.text.projection_dim,
            **ids,
        },
        "vision_config": {"model_type": "siglip_vision_model", **_image_json(model.image)},
    }


def _vit_json(model: layout.Layout) -> dict[str, Any]:
    assert isinstance(model.image, vit.Config)
    dim = model.image.representation_dim
    pooler = {"pooler_output_size": dim, "pooler_act": "tanh"} if dim else {}
    return {"architectures": ["ViTModel"], "model_type": "vit", "qkv_bias": True, **_image_json(model.image), **pooler}


def _preprocessor_json(model: layout.Layout) -> dict[str, Any]:
    seen = model.preprocessing
    kind = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor", "image": "ViTImageProcessor"}[model.family]
    if model.family == "image" and seen.resize == "shortest":
        kind = "CLIPImageProcessor"  # that of ViT squashes
    if seen.resize == "longest":
        raise InputError(f"preprocessing.resize longest: {kind} does not pad; export it to open_clip")
    if seen.resize == "squash" and seen.resize_to not in (0, seen.size):
        raise InputError(f"preprocessing.resize_to {seen.resize_to}: {kind} does not crop after a squash")
    side = seen.resize_to or seen.size
    shortest = seen.resize == "shortest"
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"shortest_edge": side} if shortest else {"height": side, "width": side},
        **({"do_center_crop": True, "crop_size": {"height": seen.size, "width": seen.size}} if shortest else {}),
        "resample": RESAMPLE[seen.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(seen.mean),
        "image_std": list(seen.std),
    }
