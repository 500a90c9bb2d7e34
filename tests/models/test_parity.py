"""Models imported from files in the layout of their codebase compute what the codebase computed, and go back bit for bit.

Tolerance 1e-4: float32 through two blocks, another order of sums.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import reference
from tests.models.golden import Golden, check, towers
from vlm_jax.models.convert import big_vision, files, hugging_face, mapping, open_clip, pretrained
from vlm_jax.ops import norm
from vlm_jax.training import tree

LIMIT = 1e-4


def below_limit(differences):
    assert max(differences.values()) < LIMIT, differences


def test_torch_cannot_be_imported():
    with pytest.raises(ImportError):
        import torch  # noqa: F401


def test_clip_of_hugging_face(oracles, tmp_path):
    golden = Golden(oracles, "golden_clip")
    found = pretrained.load(golden.hugging_face(tmp_path / "clip", "clip"))
    image, words, scalars = towers(found)

    @jax.jit
    def outputs(pixels, ids):
        image_embeds, text_embeds = norm.l2_normalize(image(pixels)), norm.l2_normalize(words(ids))
        return {
            "image_embeds": image_embeds,
            "text_embeds": text_embeds,
            "logits_per_image": jnp.exp(scalars["log_scale"]) * image_embeds @ text_embeds.T,
            "vision_last_hidden": image.hidden(pixels),
            "text_last_hidden": words.encode(ids),
        }

    below_limit(golden.differences(outputs(golden.images, golden.tokens)))
    check(found, golden.weights)


def test_pixels_that_make_no_whole_patch_are_left_out_as_by_the_convolution(oracles, tmp_path):
    """The golden model for images of 35 pixels, whose first 32 are the golden ones; it is written with that size again."""
    golden = Golden(oracles, "golden_clip")
    golden.config["vision_config"]["image_size"] = 35
    found = pretrained.load(golden.hugging_face(tmp_path / "clip", "clip"))
    image, _, _ = towers(found)
    pixels = np.pad(golden.images, ((0, 0), (0, 3), (0, 3), (0, 0)), constant_values=9.0)
    unit = jax.jit(lambda pixels: norm.l2_normalize(image(pixels)))(pixels)
    np.testing.assert_allclose(unit, golden.outputs["image_embeds"], atol=LIMIT)
    made, contents = hugging_face.write(dataclasses.replace(found.layout, text=dataclasses.replace(found.layout.text, eos_id=63)))
    assert made.image == found.layout.image and contents["config.json"]["vision_config"]["image_size"] == 35


@pytest.mark.parametrize("layout", ["flat", "custom_text"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_of_openai_and_open_clip(oracles, tmp_path, activation, layout):
    golden = Golden(oracles, f"golden_clip_openai_keys_{activation.replace('_', '')}")
    more = {"quick_gelu": activation == "quick_gelu"}
    if layout == "custom_text":
        more["custom_text"] = True
        own = ("positional_embedding", "text_projection", "token_embedding", "transformer", "ln_final")
        golden.weights = {f"text.{key}" if key.startswith(own) else key: x for key, x in golden.weights.items()}
    found = pretrained.load(golden.open_clip(tmp_path / "clip", **more))
    image, words, _ = towers(found)
    outputs = jax.jit(lambda pixels, ids: {"image": image(pixels), "text": words(ids)})
    below_limit(golden.differences(outputs(golden.images, golden.tokens)))
    check(found, golden.weights)
    assert found.layout.preprocessing.mean == (0.5, 0.4, 0.3)


def test_a_sigmoid_model_with_the_own_towers_of_open_clip(oracles, tmp_path):
    """Its built-in ViT trained with the sigmoid loss: CLIP's names and a bias of the logits."""
    golden = Golden(oracles, "golden_clip_openai_keys_gelu")
    golden.weights["logit_bias"] = np.float32(-9.5)
    found = pretrained.load(golden.open_clip(tmp_path / "clip", init_logit_bias=-10))
    image, words, scalars = towers(found)
    outputs = jax.jit(lambda pixels, ids: {"image": image(pixels), "text": words(ids)})
    below_limit(golden.differences(outputs(golden.images, golden.tokens)))
    assert (found.layout.family, float(scalars["bias"])) == ("siglip", -9.5)
    check(found, golden.weights)
    made, contents = open_clip.write(found.layout)
    assert contents[open_clip.NAME]["model_cfg"]["init_logit_bias"] == -10 and "custom_text" not in contents[open_clip.NAME]["model_cfg"]
    assert made.to_theirs(found.params).keys() == golden.weights.keys()


