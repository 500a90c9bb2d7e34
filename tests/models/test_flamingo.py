"""Flamingo: Idefics' golden logits, the language model at the start, causality over images, and a cache that changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import reference
from vlm_jax.errors import InputError
from vlm_jax.layers import gated_cross_attention
from vlm_jax.models import flamingo, generation, lm, resampler, vit

IMAGE = vit.Config(
    image_size=8, patch_size=4, width=8, depth=1, mlp_dim=16, num_heads=2, class_token="positioned", pool="cls", loop="unroll"
)
LM = lm.Config(vocab_size=24, length=24, width=16, depth=3, mlp_dim=32, num_heads=2, bias="none")
CONFIG = flamingo.Config(
    image=IMAGE,
    lm=LM,
    resampler=resampler.Config(width=12, latents=2, depth=1, num_heads=2, head_dim=4, mlp_dim=16, loop="unroll"),
    cross=gated_cross_attention.Config(num_heads=2, head_dim=4, mlp_dim=32),
)
IMAGE_ID, END = CONFIG.image_id, CONFIG.chunk_end_id
TOKENS = jnp.array([[1, IMAGE_ID, 5, 6, END, IMAGE_ID, 7, 8], [3, 4, IMAGE_ID, 9, 9, END, 0, 0]])
LENGTHS = jnp.array([8, 6])
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3), np.uint8)


def filled(config, gates=0.7):
    """The model with weights that are not zero, but for gates of one value."""
    model = reference.filled(config)
    block = model.cross.blocks
    block.attention_gate[...] = jnp.full_like(block.attention_gate[...], gates)
    block.mlp_gate[...] = jnp.full_like(block.mlp_gate[...], gates)
    return model


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("every", "offset", "loop"),
    [(1, 0, "scan"), pytest.param(2, 1, "unroll", marks=slow), pytest.param(3, 2, "scan", marks=slow)],
)
def test_untrained_it_is_the_language_model_to_the_last_bit(every, offset, loop):
    config = dataclasses.replace(CONFIG, every=every, offset=offset, lm=dataclasses.replace(LM, loop=loop))
    model = filled(config, gates=0.0)
    text = jnp.where(TOKENS < LM.vocab_size, TOKENS, 2)
    assert model.cross.blocks.attention_gate[...].shape == (len(range(offset, 3, every)),)

    @jax.jit
    def outputs(images, text):
        return model(images, text), model.lm(text)

    both, alone = outputs(PIXELS, text)
    assert both.shape == (2, 8, 26)
    np.testing.assert_array_equal(both[..., :24], alone)


@pytest.fixture(scope="module")
def found():
    """What one model says in several ways, compiled at once."""
    model = filled(CONFIG)

    @jax.jit
    def outputs(images, others):
        visual = model.visual(images)
        hidden = model.hidden(visual, TOKENS)
        packed = jnp.concatenate([TOKENS[:1], TOKENS[1:, :6]], axis=1)
        of_packed = model.hidden(
            jnp.concatenate([visual[:1], visual[1:, :1]], axis=1),
            packed,
            index=jnp.array([[0, 1, 1, 1, 1, 2, 2, 2, 0, 0, 3, 3, 3, 3]]),
            positions=jnp.array([[*range(8), *range(6)]]),
            segments=(jnp.array([[1] * 8 + [2] * 6]), jnp.array([[1, 1, 2]])),
        )
        padding = jnp.zeros_like(TOKENS), jnp.zeros((2, 2), jnp.int32)
        return {
            "logits": model.logits(hidden),
            "other": model.logits(model.hidden(model.visual(others), TOKENS)),
            "hidden": hidden,
            "packed": of_packed[0],
            "padding": model.hidden(visual, jnp.zeros_like(TOKENS), index=padding[0], segments=padding),
            "of_kept": model(visual, TOKENS),
            "vectors": model.visual_tokens(images[:, 0]) - visual[:, 0].reshape(2, -1),
        }

    return jax.device_get(outputs(PIXELS, np.concatenate([PIXELS[:, :1], 255 - PIXELS[:, 1:]], axis=1)))


def test_an_image_is_seen_from_its_token_on_and_not_before(found):
    before, after = found["logits"], found["other"]
    np.testing.assert_array_equal(before[0, :5], after[0, :5])
    assert (np.abs(before - after)[0, 5:].max(-1) > 1e-4).all()
    np.testing.assert_array_equal(before[1], after[1])  # its second image has no token


def test_a_row_of_padding_that_sees_nothing_stays_finite(found):
    assert np.isfinite(found["padding"]).all()


def test_packed_texts_give_what_each_gives_alone(found):
    alone = found["hidden"]
    np.testing.assert_allclose(found["packed"], np.concatenate([alone[0], alone[1, :6]]), atol=1e-5)


def test_visual_tokens_that_were_kept_stand_for_their_images(found):
    np.testing.assert_allclose(found["of_kept"], found["logits"], atol=1e-5)
    np.testing.assert_allclose(found["vectors"], 0, atol=1e-6)


LLAMA = dataclasses.replace(
    CONFIG,
    every=2,
    offset=1,
    seen="all_previous",
    lm=dataclasses.replace(
        LM, position="rotary", norm="rms_norm", mlp="gated", activation="silu", num_kv_heads=1, head="untied", loop="unroll"
    ),
)


def test_a_token_at_a_time_gives_the_logits_of_the_whole_text():
    """But for what is never generated: the token of an image, and rows of the table beyond the tokenizer's 21 tokens."""
    model = filled(dataclasses.replace(LLAMA, tokens=21))

    @jax.jit
    def outputs(images):
        visual = model.visual(images)
        first, cache = model.start(visual, TOKENS[:, :6], jnp.array([6, 4]), 2)
        second, cache = model.step(cache, jnp.array([TOKENS[0, 6], TOKENS[1, 4]]))
        return model.logits(model.hidden(visual, TOKENS)), first, second

    logits, first, second = (np.array(x) for x in outputs(PIXELS))
    logits[..., [21, 22, 23, IMAGE_ID]] = -np.inf
    np.testing.assert_allclose(first, np.stack([logits[0, 5], logits[1, 3]]), atol=1e-5)
    np.testing.assert_allclose(second, np.stack([logits[0, 6], logits[1, 4]]), atol=1e-5)


