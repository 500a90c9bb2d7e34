"""The towers reproduce public reference models. Tolerance 1e-4: float32 through two blocks, another order of sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models import text, vit
from vlm_jax.ops import norm

from . import reference

IMAGE = {"image_size": 32, "patch_size": 8, "width": 48, "depth": 2, "mlp_dim": 96, "num_heads": 4}
TEXT = {"vocab_size": 64, "length": 8, "width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 4}
CLIP_IMAGE = {"pool": "cls", "class_token": "positioned", "patch_bias": "none", "pre_norm": "layer_norm"}


def load(oracles, name):
    oracle = np.load(oracles / f"{name}.npz")
    return oracle, reference.Weights(oracle)


def images(oracle):
    return jnp.asarray(oracle["in_pixel_values"]).transpose(0, 2, 3, 1)


def tokens(oracle):
    return jnp.asarray(oracle["in_input_ids"], jnp.int32)


def compare(oracle, outputs, weights, atol=1e-4):
    """Every output of the oracle, and every weight of the reference was used."""
    assert not weights.left
    assert {name for name in oracle if name.startswith("out_")} == {f"out_{name}" for name in outputs}
    for name, value in outputs.items():
        np.testing.assert_allclose(value, oracle[f"out_{name}"], rtol=0, atol=atol, err_msg=name)


def test_clip_with_hugging_face_keys(oracles):
    oracle, weights = load(oracles, "golden_clip")
    common = {"activation": "quick_gelu", "norm_epsilon": 1e-5, "projection_dim": 24}
    image = reference.build(
        vit.Config(**IMAGE, **CLIP_IMAGE, **common),
        {
            "patch_embed": weights.patch_embed("vision_model.embeddings.patch_embedding"),
            "class_token": weights.take("vision_model.embeddings.class_embedding")[None],
            "positions": weights.take("vision_model.embeddings.position_embedding.weight"),
            "pre_norm": weights.norm("vision_model.pre_layrnorm"),
            "blocks": weights.hf_blocks("vision_model.encoder.layers"),
            "norm": weights.norm("vision_model.post_layernorm"),
            "projection": weights.linear("visual_projection"),
        },
    )
    tower = reference.build(
        text.Config(**TEXT, **common, attention="causal", pool="eos", eos_id=61),
        {
            "token_embed": {"embedding": weights.take("text_model.embeddings.token_embedding.weight")},
            "positions": weights.take("text_model.embeddings.position_embedding.weight"),
            "blocks": weights.hf_blocks("text_model.encoder.layers"),
            "norm": weights.norm("text_model.final_layer_norm"),
            "projection": weights.linear("text_projection"),
        },
    )
    scale = np.exp(weights.take("logit_scale"))

    @jax.jit
    def outputs(pixels, ids):
        image_embeds, text_embeds = norm.l2_normalize(image(pixels)), norm.l2_normalize(tower(ids))
        return {
            "image_embeds": image_embeds,
            "text_embeds": text_embeds,
            "logits_per_image": scale * image_embeds @ text_embeds.T,
            "vision_last_hidden": image.hidden(pixels),
            "text_last_hidden": tower.encode(ids),
        }

    compare(oracle, outputs(images(oracle), tokens(oracle)), weights)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_with_openai_keys(oracles, activation):
    oracle, weights = load(oracles, f"golden_clip_openai_keys_{activation.replace('_', '')}")
    common = {"activation": activation, "norm_epsilon": 1e-5, "projection_dim": 24}
    image = reference.build(
        vit.Config(**IMAGE | {"mlp_dim": 192}, **CLIP_IMAGE, **common),
        {
            "patch_embed": weights.patch_embed("visual.conv1"),
            "class_token": weights.take("visual.class_embedding")[None],
            "positions": weights.take("visual.positional_embedding"),
            "pre_norm": weights.norm("visual.ln_pre"),
            "blocks": weights.openai_blocks("visual.transformer.resblocks"),
            "norm": weights.norm("visual.ln_post"),
            "projection": {"kernel": weights.take("visual.proj")},
        },
    )
    tower = reference.build(
        text.Config(**TEXT | {"mlp_dim": 128}, **common, attention="causal", pool="argmax"),
        {
            "token_embed": {"embedding": weights.take("token_embedding.weight")},
            "positions": weights.take("positional_embedding"),
            "blocks": weights.openai_blocks("transformer.resblocks"),
            "norm": weights.norm("ln_final"),
            "projection": {"kernel": weights.take("text_projection")},
        },
    )
    weights.take("logit_scale")
    outputs = jax.jit(lambda pixels, ids: {"image": image(pixels), "text": tower(ids)})
    compare(oracle, outputs(images(oracle), tokens(oracle)), weights)


def test_siglip(oracles):
    oracle, weights = load(oracles, "golden_siglip")
    image = reference.build(
        vit.Config(**IMAGE, pool="map"),
        {
            "patch_embed": weights.patch_embed("vision_model.embeddings.patch_embedding"),
            "positions": weights.take("vision_model.embeddings.position_embedding.weight"),
            "blocks": weights.hf_blocks("vision_model.encoder.layers"),
            "norm": weights.norm("vision_model.post_layernorm"),
            "head": {
                "probe": weights.take("vision_model.head.probe")[0],
                "attention": weights.fused_attention("vision_model.head.attention"),
                "norm": weights.norm("vision_model.head.layernorm"),
                "mlp": weights.mlp("vision_model.head.mlp"),
            },
        },
    )
    tower = reference.build(
        text.Config(**TEXT, pool="last", projection_dim=48, projection_bias="learned"),
        {
            "token_embed": {"embedding": weights.take("text_model.embeddings.token_embedding.weight")},
            "positions": weights.take("text_model.embeddings.position_embedding.weight"),
            "blocks": weights.hf_blocks("text_model.encoder.layers"),
            "norm": weights.norm("text_model.final_layer_norm"),
            "projection": weights.linear("text_model.head"),
        },
    )
    scale, bias = np.exp(weights.take("logit_scale")), weights.take("logit_bias")

    @jax.jit
    def outputs(pixels, ids):
        pooled = image(pixels)
        image_embeds, text_embeds = norm.l2_normalize(pooled), norm.l2_normalize(tower(ids))
        return {
            "image_embeds": image_embeds,
            "text_embeds": text_embeds,
            "logits_per_image": scale * image_embeds @ text_embeds.T + bias,
            "vision_last_hidden": image.encode(pixels),
            "vision_pooled": pooled,
        }

    compare(oracle, outputs(images(oracle), tokens(oracle)), weights)


@pytest.mark.parametrize("name", ["golden_vit", "golden_vit_interp"])
def test_vit_at_its_own_and_at_another_resolution(oracles, name):
    oracle, weights = load(oracles, name)
    model = reference.build(
        vit.Config(
            **IMAGE,
            pool="cls",
            class_token="positioned",
            activation="gelu",
            norm_epsilon=1e-12,
            representation_dim=48,
        ),
        {
            "patch_embed": weights.patch_embed("embeddings.patch_embeddings.projection"),
            "class_token": weights.take("embeddings.cls_token")[0],
            "positions": weights.take("embeddings.position_embeddings")[0],
            "blocks": weights.hf_vit_blocks("layers"),
            "norm": weights.norm("layernorm"),
            "representation": weights.linear("pooler.dense"),
        },
    )
    outputs = jax.jit(lambda pixels: {"last_hidden": model.encode(pixels), "pooled": model(pixels)})(images(oracle))
    compare(oracle, {key: value for key, value in outputs.items() if f"out_{key}" in oracle}, weights)


@pytest.mark.parametrize("pool", ["gap", "map", "tok"])
def test_big_vision_vit(oracles, pool):
    check_big_vision_vit(oracles, pool, jnp.float32, 1e-4)


def test_float64_stays_float64_to_the_end(oracles):
    with jax.enable_x64(True):
        check_big_vision_vit(oracles, "gap", jnp.float64, 1e-9)


def check_big_vision_vit(oracles, pool, dtype, atol):
    oracle, weights = load(oracles, f"golden_bv_vit_{pool}")
    fields = {
        "gap": {"pool": "gap", "positions": "sincos2d"},
        "map": {"pool": "map"},
        "tok": {"pool": "cls", "class_token": "unpositioned"},
    }[pool]
    params = {
        "patch_embed": weights.flax_layer("embedding"),
        "blocks": weights.flax_blocks("Transformer/encoderblock"),
        "norm": weights.flax_layer("Transformer/encoder_norm", "scale"),
    }
    params["patch_embed"]["kernel"] = params["patch_embed"]["kernel"].reshape(-1, 48)
    if pool != "gap":
        params["positions"] = weights.take("pos_embedding")[0]
    if pool == "tok":
        params["class_token"] = weights.take("cls")[0]
    if pool == "map":
        params["head"] = {
            "probe": weights.take("MAPHead_0/probe")[0],
            "attention": weights.flax_attention("MAPHead_0/MultiHeadDotProductAttention_0"),
            "norm": weights.flax_layer("MAPHead_0/LayerNorm_0", "scale"),
            "mlp": weights.flax_mlp("MAPHead_0/MlpBlock_0"),
        }
    model = reference.build(vit.Config(**IMAGE, **fields), params, dtype)
    classifier = weights.flax_layer("head")

    @jax.jit
    def outputs(pixels):
        pooled = model(pixels)
        logits = pooled @ classifier["kernel"] + classifier["bias"]
        return {"pre_logits": pooled, "logits": logits, "encoded": model.encode(pixels)}

    compare(oracle, outputs(jnp.asarray(oracle["in_image_nhwc"], dtype)), weights, atol)
