"""Directories of open_clip, and OpenAI's CLIP in its names: ViT towers, exact or quick GELU, custom_text, modified ResNets, SigLIP with
timm's trunk, CoCa.

`read` takes open_clip_config.json, `write` makes it; both use the same tables. Whether GELU is quick stands nowhere in the weights:
OpenAI's own are, most others are not, and the configuration must say so (`quick_gelu`).
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlm_jax.errors import InputError
from vlm_jax.models import attentional, captioner, resnet, text, vit
from vlm_jax.models.convert import files, layout, open_clip_coca, open_clip_resnet
from vlm_jax.models.convert.mapping import (
    ARRAY,
    EMBEDDING,
    FUSED,
    KERNEL,
    KV,
    LINEAR,
    NORM,
    PATCHES,
    PATCHES_WITHOUT_BIAS,
    QKV,
    TOKEN,
    UNBATCHED,
    Table,
    below,
)

NAME = "open_clip_config.json"
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IGNORE = rf"(text\.)?attn_mask|input_resolution|context_length|vocab_size|{open_clip_resnet.COUNTERS}"
"""Buffers and, in OpenAI's archives, three numbers."""
_TIMM_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "so400m": 16, "giantopt": 16}
_TIMM = re.compile(r"vit_(?P<size>[a-z0-9]+)_patch(?P<patch>\d+)_siglip_(?P<image>\d+)")
_TIMM_SIZES: dict[str, dict[str, int]] = {
    "base": {"width": 768, "depth": 12, "mlp_dim": 3072},
    "large": {"width": 1024, "depth": 24, "mlp_dim": 4096},
    "so400m": {"width": 1152, "depth": 27, "mlp_dim": 4304},
    "giantopt": {"width": 1536, "depth": 40, "mlp_dim": 6144},
}
_TIMM_TANH = re.compile(r"vit_(base_patch32|so400m_patch16|giantopt_patch16)_siglip_.*")
"""Trunks that timm builds with the tanh approximation of GELU; it builds the others with the exact one."""

_BLOCK: Table = (
    ("ln_1", "attention_norm", NORM),
    ("attn.", "attention", FUSED),
    ("attn.out_proj", "attention/out", LINEAR),
    ("ln_2", "mlp_norm", NORM),
    ("mlp.c_fc", "mlp/up", LINEAR),
    ("mlp.c_proj", "mlp/down", LINEAR),
)
_TIMM_BLOCK: Table = (
    ("norm1", "attention_norm", NORM),
    ("attn.qkv", "attention", QKV),
    ("attn.proj", "attention/out", LINEAR),
    ("norm2", "mlp_norm", NORM),
    ("mlp.fc1", "mlp/up", LINEAR),
    ("mlp.fc2", "mlp/down", LINEAR),
)
_IMAGE: Table = (
    ("class_embedding", "class_token", TOKEN),
    ("positional_embedding", "positions", ARRAY),
    ("proj", "projection", KERNEL),
    ("conv1", "patch_embed", PATCHES_WITHOUT_BIAS),
    ("ln_pre", "pre_norm", NORM),
    *below(_BLOCK, "transformer.resblocks.{}.", "blocks/"),
    ("ln_post", "norm", NORM),
)
_TRUNK: Table = (
    ("pos_embed", "positions", UNBATCHED),
    ("patch_embed.proj", "patch_embed", PATCHES),
    *below(_TIMM_BLOCK, "blocks.{}.", "blocks/"),
    ("norm", "norm", NORM),
    ("attn_pool.latent", "head/probe", UNBATCHED),
    ("attn_pool.q", "head/attention/query", LINEAR),
    ("attn_pool.kv", "head/attention", KV),
    ("attn_pool.proj", "head/attention/out", LINEAR),
    ("attn_pool.norm", "head/norm", NORM),
    ("attn_pool.mlp.fc1", "head/mlp/up", LINEAR),
    ("attn_pool.mlp.fc2", "head/mlp/down", LINEAR),
)
_TEXT: Table = (
    ("positional_embedding", "positions", ARRAY),
    ("token_embedding", "token_embed", EMBEDDING),
    *below(_BLOCK, "transformer.resblocks.{}.", "blocks/"),
    ("ln_final", "norm", NORM),
)


