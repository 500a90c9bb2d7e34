"""Idefics (IdeficsForVisionText2Text of Hugging Face transformers): an open Flamingo over LLaMA and CLIP's ViT.

`read` takes config.json and preprocessor_config.json, `write` makes them. Two things differ from the paper: the image tower's class token
reaches the resampler, and blocks of cross-attention have RMS norms and gated MLPs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vlm_jax.errors import InputError
from vlm_jax.layers import gated_cross_attention
from vlm_jax.models import flamingo, lm, resampler, vit
from vlm_jax.models.convert import decoders, files, hugging_face, layout, mapping
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
    Table,
    below,
)

CLASS = "IdeficsForVisionText2Text"
ADDED = ("<fake_token_around_image>", "<image>")
"""The tokens after the vocabulary. The first stands on both sides of an image there, and after the text of an image here."""
_UNUSED_NORM = "model.vision_model.post_layernorm"
"""The tower's last norm, of the pooled output only, which nothing takes."""
_IGNORE = rf".*embeddings\.position_ids|.*rotary_emb\.inv_freq|{_UNUSED_NORM}\.(weight|bias)"
_TEXT_MLP: Table = (
    ("mlp.gate_proj", "mlp/gate", LINEAR_WITHOUT_BIAS),
    ("mlp.up_proj", "mlp/up", LINEAR_WITHOUT_BIAS),
    ("mlp.down_proj", "mlp/down", LINEAR_WITHOUT_BIAS),
    ("input_layernorm", "attention_norm", decoders.RMS_NORM),
    ("post_attention_layernorm", "mlp_norm", decoders.RMS_NORM),
)


def _projections(theirs: str, out: str) -> Table:
    names = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), (out, "out"))
    return tuple((f"{theirs}.{name}", f"attention/{own}", LINEAR_WITHOUT_BIAS) for name, own in names)


