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
        zero = np.zeros(())
        context = base.Context(jax.random.key(0), zero, zero, zero, microbatches)
        return system.objective(nnx.merge(graphdef, params), {"texts": batch}, {}, context)

    jitted = jax.jit(objective, static_argnums=(2, 3))
    return lambda batch, system=SYSTEM, microbatches=1: jitted(params, batch, system, microbatches)


@pytest.fixture(scope="module")
def logits(model):
    """Of rows of one text, in one compilation."""
    graphdef, params = nnx.split(model)
    jitted = jax.jit(lambda params, tokens: nnx.merge(graphdef, params).lm(tokens))
    return lambda tokens: np.asarray(jitted(params, tokens), np.float64)


def batch_of(*rows):
    """Four rows of pieces as the stream makes them, empty ones at the end."""
    made = [packing.laid_out([np.array(piece, np.int32) for piece in row], 12, 0) for row in (*rows, *[[]] * (4 - len(rows)))]
    return {name: jnp.asarray(np.stack([row[name] for row in made])) for name in made[0]}


def pieces(seed, *lengths):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 40, length).tolist() for length in lengths]


def test_a_row_of_two_texts_is_as_good_as_each_alone(loss):
    one, two = pieces(0, 5, 7)
    packed, first, second = loss(batch_of([one, two])), loss(batch_of([one])), loss(batch_of([two]))
    assert [found.metrics["tokens"] for found in (packed, first, second)] == [10, 4, 6]
    np.testing.assert_allclose(packed.loss, (4 * first.loss + 6 * second.loss) / 10, rtol=1e-5)
    np.testing.assert_allclose(packed.metrics["perplexity"], np.exp(packed.loss), rtol=1e-5)
    assert abs(first.loss - second.loss) > 1e-3
    assert loss(batch_of()).loss == 0


def test_chunks_are_the_mean_over_all_tokens_and_not_of_means(loss):
    rows = batch_of(*[pieces(row, *((2, 3) if row % 2 else (12,))) for row in range(4)])
    np.testing.assert_allclose(loss(rows, microbatches=2).loss, loss(rows).loss, rtol=1e-6)


def test_the_loss_and_the_accuracy_are_those_of_the_logits_and_a_z_loss_is_added(loss, logits):
    rows = batch_of(*[pieces(row, 12) for row in range(4)])
    made, following = logits(rows["tokens"])[:, :-1], np.asarray(rows["tokens"])[:, 1:]
    normalizer = np.log(np.exp(made).sum(-1))
    plain, weighed = loss(rows), loss(rows, language_model.LanguageModel(lm=DECODER, z_loss=0.1))
    np.testing.assert_allclose(plain.loss, (normalizer - np.take_along_axis(made, following[..., None], -1)[..., 0]).mean(), rtol=1e-5)
    np.testing.assert_allclose(plain.metrics["accuracy"], (made.argmax(-1) == following).mean(), rtol=1e-6)
    np.testing.assert_allclose(weighed.loss - plain.loss, 0.1 * (normalizer**2).mean(), rtol=1e-4)
    np.testing.assert_allclose(weighed.metrics["cross_entropy"], plain.loss, rtol=1e-6)


def test_next_tokens_are_scored_where_they_stand(model, logits):
    tokens = np.array(pieces(0, 12, 12, 12, 12), np.int32)
    targets = np.zeros((4, 12), np.int32)
    targets[0, 3:], targets[1, 1:] = 1, 1
    graphdef, params = nnx.split(model)
    found = np.asarray(jax.jit(lambda params, rows: nnx.merge(graphdef, params).next_tokens(rows))(params, np.stack([tokens, targets], 1)))
    made = logits(tokens)[:, :-1]
    of_label = np.take_along_axis(made, tokens[:, 1:, None], -1)[..., 0] - np.log(np.exp(made).sum(-1))
    np.testing.assert_allclose(found[:, 1:, 0], of_label * targets[:, 1:], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found[:, 1:, 1], (made.argmax(-1) == tokens[:, 1:]) & (targets[:, 1:] > 0))
    assert not found[:, 0].any()


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
