"""CLIP and SigLIP: what they compute, what they bound, what they refuse."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlm_jax.data import pipeline
from vlm_jax.errors import InputError
from vlm_jax.losses import contrastive
from vlm_jax.models import convnet, text, vit
from vlm_jax.ops import positions, tokens
from vlm_jax.systems import base, clip, cyclip, siglip, two_tower
from vlm_jax.training import sharding, tree

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
def test_features_are_those_that_the_projection_turns_into_the_embedding(cls):
    model = cls(image=IMAGE, text=TEXT).build(rngs=nnx.Rngs(0))
    image = _batch()["pairs"]["image"]
    features = model.image_features(image)
    assert features.shape == (8, IMAGE.width)
    projected = np.asarray(features @ model.image.projection.kernel[...])
    unit = projected / np.linalg.norm(projected, axis=-1, keepdims=True)
    np.testing.assert_allclose(model.embed_image(image), unit, atol=1e-5)


@pytest.mark.parametrize("cls", [clip.Clip, siglip.Siglip])
def test_chunks_change_neither_loss_nor_gradients(cls):
    """Scale and bias included: added up over chunks, as an accumulation of small batches does, theirs would be four times as large."""
    with jax.enable_x64(True):
        system = cls(image=IMAGE, text=TEXT)
        graphdef, params, rest = nnx.split(system.build(rngs=nnx.Rngs(0)), nnx.Param, ...)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params)

        def loss(params, batch, microbatches):
            return system.objective(nnx.merge(graphdef, params, rest), batch, {}, _context(microbatches)).loss

        grad = jax.jit(jax.value_and_grad(loss), static_argnums=2)
        whole, chunked = grad(params, _batch(), 1), grad(params, _batch(), 4)
    assert np.abs(whole[1]["log_scale"][...]) > 1e-3
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-10 * max(np.abs(np.asarray(a)).max(), 1e-2)


@pytest.mark.slow
def test_eight_chunks_of_512_take_the_memory_of_one():
    image = vit.Config(image_size=32, patch_size=8, width=32, depth=2, mlp_dim=128, num_heads=2, projection_dim=8)
    words = dataclasses.replace(TEXT, width=32, depth=2, mlp_dim=128, length=16)
    system = clip.Clip(image=image, text=words)
    graphdef, params, rest = nnx.split(system.build(rngs=nnx.Rngs(0)), nnx.Param, ...)

    def temporary(size, microbatches):
        def loss(params, batch):
            return system.objective(nnx.merge(graphdef, params, rest), {"pairs": batch}, {}, _context(microbatches)).loss

        images = jax.ShapeDtypeStruct((size, 32, 32, 3), jnp.uint8)
        batch = {"image": images, "tokens": jax.ShapeDtypeStruct((size, 16), jnp.int32)}
        return jax.jit(jax.grad(loss)).lower(params, batch).compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096, 8) <= 1.25 * temporary(512, 1)


@pytest.mark.parametrize("cls", [clip.Clip, siglip.Siglip])
@pytest.mark.parametrize("rule", ["same_example", "same_text"])
def test_rows_that_are_the_same_are_no_negatives(cls, rule):
    batch = _batch()
    same = jnp.asarray([0, 1, 2, 1, 4, 5, 6, 1])  # rows 1, 3 and 7
    batch["pairs"]["example"] = same + 100
    batch["pairs"]["tokens"] = batch["pairs"]["tokens"][same]
    bias = {} if cls is clip.Clip else {"initial_bias": -3.0}
    system = cls(image=IMAGE, text=TEXT, not_negatives=rule, **bias)
    model = system.build(rngs=nnx.Rngs(0))
    got = system.objective(model, batch, {}, _context()).loss
    pairs = model.embed_image(batch["pairs"]["image"]), model.embed_text(batch["pairs"]["tokens"])
    fn = contrastive.softmax if cls is clip.Clip else functools.partial(contrastive.sigmoid, bias=model.bias[...])
    np.testing.assert_allclose(got, fn(*pairs, scale=model.scale, ids=same), rtol=1e-5)
    assert abs(float(fn(*pairs, scale=model.scale)) - float(got)) > 1e-3


def test_numbers_of_texts_differ_where_any_token_differs():
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32000, (2000, 6)))
    numbers = np.asarray(two_tower.numbers_of_texts(jnp.concatenate([tokens, tokens[:, ::-1], tokens])))
    assert len(np.unique(numbers[:4000])) == 4000
    np.testing.assert_array_equal(numbers[:2000], numbers[4000:])


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
        ({"length": 7}, "length 7 is more than system.text.length 6"),
        ({"image_size": 32}, "size 32 is not system.image.image_size 16"),
        ({"eos_id": 2}, "eos_id 1 is not the tokenizer's end token 2"),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(change, message):
    system = clip.Clip(image=IMAGE, text=TEXT)
    system.check({"pairs": DATA})
    with pytest.raises(InputError, match=message):
        system.check({"pairs": dataclasses.replace(DATA, **change)})


def test_shorter_texts_fit_the_model():
    clip.Clip(image=IMAGE, text=TEXT).check({"pairs": dataclasses.replace(DATA, length=4)})


PATCHES = dataclasses.replace(IMAGE, patch_size=4, class_token="unpositioned", pool="cls")
DROPS = [tokens.Drop(keep=0.5), tokens.Drop(keep=0.25, rule="grid")]


def test_training_drops_patches_and_embeddings_for_evaluation_see_all():
    system = clip.Clip(image=PATCHES, text=TEXT, image_tokens=tokens.Drop(keep=0.5))
    model, batch, context = system.build(rngs=nnx.Rngs(0)), _batch(), _context()
    keep = two_tower.kept_patches(model, 8, context)
    assert keep.shape == (8, 8)

    @jax.jit
    def run(pixels):
        trained, _, _ = two_tower.embed(model, batch, context)
        return trained, model.embed_image(pixels, keep), model.embed_image(pixels)

    trained, dropped, whole = run(batch["pairs"]["image"])
    np.testing.assert_allclose(trained, dropped, atol=1e-5)
    assert not np.allclose(trained, whole, atol=1e-2)
    another = two_tower.kept_patches(model, 8, dataclasses.replace(context, key=jax.random.key(1)))
    assert (another != keep).any(axis=1).all()
    everything = clip.Clip(image=PATCHES, text=TEXT).build(rngs=nnx.Rngs(0))
    assert two_tower.kept_patches(everything, 8, context) is None


@pytest.mark.parametrize(("cls", "drop"), [(clip.Clip, DROPS[0]), (siglip.Siglip, DROPS[1])])
def test_with_dropped_patches_chunks_and_devices_change_no_gradient(cls, drop):
    """float64, so that a difference is one of the patches or of the mathematics."""
    with jax.enable_x64(True):
        system = cls(image=PATCHES, text=TEXT, image_tokens=drop)
        graphdef, params, rest = nnx.split(system.build(rngs=nnx.Rngs(0)), nnx.Param, ...)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params)

        def loss(params, batch, microbatches):
            return system.objective(nnx.merge(graphdef, params, rest), batch, {}, _context(microbatches)).loss

        batch = jax.device_get(_batch(64))
        want = jax.jit(jax.value_and_grad(loss), static_argnums=2)(params, batch, 1)
        got = [jax.jit(jax.value_and_grad(loss), static_argnums=2)(params, batch, 8)]
        mesh = sharding.Mesh(data=4, fsdp=2).make()
        with jax.set_mesh(mesh):
            step = jax.jit(jax.value_and_grad(loss), static_argnums=2, in_shardings=(None, sharding.batch_sharding(mesh)))
            got.append(step(params, batch, 8))
        for other in got:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), jax.device_get(other), want)


@pytest.mark.slow
def test_dropped_patches_add_no_collective():
    """Of both towers' embeddings and their gradients, on eight devices with eight chunks."""
    mesh = sharding.Mesh(data=4, fsdp=2).make()

    def collectives(drop):
        system = clip.Clip(image=PATCHES, text=TEXT, image_tokens=drop)
        graphdef, params, rest = nnx.split(system.build(rngs=nnx.Rngs(0)), nnx.Param, ...)

        def loss(params, batch):
            image, text, _ = two_tower.embed(nnx.merge(graphdef, params, rest), batch, _context(8))
            return jnp.square(image - text * text).sum()

        with jax.set_mesh(mesh):
            fn = jax.jit(jax.grad(loss), in_shardings=(None, sharding.batch_sharding(mesh)))
            program = fn.lower(params, jax.device_get(_batch(64))).compile().as_text()
        return sorted(set(re.findall(r"all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter", program)))

    assert collectives(DROPS[0]) == collectives(tokens.Drop()) == ["all-reduce"]