def table(*, image: Table, image_prefix: str, text_prefix: str, text_projection: str, family: str) -> Table:
    """Both towers. `text_prefix`: "" or "text."; `text_projection`: "matrix" or "linear"; `family`: "clip" or "siglip"."""
    return (
        *below(image, image_prefix, "image/"),
        *below(_TEXT, text_prefix, "text/"),
        (f"{text_prefix}text_projection", "text/projection", KERNEL if text_projection == "matrix" else LINEAR),
        ("logit_scale", "log_scale", ARRAY),
        *([("logit_bias", "bias", ARRAY)] if family == "siglip" else []),
    )


def read(folder: Path, names: Iterable[str]) -> layout.Layout:
    """The layout that open_clip_config.json of a directory describes.

    Args:
      names: of the arrays of its weights; decides only between spellings of the same model.

    Raises:
      InputError: no configuration, or one with a field that is not known or not supported.
    """
    return parse(files.read_json(folder / NAME, "configuration"), names)


def parse(config: Any, names: Iterable[str]) -> layout.Layout:
    """As `read`, of the content of the file."""
    whole = layout.Fields(config, NAME, {"preprocess_cfg": {}})
    model = layout.Fields(
        whole["model_cfg"], "model_cfg", {"quick_gelu": False, "custom_text": False, "init_logit_bias": None}
    )
    if model.get("multimodal_cfg"):
        return _parse_coca(whole, model)
    model.only("embed_dim", "quick_gelu", "custom_text", "init_logit_bias", "init_logit_scale", "vision_cfg", "text_cfg")
    biased = model.get("init_logit_bias") is not None or "logit_bias" in names
    family: layout.Family = "siglip" if biased else "clip"
    dim, notes = model.integer("embed_dim"), [f"GELU of {NAME}: {'quick' if model['quick_gelu'] else 'not quick'}"]
    vision = layout.Fields(model["vision_cfg"], "vision_cfg", {})
    timm = vision.get("timm_model_name")
    activation = "quick_gelu" if model["quick_gelu"] else "gelu"
    if timm:
        image = _read_trunk(vision, dim, notes)
        activation = "gelu"
    elif isinstance(vision.get("layers"), list):
        image = open_clip_resnet.read(vision, dim)
    else:
        image = _read_image(vision, dim, activation)
    # Both spellings load in open_clip: the flat one is converted to custom_text, and only that has `text.`.
    prefix = "text." if any(name.startswith("text.") for name in names) or (model["custom_text"] and not names) else ""
    words = layout.Fields(model["text_cfg"], "text_cfg", {})
    return layout.Layout(
        family=family,
        image=image,
        text=_read_text(words, dim, activation),
        preprocessing=_preprocessing(whole["preprocess_cfg"], image.image_size, "siglip" if timm else "clip", notes),
        table=table(
            image=open_clip_resnet.table(image) if isinstance(image, resnet.Config) else _TRUNK if timm else _IMAGE,
            image_prefix="visual.trunk." if timm else "visual.",
            text_prefix=prefix,
            text_projection="linear" if words.get("proj_bias") else "matrix",
            family=family,
        ),
        ignore=_IGNORE,
        notes=tuple(notes),
    )


def _parse_coca(whole: layout.Fields, model: layout.Fields) -> layout.Layout:
    model.only("embed_dim", "quick_gelu", "custom_text", "vision_cfg", "text_cfg", "multimodal_cfg", "correct_cls_mask", "init_logit_bias")
    model.require(init_logit_bias=None)
    dim, activation = model.integer("embed_dim"), "quick_gelu" if model["quick_gelu"] else "gelu"
    notes = [f"GELU of {NAME}: {'quick' if model['quick_gelu'] else 'not quick'}"]
    vision = layout.Fields(open_clip_coca.without(model["vision_cfg"], open_clip_coca.VISION), "vision_cfg", {})
    words = layout.Fields(open_clip_coca.without(model["text_cfg"], open_clip_coca.TEXT), "text_cfg", {})
    image, decoder = open_clip_coca.towers(model, _read_image(vision, dim, activation), _read_text(words, dim, activation))
    if decoder.class_mask == "legacy":
        notes.append("the class token of a text sees it one place off, as these weights were trained")
    return layout.Layout(
        family="coca",
        image=image,
        text=decoder,
        preprocessing=_preprocessing(whole["preprocess_cfg"], image.image_size, "clip", notes),
        table=open_clip_coca.table(image, vision=_IMAGE, words=_TEXT, block=_BLOCK),
        ignore=rf"text_decoder\.attn_mask|{_IGNORE}",
        notes=tuple(notes),
    )


