import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlm_jax import errors
from vlm_jax.models import text

from . import reference

TINY = text.Config(
    vocab_size=12, length=6, width=16, depth=2, mlp_dim=32, num_heads=2, activation="gelu", eos_id=9, pad_id=0
)
TOKENS = jnp.array([[5, 6, 9, 9, 0, 0], [4, 11, 3, 2, 9, 0]])


def tower(**fields):
    return reference.filled(dataclasses.replace(TINY, **fields))


@pytest.mark.parametrize(
    ("pool", "padding_mask", "rows"),
    [
        ("eos", "none", [2, 4]),
        ("argmax", "none", [2, 1]),
        ("first", "none", [0, 0]),
        ("last", "none", [5, 5]),
        ("last", "pad", [3, 4]),
    ],
)
def test_pools_the_token_it_says(pool, padding_mask, rows):
    model = tower(pool=pool, padding_mask=padding_mask)
    embedding, tokens = jax.jit(lambda t: (model(t), model.encode(t)))(TOKENS)
    np.testing.assert_allclose(embedding, tokens[jnp.arange(2), jnp.array(rows)], atol=1e-5)


def test_the_mean_is_over_what_is_not_hidden():
    both = {mask: tower(pool="mean", padding_mask=mask) for mask in ("none", "pad")}
    outputs = jax.jit(lambda t: {mask: (model(t), model.encode(t)) for mask, model in both.items()})(TOKENS)
    np.testing.assert_allclose(outputs["none"][0], outputs["none"][1].mean(1), atol=1e-5)
    expected = [outputs["pad"][1][0, :4].mean(0), outputs["pad"][1][1, :5].mean(0)]
    np.testing.assert_allclose(outputs["pad"][0], expected, atol=1e-5)
    assert bool(jnp.isfinite(both["pad"](jnp.zeros_like(TOKENS))).all())


@pytest.mark.parametrize(("pool", "padding_mask"), [("map", "pad"), ("eos", "pad"), ("eos", "none")])
def test_hidden_padding_changes_nothing_and_shown_padding_does(pool, padding_mask):
    model = tower(pool=pool, padding_mask=padding_mask)
    long, short = jax.jit(lambda t: (model(t), model(t[:, :4])))(TOKENS[:1])
    assert np.allclose(long, short, atol=1e-5) == (padding_mask == "pad")


def test_a_causal_tower_does_not_see_what_comes_later_and_a_bidirectional_one_does():
    changed = TOKENS.at[:, 3].set(7)
    for attention, seen in (("causal", False), ("bidirectional", True)):
        model = tower(attention=attention)
        before, after = jax.jit(lambda a, b, model=model: (model.encode(a), model.encode(b)))(TOKENS, changed)
        assert np.allclose(before[:, :3], after[:, :3], atol=1e-6) != seen
        assert not np.allclose(before[:, 3:], after[:, 3:], atol=1e-3)


def test_parameters_have_these_paths():
    state = nnx.to_pure_dict(nnx.state(tower(pool="map", projection_dim=8, projection_bias="learned")))
    assert state["token_embed"]["embedding"].shape == (12, 16)
    assert state["positions"].shape == (6, 16)
    assert state["blocks"]["attention"]["query"]["kernel"].shape == (2, 16, 16)
    assert {name: x.shape for name, x in state["projection"].items()} == {"kernel": (16, 8), "bias": (8,)}
    assert set(state) == {"token_embed", "positions", "blocks", "norm", "head", "projection"}


@pytest.mark.parametrize(("init", "deviation"), [("big_vision", 16**-0.5), ("clip", 0.02)])
def test_the_init_is_the_one_of_its_name(init, deviation):
    config = dataclasses.replace(TINY, init=init)
    table = jax.jit(lambda: config.build(rngs=nnx.Rngs(0)).token_embed.embedding[...])()
    assert float(table.std()) == pytest.approx(deviation, rel=0.2)


@pytest.mark.parametrize(
    ("pool", "padding_mask", "attention"),
    [
        ("eos", "none", "causal"),
        ("argmax", "none", "causal"),
        ("first", "pad", "bidirectional"),
        ("mean", "pad", "bidirectional"),
        ("map", "pad", "bidirectional"),
        ("last", "pad", "bidirectional"),
    ],
)
def test_a_text_in_a_shorter_row_has_the_same_embedding(pool, padding_mask, attention):
    model = tower(pool=pool, padding_mask=padding_mask, attention=attention)
    row = jnp.array([[5, 6, 11, 9, 0, 0] if pool == "argmax" else [5, 6, 7, 9, 0, 0]])
    long, short = jax.jit(lambda t: (model(t), model(t[:, :4])))(row)
    np.testing.assert_allclose(long, short, atol=1e-5)


def test_the_last_token_of_a_shorter_row_is_the_row_s_where_padding_is_shown():
    model = tower(pool="last")
    embedding, tokens = jax.jit(lambda t: (model(t), model.encode(t)))(TOKENS[:, :4])
    np.testing.assert_allclose(embedding, tokens[:, 3], atol=1e-5)


def test_weights_of_a_longer_tower_give_their_first_positions_and_of_a_shorter_one_none():
    weights = {"positions": jnp.arange(12.0).reshape(6, 2), "norm/scale": jnp.ones(2)}
    shorter = dataclasses.replace(TINY, length=4).adapt(weights)
    np.testing.assert_array_equal(shorter["positions"], weights["positions"][:4])
    assert shorter["norm/scale"] is weights["norm/scale"]
    with pytest.raises(errors.InputError, match=r"length 8: the weights have positions for 6 .*set length 6\..*data\.tokenizer"):
        dataclasses.replace(TINY, length=8).adapt(weights)


def test_texts_longer_than_the_positions_are_refused_and_shorter_ones_taken():
    model = tower()
    assert jax.eval_shape(model, TOKENS[:, :2]).shape == (2, 16)
    with pytest.raises(errors.InputError, match="texts of 7 tokens are longer than length 6"):
        model(jnp.ones((1, 7), jnp.int32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": "eos", "eos_id": None}, "eos_id is not set: pool 'eos' needs"),
        ({"padding_mask": "pad", "pad_id": None}, "pad_id is not set"),
        ({"eos_id": 12}, "eos_id 12 is not in a vocabulary of 12"),
        ({"padding_mask": "pad", "pad_id": 9}, "pad_id 9 is also eos_id"),
        ({"projection_bias": "learned"}, "projection_bias 'learned' has no projection"),
        ({"vocab_size": 0}, "vocab_size 0"),
        ({"num_heads": 5}, "num_heads 5 does not divide width 16"),
    ],
)
def test_a_config_that_cannot_work_says_what_to_change(fields, message):
    with pytest.raises(errors.InputError, match=message):
        dataclasses.replace(TINY, **fields)


def test_presets_take_their_size_by_name():
    config = text.preset("So400m", vocab_size=32_000, length=64, projection_dim=1152)
    assert (config.width, config.depth, config.mlp_dim, config.num_heads) == (1152, 27, 4304, 16)
    with pytest.raises(errors.InputError, match="size 'huge' is unknown"):
        text.preset("huge", vocab_size=8, length=8)