def test_clip_with_a_modified_resnet(oracles, tmp_path):
    golden = Golden(oracles, "golden_clip_resnet")
    found = pretrained.load(golden.open_clip(tmp_path / "clip", quick_gelu=True))  # as OpenAI trained them
    image, words, _ = towers(found)

    @jax.jit
    def outputs(pixels, ids):
        stem, _ = image.stem(pixels, "stored")
        means = {"stem_mean": stem.mean((1, 2)), "layer1_mean": image.stage1(stem, "stored")[0].mean((1, 2))}
        return means | {"image": image(pixels), "text": words(ids)}

    below_limit(golden.differences(outputs(golden.images, golden.tokens)))
    assert found.layout.image.num_heads == int(golden.oracle["heads"])
    check(found, {key: x for key, x in golden.weights.items() if not key.endswith("num_batches_tracked")})


def siglip_outputs(golden, found):
    image, words, scalars = towers(found)

    @jax.jit
    def outputs(pixels, ids):
        pooled = image(pixels)
        image_embeds, text_embeds = norm.l2_normalize(pooled), norm.l2_normalize(words(ids))
        return {
            "image_embeds": image_embeds,
            "text_embeds": text_embeds,
            "logits_per_image": jnp.exp(scalars["log_scale"]) * image_embeds @ text_embeds.T + scalars["bias"],
            "vision_last_hidden": image.encode(pixels),
            "vision_pooled": pooled,
        }

    return outputs(golden.images, golden.tokens)


def test_siglip_of_hugging_face(oracles, tmp_path):
    golden = Golden(oracles, "golden_siglip")
    found = pretrained.load(golden.hugging_face(tmp_path / "siglip", "siglip"))
    below_limit(golden.differences(siglip_outputs(golden, found)))
    check(found, golden.weights)


