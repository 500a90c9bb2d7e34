"""open_clip's CoCa: what it adds to CLIP's fields and names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlm_jax.errors import InputError
from vlm_jax.models import attentional, captioner, text, vit
from vlm_jax.models.convert import layout
from vlm_jax.models.convert.mapping import ARRAY, FUSED, KERNEL, LINEAR, NORM, SEPARATE, TOKEN, Table, below

VISION = ("attentional_pool", "attn_pooler_heads", "attn_pooler_queries", "output_tokens")
TEXT = ("embed_cls", "output_tokens", "correct_cls_mask")
_POOLS: Mapping[Any, Any] = {True: "single", "cascade": "cascade", "parallel": "parallel"}


def without(config: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    """A part of the configuration as CLIP has it."""
    return {name: value for name, value in config.items() if name not in fields}


def towers(model: layout.Fields, image: vit.Config, words: text.Config) -> tuple[attentional.Config, captioner.Config]:
    """CoCa's image tower and decoder, of CLIP's towers with the same sizes.

    Raises:
      InputError: a field is not known, or has a value that we do not have.
    """
    dim = model.integer("embed_dim")
    vision = layout.Fields(model["vision_cfg"], "vision_cfg", {"attn_pooler_heads": 8, "attn_pooler_queries": 256})
    if not isinstance(vision["attentional_pool"], bool | str) or vision["attentional_pool"] not in _POOLS:
        raise InputError(f"vision_cfg.attentional_pool {vision['attentional_pool']!r} is not supported; true, cascade and parallel are")
    pool = _POOLS[vision["attentional_pool"]]
    if pool != "single" and image.width != dim:
        raise InputError(f"vision_cfg.attentional_pool {pool!r}: open_clip builds it only with width {dim}, which is embed_dim")
    tower = dataclasses.replace(
        image, pool="none", post_norm="none" if pool == "single" else "layer_norm", projection_dim=0
    )
    said = layout.Fields(model["text_cfg"], "text_cfg", {"pad_id": 0, "correct_cls_mask": model.get("correct_cls_mask", False)})
    said.require(embed_cls=True, act_kwargs={}, norm_kwargs={}, no_causal_mask=False, proj_bias=False)
    vision.require(norm_kwargs={})  # which open_clip does not hand on to the poolers
    decoder = layout.Fields(model["multimodal_cfg"], "multimodal_cfg", {"mlp_ratio": 4.0, "width": 512, "heads": 8, "layers": 12})
    decoder.only("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "attn_pooler_heads", "ls_init_value")
    decoder.require(width=words.width, heads=words.num_heads, vocab_size=words.vocab_size, ls_init_value=None)
    decoder.require(mlp_ratio=words.mlp_dim / words.width)
    return (
        attentional.Config(
            tower=tower,
            width=dim,
            num_heads=vision.integer("attn_pooler_heads"),
            queries=vision.integer("attn_pooler_queries"),
            pool=pool,
            norm_epsilon=image.norm_epsilon,
            projection_dim=dim,
        ),
        captioner.Config(
            vocab_size=words.vocab_size,
            length=words.length,
            width=words.width,
            depth=words.depth,
            decoder_depth=decoder.integer("layers"),
            mlp_dim=words.mlp_dim,
            num_heads=words.num_heads,
            context_width=dim,
            pad_id=int(said["pad_id"]),
            class_mask="correct" if said["correct_cls_mask"] else "legacy",
            activation=words.activation,
            norm_epsilon=words.norm_epsilon,
            projection_dim=dim,
        ),
    )


def table(image: attentional.Config, *, vision: Table, words: Table, block: Table) -> Table:
    """All names, of the tables of CLIP's towers and of a block."""
    cross = [(theirs, ours, kind) for theirs, ours, kind in block] + [("ln_1_kv", "context_norm", NORM)]
    single = image.pool == "single"
    own = [line for line in vision if line[0] not in ("proj", "ln_post")]
    return (
        *below(own, "visual.", "image/tower/"),
        ("visual.ln_post", "image/norm" if single else "image/tower/norm", NORM),
        ("visual.proj", "image/projection", KERNEL),
        *_pooler("visual.attn_pool.", "image/pool/", image.width, image.tower.width),
        *([] if single else _pooler("visual.attn_pool_contrastive.", "image/embedding_pool/", image.width, image.width)),
        *below(words, "text.", "text/"),
        ("text.cls_emb", "text/class_token", TOKEN),
        ("text.text_projection", "text/projection", KERNEL),
        *below(block, "text_decoder.resblocks.{}.", "text/decoder/blocks/causal/"),
        *below(cross, "text_decoder.cross_attn.{}.", "text/decoder/blocks/cross/"),
        ("text_decoder.ln_final", "text/decoder/norm", NORM),
        ("text_decoder.text_projection", "text/decoder/head", KERNEL),
        ("logit_scale", "log_scale", ARRAY),
    )


def to_json(image: attentional.Config, words: captioner.Config, vision: Mapping[str, Any]) -> dict[str, Any]:
    """The content of model_cfg, given vision_cfg of the tower.

    Raises:
      InputError: open_clip's decoder has no such activation, epsilon or MLP.
    """
    if words.activation not in ("gelu", "quick_gelu") or words.norm_epsilon != 1e-5:
        raise InputError(
            f"text.activation {words.activation!r}, norm_epsilon {words.norm_epsilon}: open_clip's decoder has gelu or quick_gelu, and 1e-5"
        )
    if words.mlp_dim != 4 * words.width:
        raise InputError(f"text.mlp_dim {words.mlp_dim}: open_clip's decoder always has 4 times its width, {4 * words.width}")
    sizes = {"context_length": words.length, "vocab_size": words.vocab_size, "width": words.width, "heads": words.num_heads}
    heads = {"attn_pooler_heads": image.num_heads}
    pool = {theirs for theirs, ours in _POOLS.items() if ours == image.pool}.pop()
    config: dict[str, Any] = {
        "embed_dim": image.width,
        "vision_cfg": {**vision, "attentional_pool": pool, **heads, "attn_pooler_queries": image.queries, "output_tokens": True},
        "text_cfg": {**sizes, "layers": words.depth, "embed_cls": True, "output_tokens": True, "pad_id": words.pad_id},
        "multimodal_cfg": {**sizes, "layers": words.decoder_depth, **heads},
        "custom_text": True,
    }
    if words.class_mask == "correct":
        config["text_cfg"]["correct_cls_mask"] = True
    return config | ({"quick_gelu": True} if words.activation == "quick_gelu" else {})


def _pooler(theirs: str, ours: str, width: int, context_width: int) -> Table:
    return [
        (f"{theirs}query", f"{ours}queries", ARRAY),
        (f"{theirs}attn.", f"{ours}attention", FUSED if width == context_width else SEPARATE),
        (f"{theirs}attn.out_proj", f"{ours}attention/out", LINEAR),
        (f"{theirs}ln_q", f"{ours}query_norm", NORM),
        (f"{theirs}ln_k", f"{ours}context_norm", NORM),
    ]
