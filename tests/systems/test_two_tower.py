"""CLIP and SigLIP: what they compute, what they bound, what they refuse."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlm_jax.data import pipeline
from vlm_jax.errors import InputError
from vlm_jax.losses import contrastive
from vlm_jax.models import text, vit
from vlm_jax.systems import base, clip, siglip

IMAGE = vit.Config(image_size=16, patch_size=8, width=16, depth=1, mlp_dim=32, num_heads=2, projection_dim=8)
TEXT = text.Config(
    vocab_size=32, length=6, width=16, depth=1, mlp_dim=32, num_heads=2, attention="causal", pool="eos", eos_id=1, projection_dim=8
)
DATA = pipeline.Description(
    vocab_size=32, length=6, bos_id=None, eos_id=1, pad_id=0, image_size=16, train_records=10, val_records=2, fingerprint=""
)


def _batch(size=8):
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.integers(0, 256, (size, 16, 16, 3), np.uint8))
    tokens = jnp.asarray(rng.integers(2, 32, (size, 6), np.int32).tolist()).at[:, -1].set(1)
    return {"pairs": {"image": image, "tokens": tokens}}


def _context(microbatches=1):
    return base.Context(jax.random.key(0), jnp.int32(0), jnp.int32(10), jnp.float32(1), microbatches)


@pytest.mark.parametrize("cls", [clip.Clip, siglip.Siglip])
def test_objective_is_the_loss_of_the_public_embeddings(cls):
    system = cls(image=IMAGE, text=TEXT)
    model = system.build(rngs=nnx.Rngs(0))
    batch = _batch()
    got = system.objective(model, batch, {}, _context())
    image, words = model.embed_image(batch["pairs"]["image"]), model.embed_text(batch["pairs"]["tokens"])
    if cls is clip.Clip:
        want = contrastive.softmax(image, words, jnp.float32(1 / 0.07), form="formula")
    else:
        want = contrastive.sigmoid(image, words, jnp.float32(10.0), jnp.float32(-10.0), form="formula")
    np.testing.assert_allclose(got.loss, want, rtol=1e-5)
    cosines = image @ words.T
    np.testing.assert_allclose(got.metrics["positive_similarity"], jnp.diagonal(cosines).mean(), atol=1e-5)
    off = (cosines.sum() - jnp.trace(cosines)) / (8 * 7)
    np.testing.assert_allclose(got.metrics["negative_similarity"], off, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(image, axis=-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("cls", [clip.Clip, siglip.Siglip])
def test_chunks_change_neither_loss_nor_gradients(cls):
    system = cls(image=IMAGE, text=TEXT)
    graphdef, params, rest = nnx.split(system.build(rngs=nnx.Rngs(0)), nnx.Param, ...)

    def loss(params, microbatches):
        return system.objective(nnx.merge(graphdef, params, rest), _batch(), {}, _context(microbatches)).loss

    grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    whole, chunked = jax.tree.leaves(grad(params, 1)), jax.tree.leaves(grad(params, 4))
    for a, b in zip(whole, chunked, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_uint8_images_are_normalised_and_floats_are_taken_as_they_are():
    model = clip.Clip(image=IMAGE, text=TEXT).build(rngs=nnx.Rngs(0))
    pixels = _batch()["pairs"]["image"]
    ready = (pixels.astype(jnp.float32) / 255 - jnp.asarray(clip.MEAN)) / jnp.asarray(clip.STD)
    np.testing.assert_allclose(model.embed_image(pixels), model.embed_image(ready), atol=1e-5)


def test_clip_bounds_the_logarithm_of_the_scale():
    (bound,) = clip.Clip(image=IMAGE, text=TEXT, max_scale=50.0).bounds
    assert (bound.pattern, bound.high) == (r"^log_scale$", math.log(50.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 33}, "vocab_size 32 is smaller than the tokenizer's 33"),
        ({"length": 7}, "length 7 is not system.text.length 6"),
        ({"image_size": 32}, "size 32 is not system.image.image_size 16"),
        ({"eos_id": 2}, "eos_id 1 is not the tokenizer's end token 2"),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(change, message):
    system = clip.Clip(image=IMAGE, text=TEXT)
    system.check({"pairs": DATA})
    with pytest.raises(InputError, match=message):
        system.check({"pairs": dataclasses.replace(DATA, **change)})


def test_towers_of_different_width_are_refused():
    with pytest.raises(InputError, match="output width 16 is not the image tower's 8"):
        clip.Clip(image=IMAGE, text=dataclasses.replace(TEXT, projection_dim=16))