def test_siglip_through_the_names_of_open_clip_and_timm(oracles, tmp_path):
    """The same model written for open_clip, and read again."""
    golden = Golden(oracles, "golden_siglip")
    found = pretrained.load(golden.hugging_face(tmp_path / "siglip", "siglip"))
    made, contents = open_clip.write(found.layout)
    weights = made.to_theirs(found.params)
    trunk = {re.sub(r"blocks\.\d", "block", name.removeprefix("visual.trunk.")) for name in weights if name.startswith("visual.trunk.")}
    layers = {"patch_embed.proj", "norm", *(f"attn_pool.{name}" for name in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2"))}
    layers |= {f"block.{name}" for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")}
    assert trunk == {"pos_embed", "attn_pool.latent"} | {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert weights["visual.trunk.pos_embed"].shape == (1, 16, 48) and weights["visual.trunk.attn_pool.latent"].shape == (1, 1, 48)
    assert weights["visual.trunk.blocks.1.attn.qkv.weight"].shape == (144, 48)
    assert weights["visual.trunk.attn_pool.kv.weight"].shape == (96, 48)
    assert weights["text.text_projection.weight"].shape == (48, 32)
    assert weights["logit_bias"].shape == ()
    folder = tmp_path / "open_clip"
    folder.mkdir()
    files.write_safetensors(folder / "open_clip_model.safetensors", weights)
    for name, content in contents.items():
        files.write_json(folder / name, content)
    again = pretrained.load(folder)
    below_limit(golden.differences(siglip_outputs(golden, again)))
    assert again.layout.family == "siglip" and again.layout.preprocessing == found.layout.preprocessing
    check(again, weights)


@pytest.mark.parametrize("name", ["golden_vit", "golden_vit_interp"])
@pytest.mark.parametrize("spelling", ["disk", "memory"])
def test_vit_of_hugging_face(oracles, tmp_path, name, spelling):
    golden = Golden(oracles, name)
    if spelling == "disk":
        golden.weights = {on_disk(key): x for key, x in golden.weights.items()}
    found = pretrained.load(golden.hugging_face(tmp_path / "vit", "vit"))
    image, _, _ = towers(found)
    outputs = jax.jit(lambda pixels: {"last_hidden": image.encode(pixels), "pooled": image(pixels)})(golden.images)
    below_limit(golden.differences({key: x for key, x in outputs.items() if key in golden.outputs}))
    check(found, golden.weights)


def deit_outputs(golden, found):
    image, _, others = towers(found)
    heads = others["heads"]

    @jax.jit
    def outputs(pixels):
        tokens = image.norm(image.hidden(pixels))
        logits = {
            name: tokens[:, i] @ heads[head]["kernel"] + heads[head]["bias"]
            for i, (name, head) in enumerate([("cls_logits", "cls_classifier"), ("distillation_logits", "distillation_classifier")])
        }
        return logits | {"logits": sum(logits.values()) / 2}

    return outputs(golden.images)


@pytest.mark.parametrize("spelling", ["disk", "memory"])
def test_deit_of_hugging_face_with_its_heads(oracles, tmp_path, spelling):
    golden = Golden(oracles, "golden_deit")
    if spelling == "disk":
        golden.weights = {on_disk(key): x for key, x in golden.weights.items()}
    found = pretrained.load(golden.hugging_face(tmp_path / "deit", "deit"))
    below_limit(golden.differences(deit_outputs(golden, found)))
    assert found.layout.heads == {"cls_classifier": 10, "distillation_classifier": 10}

    # The position of the distillation token has moved into the token; from there on, round trips are bit-equal.
    golden.weights = found.layout.to_theirs(found.params)
    assert not golden.weights["deit.embeddings.position_embeddings"][0, 1].any()
    again = pretrained.load(golden.hugging_face(tmp_path / "again", "deit"))
    check(again, golden.weights)
    below_limit(golden.differences(deit_outputs(golden, again)))


def on_disk(key):
    """The names of transformers 4, which are those on disk."""
    for memory, disk in (
        (".o_proj", ".output.dense"),
        (".attention.q_proj", ".attention.attention.query"),
        (".attention.k_proj", ".attention.attention.key"),
        (".attention.v_proj", ".attention.attention.value"),
        (".mlp.fc1", ".intermediate.dense"),
        (".mlp.fc2", ".output.dense"),
    ):
        key = key.replace(memory, disk)
    return re.sub(r"^(deit\.)?layers\.", r"\1encoder.layer.", key)


@pytest.mark.parametrize(
    ("pool", "spelling"),
    [("gap", "today"), ("map", "today"), ("tok", "today"), ("map", "scanned"), ("tok", "with the optimizer")],
)
def test_vit_of_big_vision(oracles, tmp_path, pool, spelling):
    golden = Golden(oracles, f"golden_bv_vit_{pool}")
    weights = dict(golden.weights)
    if spelling == "scanned":
        layers = {key for key in weights if "encoderblock_0" in key}
        stacked = {
            key.replace("_0/", "/", 1): np.stack([weights.pop(key), weights.pop(key.replace("encoderblock_0", "encoderblock_1"))])
            for key in layers
        }
        weights |= stacked
    if spelling == "with the optimizer":
        weights = {f"params/{key}": x for key, x in weights.items()} | {"opt/0/count": np.zeros((), np.int32)}
    np.savez(tmp_path / "vit.npz", **weights)
    found = pretrained.load(tmp_path / "vit.npz", image_size=32)
    image, _, others = towers(found)
    head = others["heads"]["head"]

    @jax.jit
    def outputs(pixels):
        pooled = image(pixels)
        logits = pooled @ head["kernel"] + head["bias"]
        return {"pre_logits": pooled, "logits": logits, "encoded": image.encode(pixels)}

    below_limit(golden.differences(outputs(golden.images)))
    check(found, golden.weights)


def test_float64_stays_float64_to_the_end(oracles):
    golden = Golden(oracles, "golden_bv_vit_gap")
    weights = reference.weights(golden.oracle)
    found = big_vision.read(weights, 32)
    with jax.enable_x64(True):
        like = {path: jax.ShapeDtypeStruct(x.shape, np.float64) for path, x in found.like().items()}
        params = mapping.to_ours(found.table, weights, like)
        nested = tree.unflatten({path: jnp.asarray(x) for path, x in params.items()})
        image = reference.build(found.image, nested["image"], jnp.float64)
        pooled = jax.jit(image)(jnp.asarray(golden.oracle["in_image_nhwc"], jnp.float64))
        np.testing.assert_allclose(pooled, golden.outputs["pre_logits"], rtol=0, atol=1e-9)


def test_two_towers_of_big_vision_are_siglip_by_other_names(oracles, tmp_path):
    golden = Golden(oracles, "golden_siglip")
    found = pretrained.load(golden.hugging_face(tmp_path / "siglip", "siglip"))
    image, words = found.layout.image, found.layout.text
    table = [
        *mapping.below(big_vision.image_table(image), "img/", "image/"),
        *mapping.below(big_vision.text_table(words), "txt/", "text/"),
        ("t", "log_scale", mapping.NUMBER),
        ("b", "bias", mapping.NUMBER),
    ]
    weights = mapping.to_theirs(table, found.params)
    assert weights["img/MAPHead_0/MultiHeadDotProductAttention_0/out/kernel"].shape == (4, 12, 48)
    assert weights["txt/pos_embedding"].shape == (1, 8, 32)
    np.savez(tmp_path / "siglip.npz", **weights)
    again = pretrained.load(tmp_path / "siglip.npz")
    below_limit(golden.differences(siglip_outputs(golden, again)))
    check(again, weights)
