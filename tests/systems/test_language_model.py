"""A language model trains on rows of several texts as on each text alone, and refuses what does not fit before the first step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlm_jax import errors
from vlm_jax.data import packing, pipeline
from vlm_jax.models import lm
from vlm_jax.systems import base, language_model

DECODER = lm.Config(vocab_size=40, length=12, width=16, depth=1, mlp_dim=32, num_heads=2, loop="unroll")
SYSTEM = language_model.LanguageModel(lm=DECODER)
DESCRIBED = pipeline.Description(40, 12, None, 1, 0, 0, 10, 0, "", images=0)


@pytest.fixture(scope="module")
def model():
    return SYSTEM.build(rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def loss(model):
    """(batch, system, microbatches) to the objective, compiled once for each."""
    graphdef, params = nnx.split(model)

    def objective(params, batch, system, microbatches):
        zero = jnp.zeros(())
        context = base.Context(jax.random.key(0), zero.astype(int), zero.astype(int), zero, microbatches)
        return system.objective(nnx.merge(graphdef, params), {"texts": batch}, {}, context)

    jitted = jax.jit(objective, static_argnums=(2, 3))
    return lambda batch, system=SYSTEM, microbatches=1: jitted(params, batch, system, microbatches)


def batch_of(*rows):
    """Rows of pieces as the stream makes them."""
    made = [packing.laid_out([np.array(piece, np.int32) for piece in row], 12, 0) for row in rows]
    return {name: jnp.asarray(np.stack([row[name] for row in made])) for name in made[0]}


def pieces(seed, *lengths):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 40, length).tolist() for length in lengths]


def test_a_row_of_two_texts_is_as_good_as_each_alone(loss, model):
    one, two = pieces(0, 5, 7)
    packed = loss(batch_of([one, two], [two]))
    total = sum(float(-model.lm.log_likelihood(jnp.array([ids]), jnp.ones((1, len(ids)), bool))[0]) for ids in (one, two, two))
    np.testing.assert_allclose(packed.loss, total / (4 + 6 + 6), rtol=1e-5)
    assert packed.metrics["tokens"] == 16
    np.testing.assert_allclose(packed.metrics["perplexity"], np.exp(packed.loss), rtol=1e-5)
    changed = loss(batch_of([one, two[::-1]], [two])).loss - packed.loss
    alone = loss(batch_of([two[::-1]], [two])).loss * 12 - loss(batch_of([two], [two])).loss * 12
    np.testing.assert_allclose(changed * 16, alone, rtol=1e-3, atol=1e-4)


def test_chunks_are_the_mean_over_all_tokens_and_not_of_means(loss):
    rows = batch_of(*[pieces(row, *((2, 3) if row % 2 else (12,))) for row in range(4)])
    np.testing.assert_allclose(loss(rows, microbatches=2).loss, loss(rows).loss, rtol=1e-6)


def test_the_accuracy_counts_the_likeliest_tokens_and_a_z_loss_is_added(loss, model):
    rows = batch_of(*[pieces(row, 12) for row in range(4)])
    logits = np.asarray(model.lm(rows["tokens"])[:, :-1])
    plain, weighed = loss(rows), loss(rows, language_model.LanguageModel(lm=DECODER, z_loss=0.1))
    np.testing.assert_allclose(plain.metrics["accuracy"], (logits.argmax(-1) == rows["tokens"][:, 1:]).mean(), rtol=1e-6)
    squares = np.log(np.exp(logits).sum(-1)) ** 2
    np.testing.assert_allclose(weighed.loss - plain.loss, 0.1 * squares.mean(), rtol=1e-4)
    np.testing.assert_allclose(weighed.metrics["cross_entropy"], plain.loss, rtol=1e-6)


def test_next_tokens_are_scored_where_they_stand(model):
    tokens = jnp.array(pieces(0, 9, 9))
    targets = jnp.zeros((2, 9), int).at[0, 3:].set(1).at[1, 1:].set(1)
    found = np.asarray(model.next_tokens(jnp.stack([tokens, targets], 1)))
    np.testing.assert_allclose(found[..., 0].sum(1), model.lm.log_likelihood(tokens, targets > 0), rtol=1e-5)
    right = np.asarray(model.lm(tokens)[:, :-1].argmax(-1) == tokens[:, 1:]) & (np.asarray(targets)[:, 1:] > 0)
    np.testing.assert_array_equal(found[:, 1:, 1], right)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 41}, "system.lm.vocab_size 40 is smaller than the tokenizer's 41: set --system.lm.vocab-size 41"),
        ({"length": 13}, "data.tokenizer.length 13 is more than system.lm.length 12"),
    ],
)
def test_data_that_do_not_fit_are_refused(change, message):
    SYSTEM.check({"texts": DESCRIBED})
    with pytest.raises(errors.InputError, match=message):
        SYSTEM.check({"texts": dataclasses.replace(DESCRIBED, **change)})
    with pytest.raises(errors.InputError, match=r"data streams \['pairs'\]: LanguageModel trains on a stream named texts"):
        SYSTEM.check({"pairs": DESCRIBED})
    with pytest.raises(errors.InputError, match=r"system.z_loss -1"):
        language_model.LanguageModel(lm=DECODER, z_loss=-1)