@slow
@pytest.mark.parametrize("config", [dataclasses.replace(CONFIG, every=2), LLAMA], ids=["gpt", "llama"])
def test_the_cache_changes_nothing(config):
    model = filled(config)
    decoding = generation.Decoding(strategy="greedy", max_new_tokens=4)

    @jax.jit
    def cached(images):
        found = model.generate(images, TOKENS, LENGTHS, decoding, end_id=IMAGE_ID, pad_id=0)  # which never comes
        return found.tokens, found.log_likelihood

    tokens, likelihood = cached(PIXELS)
    run = jax.jit(lambda images, tokens: model(images, tokens))
    for row in range(2):
        own, total = np.zeros((1, 12), int), 0.0
        own[0, : LENGTHS[row]] = TOKENS[row, : LENGTHS[row]]
        for step in range(4):
            at = int(LENGTHS[row]) + step
            logits = np.array(run(PIXELS[row : row + 1], jnp.asarray(own))[0, at - 1], np.float64)
            logits[IMAGE_ID] = -np.inf
            own[0, at] = logits.argmax()
            total -= np.log(np.exp(logits - logits.max()).sum())
        assert tokens[row].tolist() == own[0, LENGTHS[row] : LENGTHS[row] + 4].tolist()
        np.testing.assert_allclose(likelihood[row], total, atol=1e-4)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="every 4: from 1 to the 3 blocks"):
        dataclasses.replace(CONFIG, every=4)
    with pytest.raises(InputError, match="offset 2: from 0 to every - 1, which is 1"):
        dataclasses.replace(CONFIG, every=2, offset=2)
    with pytest.raises(InputError, match=r"tokens 25: from 0 to lm\.vocab_size 24"):
        dataclasses.replace(CONFIG, tokens=25)
    model = reference.filled(CONFIG)
    with pytest.raises(InputError, match=r"texts of 28 tokens are longer than lm\.length 24"):
        model.start(jnp.zeros((2, 1, 2, 12)), TOKENS, LENGTHS, 20)
