"""Idefics (IdeficsForVisionText2Text of Hugging Face transformers): an open Flamingo over LLaMA and CLIP's ViT.

`parse` takes config.json. Two things differ from the paper: the image tower's class token reaches the resampler, and
blocks of cross-attention have RMS norms and gated MLPs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.errors import InputError
from vlm_jax.layers import gated_cross_attention
from vlm_jax.models import flamingo, lm, resampler, vit
from vlm_jax.models.convert import hugging_face, layout, mapping
from vlm_jax.models.convert.mapping import (
    ARRAY,
    EMBEDDING,
    LINEAR,
    LINEAR_WITHOUT_BIAS,
    NORM,
    NUMBER,
    PATCHES_WITHOUT_BIAS,
    TABLE,
    TOKEN,
    Kind,
    Table,
    below,
)

IGNORE = r".*embeddings\.position_ids|.*rotary_emb\.inv_freq|model\.vision_model\.post_layernorm\.(weight|bias)"
"""The tower's last norm is of the pooled output only, which nothing takes."""
_SCALE: Kind = (mapping.Leaf(".weight", ("/scale",)),)
_TEXT_MLP: Table = (
    ("mlp.gate_proj", "mlp/gate", LINEAR_WITHOUT_BIAS),
    ("mlp.up_proj", "mlp/up", LINEAR_WITHOUT_BIAS),
    ("mlp.down_proj", "mlp/down", LINEAR_WITHOUT_BIAS),
    ("input_layernorm", "attention_norm", _SCALE),
    ("post_attention_layernorm", "mlp_norm", _SCALE),
)


def _projections(theirs: str, out: str) -> Table:
    names = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), (out, "out"))
    return tuple((f"{theirs}.{name}", f"attention/{own}", LINEAR_WITHOUT_BIAS) for name, own in names)


TABLE_OF_NAMES: Table = (
    ("model.embed_tokens", "lm/token_embed", EMBEDDING),
    ("model.embed_tokens.additional_embedding", "added_embed", EMBEDDING),
    *below((*_projections("self_attn", "o_proj"), *_TEXT_MLP), "model.layers.{}.", "lm/blocks/"),
    ("model.norm", "lm/norm", _SCALE),
    ("lm_head", "lm/head", LINEAR_WITHOUT_BIAS),
    ("lm_head.additional_fc", "added_head", LINEAR_WITHOUT_BIAS),
    *below(
        (
            *_projections("cross_attn", "o_proj"),
            *_TEXT_MLP,
            ("alpha_cross_attn", "attention_gate", NUMBER),
            ("alpha_dense", "mlp_gate", NUMBER),
        ),
        "model.gated_cross_attn_layers.{}.",
        "cross/blocks/",
    ),
    ("model.perceiver_resampler.latents", "resampler/latents", ARRAY),
    *below(
        (
            ("0.context_layer_norm", "features_norm", NORM),
            ("0.latents_layer_norm", "latents_norm", NORM),
            *_projections("0", "output_proj"),
            ("1.ln", "mlp_norm", NORM),
            ("1.fc", "mlp/up", LINEAR_WITHOUT_BIAS),
            ("1.c_proj", "mlp/down", LINEAR_WITHOUT_BIAS),
        ),
        "model.perceiver_resampler.blocks.{}.",
        "resampler/blocks/",
    ),
    ("model.perceiver_resampler.layer_norm", "resampler/norm", NORM),
    ("model.vision_model.embeddings.class_embedding", "image/class_token", TOKEN),
    ("model.vision_model.embeddings.patch_embedding", "image/patch_embed", PATCHES_WITHOUT_BIAS),
    ("model.vision_model.embeddings.position_embedding", "image/positions", TABLE),
    ("model.vision_model.pre_layrnorm", "image/pre_norm", NORM),
    *below(
        (
            ("layer_norm1", "attention_norm", NORM),
            ("self_attn.q_proj", "attention/query", LINEAR),
            ("self_attn.k_proj", "attention/key", LINEAR),
            ("self_attn.v_proj", "attention/value", LINEAR),
            ("self_attn.out_proj", "attention/out", LINEAR),
            ("layer_norm2", "mlp_norm", NORM),
            ("mlp.fc1", "mlp/up", LINEAR),
            ("mlp.fc2", "mlp/down", LINEAR),
        ),
        "model.vision_model.encoder.layers.{}.",
        "image/blocks/",
    ),
)
_DEFAULTS = {
    "vocab_size": 32000, "additional_vocab_size": 0, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "cross_layer_interval": 1,
    "use_resampler": False, "tie_word_embeddings": False, "qk_layer_norms": False, "vision_config": {}, "perceiver_config": {},
}  # fmt: skip
_VISION = {
    "embed_dim": 768, "image_size": 224, "intermediate_size": 5120, "patch_size": 14, "num_hidden_layers": 32, "num_attention_heads": 16,
    "hidden_act": "gelu", "layer_norm_eps": 1e-5, "num_channels": 3,
}  # fmt: skip
_PERCEIVER = {
    "resampler_n_latents": 64, "resampler_depth": 6, "resampler_n_heads": 16, "resampler_head_dim": 96, "qk_layer_norms_perceiver": False,
}  # fmt: skip
"""What transformers takes for fields that config.json leaves out."""


