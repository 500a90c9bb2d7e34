"""CoCa: its two losses, exact in chunks, what it writes, what it refuses."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import reference
from vlm_jax.data import pipeline
from vlm_jax.errors import InputError
from vlm_jax.losses import contrastive, language
from vlm_jax.models import attentional, captioner, convnet, generation, vit
from vlm_jax.ops import masks, norm
from vlm_jax.systems import base, coca

TOWER = vit.Config(image_size=16, patch_size=8, width=16, depth=1, mlp_dim=32, num_heads=2, pool="none", loop="unroll")
IMAGE = attentional.Config(tower=TOWER, width=8, num_heads=2, queries=3, projection_dim=8)
TEXT = captioner.Config(
    vocab_size=32, length=7, width=16, depth=1, decoder_depth=1, mlp_dim=32, num_heads=2, context_width=8, projection_dim=8, loop="unroll"
)
SYSTEM = coca.Coca(image=IMAGE, text=TEXT)
DATA = pipeline.Description(
    vocab_size=32, length=6, bos_id=2, eos_id=1, pad_id=0, image_size=16, train_records=10, val_records=2, fingerprint=""
)


def _batch(size=8):
    """Texts of other lengths, so that a mean of means is another number."""
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.integers(0, 256, (size, 16, 16, 3), np.uint8))
    tokens = rng.integers(3, 32, (size, 6))
    tokens[:, 0] = 2
    for row, length in zip(tokens, rng.integers(2, 6, size), strict=True):
        row[length], row[length + 1 :] = 1, 0
    return {"pairs": {"image": image, "tokens": jnp.asarray(tokens, jnp.int32)}}


def _context(microbatches=1):
    return base.Context(jax.random.key(0), jnp.int32(0), jnp.int32(10), jnp.float32(1), microbatches)


def test_the_losses_are_those_of_the_oracle(oracles):
    oracle = np.load(oracles / "coca_loss.npz")
    with jax.enable_x64(True):
        logits, labels = jnp.asarray(oracle["in_cap_logits"]), jnp.asarray(oracle["in_labels"])
        total, count = language.cross_entropy(logits, jnp.eye(logits.shape[-1]), labels, (labels != 0).astype(float))
        image, text = (norm.l2_normalize(jnp.asarray(oracle[name])) for name in ("in_img", "in_txt"))
        pulled = contrastive.softmax(image, text, jnp.exp(jnp.asarray(oracle["in_logit_scale"])))
        weights = SYSTEM.contrastive_weight, SYSTEM.caption_weight
        np.testing.assert_allclose(total / count, oracle["out_caption"], rtol=1e-9)
        np.testing.assert_allclose(pulled, oracle["out_contrastive"], rtol=1e-9)
        np.testing.assert_allclose(weights[0] * pulled + weights[1] * total / count, oracle["out_total"], rtol=1e-9)


def test_the_mask_is_that_of_the_oracle(oracles):
    oracle = np.load(oracles / "coca_mask.npz")
    present = masks.not_padding(jnp.asarray(oracle["in_tokens"]), int(oracle["in_pad_id"]))
    np.testing.assert_array_equal(masks.class_token_last(present)[:, 0], oracle["out_allowed"])


@pytest.mark.parametrize("pool", ["cascade", *(pytest.param(name, marks=pytest.mark.slow) for name in ("parallel", "single"))])
def test_objective_is_the_weighted_losses_of_the_public_methods(pool):
    tower = dataclasses.replace(TOWER, post_norm="none") if pool == "single" else convnet.Config(image_size=16, channels=(4,), depth=(1,))
    image = dataclasses.replace(IMAGE, pool=pool, tower=tower)
    system = dataclasses.replace(SYSTEM, image=image, contrastive_weight=0.5, caption_weight=3.0)
    model, batch = reference.filled(system), _batch()
    pixels, tokens = batch["pairs"]["image"], batch["pairs"]["tokens"]

    @jax.jit
    def outputs(pixels, tokens):
        targets = tokens != 0
        said = model.log_likelihood(pixels[:, None], tokens, targets)
        pulled = contrastive.softmax(model.embed_image(pixels), model.embed_text(tokens), model.scale)
        got = system.objective(model, batch, {}, _context())
        return got.loss, got.metrics, pulled, -said.sum() / targets[:, 1:].sum()

    loss, metrics, pulled, caption = outputs(pixels, tokens)
    np.testing.assert_allclose((metrics["contrastive"], metrics["caption"]), (pulled, caption), rtol=1e-5)
    np.testing.assert_allclose(loss, 0.5 * pulled + 3 * caption, rtol=1e-5)
    assert caption > 1


@pytest.mark.slow
def test_chunks_change_neither_loss_nor_gradients():
    with jax.enable_x64(True):
        graphdef, params, rest = nnx.split(reference.filled(SYSTEM), nnx.Param, ...)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params)

        def loss(params, batch, microbatches):
            return SYSTEM.objective(nnx.merge(graphdef, params, rest), batch, {}, _context(microbatches)).loss

        grad = jax.jit(jax.value_and_grad(loss), static_argnums=2)
        whole, chunked = grad(params, _batch(), 1), grad(params, _batch(), 4)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-10 * max(np.abs(np.asarray(a)).max(), 1e-2)


@pytest.mark.slow
def test_what_is_written_greedily_is_what_the_likelihood_prefers_at_each_token():
    model, batch = reference.filled(SYSTEM), _batch(3)
    pixels = batch["pairs"]["image"][:, None]
    decoding = generation.Decoding(strategy="greedy", max_new_tokens=5)

    @jax.jit
    def write(pixels):
        begin = jnp.full((3, 1), 2)
        found = model.generate(pixels, begin, jnp.ones(3, int), decoding, end_id=1, pad_id=0)
        context = model.image.encode((pixels[:, 0] / 255.0 - jnp.array(model.mean)) / jnp.array(model.std))
        _, hidden = model.text.both(jnp.concatenate([begin, found.tokens], axis=1))
        return found, jax.nn.log_softmax(model.text.logits(model.text.decode(hidden, context)))[:, :-1]

    found, values = write(pixels)
    best, shown = values.argmax(-1), np.arange(5) < np.asarray(found.lengths)[:, None]
    np.testing.assert_array_equal(np.where(shown, best, 0), found.tokens)
    np.testing.assert_allclose(jnp.sum(values.max(-1), axis=1, where=shown), found.log_likelihood, rtol=1e-4)
    with pytest.raises(InputError, match="this model looks at one"):
        model.generate(jnp.repeat(pixels, 2, axis=1), found.tokens[:, :1], jnp.ones(3, int), decoding, end_id=1, pad_id=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 33}, "vocab_size 32 is smaller than the tokenizer's 33"),
        ({"length": 8}, "length 8 is more than system.text.length 7"),
        ({"bos_id": None}, "no begin token"),
        ({"pad_id": 5}, "pad_id 0 is not the tokenizer's padding 5"),
        ({"eos_id": 0}, "0 is also the end token"),
    ],
)
def test_data_that_do_not_fit_are_refused(change, message):
    SYSTEM.check({"pairs": DATA})
    with pytest.raises(InputError, match=re.escape(message)):
        SYSTEM.check({"pairs": dataclasses.replace(DATA, **change)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dataclasses.replace(SYSTEM, caption_weight=-1.0), "caption_weight -1.0"),
        (lambda: dataclasses.replace(SYSTEM, text=dataclasses.replace(TEXT, context_width=0)), "context_width 16 is not"),
        (lambda: dataclasses.replace(IMAGE, tower=dataclasses.replace(TOWER, pool="gap")), "set its pool to 'none'"),
        (lambda: dataclasses.replace(IMAGE, pool="single", queries=1), "at least 2"),
        (lambda: dataclasses.replace(TOWER, pool="gap", post_norm="none"), "set pool to 'none'"),
    ],
)
def test_configurations_that_make_no_model_are_refused(make, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make()