def _read_image(vision: layout.Fields, dim: int, activation: Any) -> vit.Config:
    fields = vision.filled(layers=12, width=768, head_width=64, mlp_ratio=4.0, patch_size=16, image_size=224)
    known = ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "act_kwargs", "norm_kwargs")
    unused = {
        "attentional_pool": False, "no_ln_pre": False, "ls_init_value": None, "output_tokens": False, "final_ln_after_pool": False,
        "pos_embed_type": "learnable", "timm_model_name": None, "pool_type": "tok",
    }  # fmt: skip
    fields.only(*known, *unused, "patch_dropout", "timm_model_pretrained", "timm_pool", "timm_proj")
    fields.require(**unused)
    width, size, patch = (fields.integer(name) for name in ("width", "image_size", "patch_size"))
    return vit.Config(
        image_size=size,
        patch_size=patch,
        border=layout.border(size, patch),
        width=width,
        depth=fields.integer("layers"),
        mlp_dim=int(width * fields["mlp_ratio"]),
        num_heads=width // fields.integer("head_width"),
        pool="cls",
        class_token="positioned",
        patch_bias="none",
        pre_norm="layer_norm",
        activation=_activation(fields, activation),
        norm_epsilon=_epsilon(fields),
        projection_dim=dim,
    )


def _read_trunk(vision: layout.Fields, dim: int, notes: list[str]) -> vit.Config:
    name = vision["timm_model_name"]
    found = _TIMM.fullmatch(name)
    if found is None or found["size"] not in _TIMM_SIZES:
        raise InputError(f"vision_cfg.timm_model_name {name!r} is not supported; vit_base_patch16_siglip_224 and its like are")
    vision.require(timm_pool="map")
    if vision.get("timm_proj", "none") not in ("none", "", None):
        raise InputError(f"vision_cfg.timm_proj {vision['timm_proj']!r} is not supported, only 'none'")
    given = vision.get("timm_model_kwargs") or {}
    sizes: dict[str, Any] = _TIMM_SIZES[found["size"]] | {"num_heads": _TIMM_HEADS[found["size"]]}
    theirs = {"embed_dim": "width", "depth": "depth", "num_heads": "num_heads"}
    fields = layout.Fields(given, "vision_cfg.timm_model_kwargs", {})
    fields.only(*theirs, "mlp_ratio", "act_layer")
    sizes |= {ours: fields.integer(key) for key, ours in theirs.items() if key in given}
    if "mlp_ratio" in given or "embed_dim" in given:
        sizes["mlp_dim"] = int(sizes["width"] * fields.get("mlp_ratio", 4.0))
    tanh = {"gelu_tanh": "gelu_tanh", "gelu": "gelu"}
    activation = fields.choice("act_layer", tanh) if "act_layer" in given else "gelu_tanh" if _TIMM_TANH.fullmatch(name) else "gelu"
    if sizes["width"] != dim:
        raise InputError(f"embed_dim {dim}: the trunk {name} has {sizes['width']} channels and no projection")
    notes.append(f"the trunk's GELU is {'the tanh approximation' if activation == 'gelu_tanh' else 'exact'}, as timm builds {name}")
    size, patch = int(vision.get("image_size", found["image"])), int(found["patch"])
    return vit.Config(
        image_size=size,
        patch_size=patch,
        border=layout.border(size, patch),
        **sizes,
        pool="map",
        activation=activation,  # pyright: ignore[reportArgumentType]
        norm_epsilon=1e-6,
    )


def _read_text(words: layout.Fields, dim: int, activation: Any) -> text.Config:
    fields = words.filled(
        context_length=77, vocab_size=49408, width=512, heads=8, layers=12, mlp_ratio=4.0, pool_type="argmax"
    )
    known = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "no_causal_mask", "proj_bias")
    unused = {"ls_init_value": None, "embed_cls": False, "output_tokens": False, "hf_model_name": None, "final_ln_after_pool": False}
    tokenizer = ("hf_tokenizer_name", "tokenizer_kwargs", "text_mask", "eos_id", "bos_id", "eot_id", "tokenizer_mode")
    fields.only(*known, *unused, *tokenizer, "act_kwargs", "norm_kwargs", "pad_id")
    fields.require(**unused)
    pools = {"argmax": "argmax", "last": "last", "first": "first"}
    width = fields.integer("width")
    return text.Config(
        vocab_size=fields.integer("vocab_size"),
        length=fields.integer("context_length"),
        width=width,
        depth=fields.integer("layers"),
        mlp_dim=int(width * fields["mlp_ratio"]),
        num_heads=fields.integer("heads"),
        attention="bidirectional" if fields.get("no_causal_mask") else "causal",
        pool=fields.choice("pool_type", pools),  # pyright: ignore[reportArgumentType]
        activation=_activation(fields, activation),
        norm_epsilon=_epsilon(fields),
        projection_dim=dim,
        projection_bias="learned" if fields.get("proj_bias") else "none",
    )