def parse(config: Any) -> flamingo.Config:
    """The model that config.json describes.

    Raises:
      InputError: another kind of model, or a form of it that ours does not have.
    """
    theirs = layout.Fields(config, "config.json", _DEFAULTS)
    theirs.require(model_type="idefics", use_resampler=True, tie_word_embeddings=False, qk_layer_norms=False, additional_vocab_size=2)
    vision = layout.Fields(theirs["vision_config"], "vision_config", _VISION)
    vision.require(num_channels=3)
    perceiver = layout.Fields(theirs["perceiver_config"], "perceiver_config", _PERCEIVER)
    perceiver.require(qk_layer_norms_perceiver=False)
    width, heads, depth = (theirs.integer(name) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    every, activation = theirs.integer("cross_layer_interval"), theirs.choice("hidden_act", hugging_face.ACTIVATIONS)
    if depth % every:
        raise InputError(f"config.json.cross_layer_interval {every}: does not divide the {depth} blocks, as it must in transformers")
    epsilon, mlp_dim, channels = float(theirs["rms_norm_eps"]), theirs.integer("intermediate_size"), vision.integer("embed_dim")
    return flamingo.Config(
        image=vit.Config(
            image_size=vision.integer("image_size"),
            patch_size=vision.integer("patch_size"),
            width=channels,
            depth=vision.integer("num_hidden_layers"),
            mlp_dim=vision.integer("intermediate_size"),
            num_heads=vision.integer("num_attention_heads"),
            pool="none",
            class_token="positioned",
            patch_bias="none",
            pre_norm="layer_norm",
            post_norm="none",
            activation=vision.choice("hidden_act", hugging_face.ACTIVATIONS),  # pyright: ignore[reportArgumentType]
            norm_epsilon=float(vision["layer_norm_eps"]),
        ),
        lm=lm.Config(
            vocab_size=theirs.integer("vocab_size"),
            length=theirs.integer("max_position_embeddings"),
            width=width,
            depth=depth,
            mlp_dim=mlp_dim,
            num_heads=heads,
            norm="rms_norm",
            norm_epsilon=epsilon,
            position="rotary",
            mlp="gated",
            activation=activation,  # pyright: ignore[reportArgumentType]
            bias="none",
            head="untied",
        ),
        resampler=resampler.Config(
            width=channels,
            latents=perceiver.integer("resampler_n_latents"),
            depth=perceiver.integer("resampler_depth"),
            num_heads=perceiver.integer("resampler_n_heads"),
            head_dim=perceiver.integer("resampler_head_dim"),
            mlp_dim=4 * channels,
            activation="relu",
        ),
        cross=gated_cross_attention.Config(
            num_heads=heads,
            head_dim=width // heads,
            mlp_dim=mlp_dim,
            norm="rms_norm",
            norm_epsilon=epsilon,
            mlp="gated",
            activation=activation,  # pyright: ignore[reportArgumentType]
        ),
        every=every,
        image_tokens="all",
        added="end_first",
    )


def to_ours(config: flamingo.Config, theirs: Mapping[str, np.ndarray], *, allow: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Our parameters by path; raises as `mapping.to_ours`."""
    return mapping.to_ours(TABLE_OF_NAMES, theirs, layout.parameters(config), allow=allow, ignore=IGNORE)


def to_theirs(ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Their arrays by name, but for the tower's last norm, which nothing takes; raises as `mapping.to_theirs`."""
    return mapping.to_theirs(TABLE_OF_NAMES, ours)