_TABLE: Table = (
    ("model.embed_tokens", "lm/token_embed", EMBEDDING),
    ("model.embed_tokens.additional_embedding", "added_embed", EMBEDDING),
    *below((*_projections("self_attn", "o_proj"), *_TEXT_MLP), "model.layers.{}.", "lm/blocks/"),
    ("model.norm", "lm/norm", decoders.RMS_NORM),
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
_QK_NORMS = {
    "cross": below(
        (("q_layer_norm", "query_norm", decoders.RMS_NORM), ("k_layer_norm", "key_norm", decoders.RMS_NORM)),
        "model.gated_cross_attn_layers.{}.cross_attn.",
        "cross/blocks/attention/",
    ),
    "resampler": below(
        (("q_layer_norm", "query_norm", NORM), ("k_layer_norm", "key_norm", NORM)),
        "model.perceiver_resampler.blocks.{}.0.",
        "resampler/blocks/attention/",
    ),
}
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A Flamingo in the layout of Idefics."""

    family: ClassVar = "idefics"
    config: flamingo.Config
    preprocessing: layout.Preprocessing
    begin_id: int | None = None
    """The token before a text."""
    end_id: int | None = None
    """The token after a text."""
    notes: tuple[str, ...] = ()
    """What was decided where the files leave a choice."""

    @property
    def image(self) -> Any:
        """The image tower."""
        return self.config.image

    def like(self) -> dict[str, Any]:
        """Shapes and dtypes of our parameters by path."""
        return layout.parameters(self.config)

    def to_ours(self, theirs: Mapping[str, np.ndarray], *, allow: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Our parameters by path; raises as `mapping.to_ours`."""
        return mapping.to_ours(self._table(), theirs, self.like(), allow=allow, ignore=_IGNORE)

    def to_theirs(self, ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Their arrays by name, with a last norm of the image tower that does nothing; raises as `mapping.to_theirs`."""
        width = self.config.image.width
        unused = {f"{_UNUSED_NORM}.weight": np.ones(width, np.float32), f"{_UNUSED_NORM}.bias": np.zeros(width, np.float32)}
        return mapping.to_theirs(self._table(), ours) | unused

    def _table(self) -> Table:
        return (*_TABLE, *(line for part, lines in _QK_NORMS.items() if getattr(self.config, part).qk_norm != "none" for line in lines))


def read(folder: Path) -> Layout:
    """The layout that the files of a directory describe; raises as `parse`."""
    file = folder / "preprocessor_config.json"
    preprocessor = files.read_json(file, "preprocessor") if file.is_file() else None
    return parse(files.read_json(folder / "config.json", "configuration"), preprocessor)


def parse(config: Any, preprocessor: Any = None) -> Layout:
    """As `read`, of the content of the files.

    Raises:
      InputError: another kind of model, or a form of it that ours does not have.
    """
    theirs = layout.Fields(config, "config.json", _DEFAULTS)
    theirs.require(model_type="idefics", use_resampler=True, tie_word_embeddings=False, additional_vocab_size=2)
    theirs.require(alpha_type="float", quantization_config=None)
    vision = layout.Fields(theirs["vision_config"], "vision_config", _VISION).renamed(hidden_size="embed_dim")
    vision.require(num_channels=3)
    perceiver = layout.Fields(theirs["perceiver_config"], "perceiver_config", _PERCEIVER)
    width, heads, depth = (theirs.integer(name) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    theirs.require(head_dim=width // heads)
    every, activation = theirs.integer("cross_layer_interval"), theirs.choice("hidden_act", hugging_face.ACTIVATIONS)
    if depth % every:
        raise InputError(f"config.json.cross_layer_interval {every}: does not divide the {depth} blocks, as it must in transformers")
    epsilon, mlp_dim, channels = theirs.number("rms_norm_eps"), theirs.integer("intermediate_size"), vision.integer("embed_dim")
    size, patch = vision.integer("image_size"), vision.integer("patch_size")
    notes = ["the image tower's last norm, which nothing takes, is left out"]
    seen = _preprocessing(preprocessor, size, notes)
    made = flamingo.Config(
        image=vit.Config(
            image_size=size,
            patch_size=patch,
            border=layout.border(size, patch),
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
            norm_epsilon=vision.number("layer_norm_eps"),
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
            rope_theta=decoders.theta(theirs),
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
            qk_norm="layer_norm" if perceiver["qk_layer_norms_perceiver"] else "none",
        ),
        cross=gated_cross_attention.Config(
            num_heads=heads,
            head_dim=width // heads,
            mlp_dim=mlp_dim,
            norm="rms_norm",
            norm_epsilon=epsilon,
            mlp="gated",
            activation=activation,  # pyright: ignore[reportArgumentType]
            qk_norm="rms_norm" if theirs["qk_layer_norms"] else "none",
        ),
        every=every,
        image_tokens="all",
        added="end_first",
        mean=seen.mean,
        std=seen.std,
    )
    return Layout(
        config=made,
        preprocessing=seen,
        begin_id=_token(config, "bos_token_id", 1),
        end_id=_token(config, "eos_token_id", 2),
        notes=tuple(notes),
    )


def _token(config: Mapping[str, Any], name: str, default: int) -> int | None:
    """Null means none, and not the default; of several the first."""
    value = config.get(name, default)
    value = value[0] if isinstance(value, list) and value else value
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise InputError(f"config.json.{name} {value!r}: the number of a token is needed")
    return value


def _plain(config: flamingo.Config) -> flamingo.Config:
    """With what makes no difference as it is read."""
    visual = config.resampler if config.resampler.frames else dataclasses.replace(config.resampler, interpolation="align_corners")
    return dataclasses.replace(config, lm=decoders.plain(config.lm), resampler=visual, tokens=0)


def _preprocessing(theirs: Any, size: int, notes: list[str]) -> layout.Preprocessing:
    """What preprocessor_config.json says, where version 4 of transformers has one number for the size; images are squashed."""
    if theirs is None:
        notes.append("no preprocessor_config.json: CLIP's mean and std, and a bicubic squash are assumed")
    elif isinstance(theirs, dict) and "image_size" in theirs:
        theirs = {"size": {"height": theirs["image_size"], "width": theirs["image_size"]}} | theirs
    given = {} if theirs is None else theirs
    return hugging_face.preprocessing(given, size, hugging_face.CLIP_MEAN, hugging_face.CLIP_STD, notes)


def write(model: Layout) -> tuple[Layout, Mapping[str, Any]]:
    """The layout as transformers has it, and the content of config.json and preprocessor_config.json by file name.

    Raises:
      InputError: the model is not of this form; the field is named.
    """
    config, seen = model.config, model.preprocessing
    text, visual = config.lm, config.resampler
    rope = {"rope_type": "default", "rope_theta": text.rope_theta}
    contents = {
        "config.json": {
            "architectures": [CLASS],
            "model_type": "idefics",
            "vocab_size": text.vocab_size,
            "additional_vocab_size": flamingo.ADDED,
            "hidden_size": text.width,
            "intermediate_size": text.mlp_dim,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.num_heads,
            "hidden_act": hugging_face.activation_name(text.activation, "lm.activation"),
            "rms_norm_eps": text.norm_epsilon,
            "max_position_embeddings": text.length,
            "rope_parameters": rope,
            "tie_word_embeddings": False,
            "cross_layer_interval": config.every,
            "qk_layer_norms": config.cross.qk_norm != "none",
            "alpha_type": "float",
            "use_resampler": True,
            "bos_token_id": model.begin_id,
            "eos_token_id": model.end_id,
            "pad_token_id": None,
            "vision_config": {
                "model_type": "idefics_vision",
                "embed_dim": config.image.width,
                "image_size": config.image.image_size,
                "patch_size": config.image.patch_size,
                "num_hidden_layers": config.image.depth,
                "num_attention_heads": config.image.num_heads,
                "intermediate_size": config.image.mlp_dim,
                "hidden_act": hugging_face.activation_name(config.image.activation, "image.activation"),
                "layer_norm_eps": config.image.norm_epsilon,
                "num_channels": 3,
            },
            "perceiver_config": {
                "use_resampler": True,
                "resampler_n_latents": visual.latents,
                "resampler_depth": visual.depth,
                "resampler_n_heads": visual.num_heads,
                "resampler_head_dim": visual.head_dim,
                "qk_layer_norms_perceiver": visual.qk_norm != "none",
            },
        },
        "preprocessor_config.json": {
            "image_processor_type": "IdeficsImageProcessor",
            "image_size": seen.size,
            "image_num_channels": 3,
            "image_mean": list(config.mean),
            "image_std": list(config.std),
            "resample": hugging_face.RESAMPLE[seen.interpolation],
        },
    }
    made = parse(contents["config.json"], contents["preprocessor_config.json"])
    layout.refuse_changes(_plain(config), _plain(made.config), CLASS)
    layout.refuse_changes(seen, made.preprocessing, CLASS, "preprocessing.")
    return made, contents