def _activation(fields: layout.Fields, name: Any) -> Any:
    kwargs = fields.get("act_kwargs") or {}
    if not kwargs:
        return name
    if name == "gelu" and kwargs in ({"approximate": "tanh"}, {"approximate": "none"}):
        return "gelu_tanh" if kwargs["approximate"] == "tanh" else "gelu"
    raise InputError(f"{fields.name}.act_kwargs {kwargs!r} is not supported with {name}")


def _epsilon(fields: layout.Fields) -> float:
    kwargs = layout.Fields(fields.get("norm_kwargs") or {}, f"{fields.name}.norm_kwargs", {"eps": 1e-5})
    kwargs.only("eps")
    return float(kwargs["eps"])


def _preprocessing(theirs: Any, size: int, family: str, notes: list[str]) -> layout.Preprocessing:
    squash = family == "siglip"
    defaults = {
        "mean": (0.5, 0.5, 0.5) if squash else _MEAN, "std": (0.5, 0.5, 0.5) if squash else _STD,
        "interpolation": "bicubic", "resize_mode": "squash" if squash else "shortest", "fill_color": 0,
    }  # fmt: skip
    fields = layout.Fields(theirs, "preprocess_cfg", defaults)
    if not {"mean", "std"} <= set(theirs):
        notes.append(f"preprocess_cfg has no mean or std: {defaults['mean']}, {defaults['std']} are assumed")
    if fields.get("size") is not None and fields.integer("size") != size:
        raise InputError(f"preprocess_cfg.size {fields['size']}: the image tower has image_size {size}")
    same = {"bicubic": "bicubic", "bilinear": "bilinear"}
    return layout.Preprocessing(
        size=size,
        mean=layout.triple(fields["mean"], "preprocess_cfg.mean"),
        std=layout.triple(fields["std"], "preprocess_cfg.std"),
        resize=fields.choice("resize_mode", {mode: mode for mode in ("shortest", "squash", "longest")}),  # pyright: ignore[reportArgumentType]
        fill=_fill(fields["fill_color"]),
        interpolation=fields.choice("interpolation", same),  # pyright: ignore[reportArgumentType]
    )


def _fill(value: Any) -> tuple[int, int, int]:
    """open_clip writes one number for grey."""
    channels = value if isinstance(value, list | tuple) else [value] * 3
    if len(channels) != 3 or not all(isinstance(x, int) and 0 <= x <= 255 for x in channels):
        raise InputError(f"preprocess_cfg.fill_color {value!r}: a number from 0 to 255, or three of them")
    return tuple(channels)


def write(model: layout.Layout) -> tuple[layout.Layout, Mapping[str, Any]]:
    """The layout with the table of open_clip, and the content of open_clip_config.json by file name.

    Raises:
      InputError: open_clip cannot build this model; the field is named.
    """
    if model.text is None:
        raise InputError("an image tower alone is no model of open_clip; export it to hf")
    if isinstance(model.image, attentional.Config):
        return _write_coca(model, model.image)
    assert isinstance(model.text, text.Config)
    if model.text.pool == "eos":  # open_clip finds the end by its id, the largest of its vocabulary
        if model.text.eos_id != model.text.vocab_size - 1:
            raise InputError(f"text.eos_id {model.text.eos_id}: open_clip takes the largest id, {model.text.vocab_size - 1}, for the end")
        model = dataclasses.replace(model, text=dataclasses.replace(model.text, pool="argmax", eos_id=None))
    assert isinstance(model.text, text.Config)
    if model.text.eos_id is not None:
        model = dataclasses.replace(model, text=dataclasses.replace(model.text, eos_id=None))
    assert isinstance(model.text, text.Config)
    image = model.image
    timm = isinstance(image, vit.Config) and image.pool == "map"
    config: dict[str, Any] = {"embed_dim": model.text.projection_dim}
    if model.family == "siglip":
        config["init_logit_bias"] = -10
    if timm:
        config["custom_text"] = True
    elif model.text.activation == "quick_gelu":
        config["quick_gelu"] = True
    if isinstance(image, resnet.Config):
        config["vision_cfg"] = open_clip_resnet.to_json(image)
    else:
        assert isinstance(image, vit.Config)
        config["vision_cfg"] = _trunk_json(image) if timm else _image_json(image)
    config["text_cfg"] = _text_json(model.text)
    contents = {NAME: {"model_cfg": config, "preprocess_cfg": _preprocess_json(model.preprocessing)}}
    made = parse(contents[NAME], ())
    layout.refuse_differences(model, made, "open_clip")
    return made, contents