@pytest.mark.parametrize(
    ("image", "drop", "message"),
    [
        (convnet.Config(image_size=16, projection_dim=8), DROPS[0], r"system.image_tokens.keep 0.5: convnet has no patches"),
        (IMAGE, tokens.Drop(keep=0.1), "keep 0.1: no patch of a grid of 2 x 2 would stay"),
        (dataclasses.replace(IMAGE, image_size=24), DROPS[1], "cells of 2 x 2 patches do not divide a grid of 3 x 3"),
    ],
)
def test_patches_that_cannot_be_dropped_are_refused(image, drop, message):
    clip.Clip(image=image, text=TEXT)
    with pytest.raises(InputError, match=message):
        clip.Clip(image=image, text=TEXT, image_tokens=drop)


def test_weights_of_another_image_size_and_text_length_are_adapted_by_their_towers():
    source = clip.Clip(image=IMAGE, text=TEXT)
    weights = tree.flatten(nnx.to_pure_dict(nnx.state(source.build(rngs=nnx.Rngs(0)))))
    target = clip.Clip(image=dataclasses.replace(IMAGE, image_size=32), text=dataclasses.replace(TEXT, length=4))
    adapted = target.adapt(weights)
    want = positions.resize_positions(weights["image/positions"], (2, 2), (4, 4))
    np.testing.assert_array_equal(adapted["image/positions"], want)
    np.testing.assert_array_equal(adapted["text/positions"], weights["text/positions"][:4])
    others = adapted.keys() - {"image/positions", "text/positions"}
    assert adapted.keys() == weights.keys() and all(adapted[path] is weights[path] for path in others)
    assert clip.Clip(image=convnet.Config(image_size=16, projection_dim=8), text=TEXT).adapt(weights).keys() == weights.keys()
    with pytest.raises(InputError, match=r"system\.text\.length 8: the weights have positions for 6 tokens"):
        dataclasses.replace(source, text=dataclasses.replace(TEXT, length=8)).adapt(weights)


