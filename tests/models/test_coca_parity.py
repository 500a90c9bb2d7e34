"""CoCa imported from open_clip computes what open_clip computed, and goes back bit for bit. Tolerance 1e-4, as in test_parity."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.golden import Golden, check, towers
from vlm_jax import convert, imported
from vlm_jax.errors import InputError
from vlm_jax.losses import contrastive, language
from vlm_jax.models.convert import files, open_clip, pretrained
from vlm_jax.ops import norm
from vlm_jax.systems import coca

LIMIT = 1e-4


@pytest.mark.parametrize("name", ["openclip", pytest.param("correctmask", marks=pytest.mark.slow), "cascade"])
def test_coca_of_open_clip(oracles, tmp_path, name):
    """Features, tokens, logits and both losses, at every token of the text.

    With the correct mask open_clip also hides padding from padding, which the paper does not say and nothing depends on: its rows are
    compared with the legacy mask only.
    """
    golden = Golden(oracles, f"golden_coca_{name}")
    found = pretrained.load(golden.open_clip(tmp_path / "coca"))
    image, words, scalars = towers(found)
    tokens = golden.tokens

    @jax.jit
    def outputs(pixels, tokens):
        pooled, context = image.both(pixels)
        embedding, hidden = words.both(tokens)
        decoded = words.decode(hidden[:, :-1], context)
        image_features, text_features = norm.l2_normalize(image.project(pooled)), norm.l2_normalize(embedding)
        labels = tokens[:, 1:]
        caption, count = language.cross_entropy(decoded, words.head_kernel(), labels, (labels != 0).astype(jnp.float32))
        scale = jnp.exp(scalars["log_scale"])
        return {
            "image_features": image_features,
            "image_embs": context,
            "text_features": text_features,
            "text_token_embs": hidden,
            "logits": words.logits(decoded),
            "logit_scale": scale,
            "loss_contrastive_w1": contrastive.softmax(image_features, text_features, scale),
            "loss_caption_w2": 2 * caption / count,
        }

    got = {key: np.asarray(x) for key, x in outputs(golden.images, tokens).items()}
    if name != "openclip":
        for key in ("text_token_embs", "logits"):
            shown = np.asarray(tokens)[:, : got[key].shape[1]] != 0
            got[key], golden.outputs[key] = got[key][shown], golden.outputs[key][shown]
    differences = golden.differences(got)
    assert max(differences.values()) < LIMIT, differences
    check(found, golden.weights)
    made, contents = open_clip.write(dataclasses.replace(found.layout, table=()))
    assert (made.image, made.text) == (found.layout.image, found.layout.text)
    assert made.to_theirs(found.params).keys() == golden.weights.keys()
    assert contents[open_clip.NAME]["model_cfg"]["vision_cfg"].items() >= golden.config["vision_cfg"].items()
    assert (found.layout.family, found.layout.text.class_mask) == ("coca", "legacy" if name == "openclip" else "correct")


@pytest.mark.parametrize(("size", "dim", "depth", "width", "patch"), [("B-32", 512, 12, 768, 32), ("L-14", 768, 24, 1024, 14)])
def test_the_published_configurations(size, dim, depth, width, patch):
    words = {"context_length": 76, "vocab_size": 49408, "width": dim, "heads": dim // 64, "layers": 12}
    vision = {"image_size": 224, "layers": depth, "width": width, "patch_size": patch}
    model = {
        "embed_dim": dim,
        "vision_cfg": vision | {"attentional_pool": True, "attn_pooler_heads": 8, "output_tokens": True},
        "text_cfg": words | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": words | {"attn_pooler_heads": 8},
        "custom_text": True,
    }
    found = open_clip.parse({"model_cfg": model}, ())
    image, text = found.image, found.text
    assert (image.pool, image.queries, image.width, image.tower.depth, image.tower.post_norm) == ("single", 256, dim, depth, "none")
    assert (text.depth, text.decoder_depth, text.length, text.class_mask, text.activation) == (12, 12, 76, "legacy", "gelu")
    system = imported.system_of(found)
    assert isinstance(system, coca.Coca) and system.mean == found.preprocessing.mean
    made, contents = open_clip.write(found)
    assert (made.image, made.text, made.preprocessing) == (image, text, found.preprocessing)
    assert contents[open_clip.NAME]["model_cfg"]["vision_cfg"].items() >= model["vision_cfg"].items()
    with pytest.raises(InputError, match="open_clip's decoder has gelu"):
        open_clip.write(dataclasses.replace(found, text=dataclasses.replace(text, norm_epsilon=1e-6)))
    with pytest.raises(InputError, match=r"image\.tower"):
        open_clip.write(dataclasses.replace(found, image=dataclasses.replace(image, tower=dataclasses.replace(image.tower, registers=2))))
    with pytest.raises(InputError, match="decoder always has 4 times its width"):
        open_clip.write(dataclasses.replace(found, text=dataclasses.replace(text, mlp_dim=2 * dim)))
    changed = (("text_cfg", "no_causal_mask", True), ("text_cfg", "proj_bias", True), ("vision_cfg", "norm_kwargs", {"eps": 1e-6}))
    for part, field, value in changed:
        with pytest.raises(InputError, match=rf"{part}\.{field} .* is not supported"):
            open_clip.parse({"model_cfg": model | {part: model[part] | {field: value}}}, ())
    like = found.like()
    assert like["text/positions"].shape == (77, dim) and like["image/pool/attention/key/kernel"].shape == (width, dim)


def test_what_was_imported_is_exported_to_open_clip_bit_for_bit(oracles, tmp_path):
    golden = Golden(oracles, "golden_coca_openclip")
    source = imported.load(str(golden.open_clip(tmp_path / "coca")))
    assert source.config.data.tokenizer.pad == "zero"
    convert.export(source, tmp_path / "out", "open_clip")
    weights = files.read(tmp_path / "out" / "open_clip_model.safetensors")
    assert weights.keys() == golden.weights.keys()
    assert all(np.array_equal(weights[key], x) for key, x in golden.weights.items())
    assert pretrained.load(tmp_path / "out").layout.text == source.config.system.text
    with pytest.raises(InputError, match="transformers has no CoCa"):
        convert.export(source, tmp_path / "hf", "hf")