def _write_coca(model: layout.Layout, image: attentional.Config) -> tuple[layout.Layout, Mapping[str, Any]]:
    words = model.text
    assert isinstance(words, captioner.Config)
    plain = vit.Config(image_size=8, patch_size=8, width=1, depth=1, mlp_dim=1, num_heads=1)
    tower = dataclasses.replace(image.tower, **{name: getattr(plain, name) for name in layout.TRAINING if hasattr(plain, name)})
    model = dataclasses.replace(model, image=dataclasses.replace(image, tower=tower))
    config = open_clip_coca.to_json(image, words, _image_json(tower))
    contents = {NAME: {"model_cfg": config, "preprocess_cfg": _preprocess_json(model.preprocessing)}}
    made = parse(contents[NAME], ())
    layout.refuse_differences(model, made, "open_clip")
    return made, contents


def _image_json(config: vit.Config) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "image_size": config.image_size, "patch_size": config.patch_size, "width": config.width, "layers": config.depth,
        "head_width": config.width // config.num_heads, "mlp_ratio": _ratio(config),
    }  # fmt: skip
    return fields | _kwargs_json(config)


def _preprocess_json(seen: layout.Preprocessing) -> dict[str, Any]:
    return {
        "mean": list(seen.mean), "std": list(seen.std), "interpolation": seen.interpolation, "resize_mode": seen.resize,
        "fill_color": seen.fill[0] if len(set(seen.fill)) == 1 else list(seen.fill),
    }  # fmt: skip


def _trunk_json(config: vit.Config) -> dict[str, Any]:
    fits = [name for name, size in _TIMM_SIZES.items() if size["width"] == config.width and size["depth"] == config.depth]
    name = f"vit_{fits[0] if fits else 'base'}_patch{config.patch_size}_siglip_{config.image_size}"
    kwargs: dict[str, Any] = {}
    if not fits:
        kwargs = {"embed_dim": config.width, "depth": config.depth, "num_heads": config.num_heads, "mlp_ratio": _ratio(config)}
    if (config.activation == "gelu_tanh") != bool(_TIMM_TANH.fullmatch(name)):
        kwargs["act_layer"] = config.activation
    trunk = {"image_size": config.image_size, "timm_model_name": name, "timm_model_pretrained": False}
    return trunk | {"timm_pool": "map", "timm_proj": "none"} | ({"timm_model_kwargs": kwargs} if kwargs else {})


def _text_json(config: text.Config) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "context_length": config.length, "vocab_size": config.vocab_size, "width": config.width, "heads": config.num_heads,
        "layers": config.depth, "mlp_ratio": _ratio(config), "pool_type": config.pool,
    }  # fmt: skip
    if config.attention == "bidirectional":
        fields["no_causal_mask"] = True
    if config.projection_bias == "learned":
        fields["proj_bias"] = True
    return fields | _kwargs_json(config)


def _ratio(config: vit.Config | text.Config) -> float:
    """mlp_dim by width, such that the product is not rounded below mlp_dim."""
    ratio = config.mlp_dim / config.width
    return ratio if int(config.width * ratio) == config.mlp_dim else math.nextafter(ratio, math.inf)


def _kwargs_json(config: vit.Config | text.Config) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"act_kwargs": {"approximate": "tanh"}} if config.activation == "gelu_tanh" else {}
    return kwargs | ({"norm_kwargs": {"eps": config.norm_epsilon}} if config.norm_epsilon != 1e-5 else {})