def test_towers_of_different_width_are_refused():
    with pytest.raises(InputError, match="output width 16 is not the image tower's 8"):
        clip.Clip(image=IMAGE, text=dataclasses.replace(TEXT, projection_dim=16))


def test_cyclip_adds_weighted_terms_that_leave_the_scale_alone():
    fields = {"image": IMAGE, "text": TEXT}
    plain, model = clip.Clip(**fields), cyclip.Cyclip(**fields).build(rngs=nnx.Rngs(0))
    losses = {
        weights: cyclip.Cyclip(in_modal=weights[0], cross_modal=weights[1], **fields).objective(model, _batch(), {}, _context())
        for weights in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.25, 0.25))
    }
    terms = losses[0.25, 0.25].metrics
    base_loss = plain.objective(model, _batch(), {}, _context()).loss
    for (first, second), found in losses.items():
        want = base_loss + first * terms["in_modal"] + second * terms["cross_modal"]
        np.testing.assert_allclose(found.loss, want, rtol=1e-6)
    assert terms["in_modal"] > 1e-3 and terms["cross_modal"] > 1e-3
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def scale_gradient(system):
        def loss(params):
            return system.objective(nnx.merge(graphdef, params, rest), _batch(), {}, _context()).loss

        return jax.grad(loss)(params)["log_scale"][...]

    np.testing.assert_allclose(scale_gradient(cyclip.Cyclip(**fields)), scale_gradient(plain), rtol=1e-6)
    with pytest.raises(InputError, match=r"system\.cross_modal -1: a weight is not negative"):
        cyclip.Cyclip(cross_modal=-1, **fields)
