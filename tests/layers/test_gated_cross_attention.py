"""Gated cross-attention against the oracle of the Flamingo card, float32; it begins as the identity and never looks where it may not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlm_jax.layers import gated_cross_attention, initializers
from vlm_jax.ops import masks

CONFIG = gated_cross_attention.Config(num_heads=3, head_dim=4, mlp_dim=48)


def build(config, params=None):
    made = lambda: gated_cross_attention.GatedCrossAttention(  # noqa: E731
        12, 8, config, initializers=initializers.big_vision(width=12), rngs=nnx.Rngs(0)
    )
    if params is None:
        return made()
    return nnx.merge(nnx.graphdef(nnx.eval_shape(made)), jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params))


def weights(oracle):
    norm = lambda name: {"scale": oracle[f"G_{name}_g"], "bias": oracle[f"G_{name}_b"]}  # noqa: E731
    kernel = lambda name: {"kernel": oracle[f"G_{name}"]}  # noqa: E731
    return {
        "attention_norm": norm("ln"),
        "attention": {"query": kernel("Wq"), "key": kernel("Wk"), "value": kernel("Wv"), "out": kernel("Wo")},
        "attention_gate": 0.5,
        "mlp_norm": norm("ff_ln"),
        "mlp": {"up": kernel("W1"), "down": kernel("W2")},
        "mlp_gate": -0.3,
    }


@pytest.mark.parametrize(
    ("activation", "known"), [("squared_relu", "relu2"), *(pytest.param(name, name, marks=pytest.mark.slow) for name in ("relu", "gelu"))]
)
def test_computes_what_the_oracle_says(oracles, activation, known):
    with np.load(oracles / "flamingo_layers.npz") as oracle:
        block = build(dataclasses.replace(CONFIG, activation=activation), weights(oracle))
        visual = block.attention.keys_values(jnp.asarray(oracle["x_media"], jnp.float32).reshape(1, 6, 8))
        x, index = jnp.asarray(oracle["x_y"], jnp.float32)[None], masks.image_index(jnp.asarray(oracle["x_media_locations"] > 0)[None])
        for seen, name in (("one", "immediate"), ("all_previous", "all_previous")):
            y = block(x, visual, masks.images(index, 2, 3, seen=seen))
            np.testing.assert_allclose(y[0], oracle[f"x_out_{known}_{name}_g0.5_-0.3"], atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "mlp", "activation"),
    [("layer_norm", "plain", "squared_relu"), pytest.param("rms_norm", "gated", "silu", marks=pytest.mark.slow)],
)
def test_begins_as_the_identity_with_gradients_of_the_gates_alone(norm, mlp, activation):
    config = dataclasses.replace(CONFIG, norm=norm, mlp=mlp, activation=activation)
    x, media = jax.random.normal(jax.random.key(0), (2, 5, 12)), jax.random.normal(jax.random.key(1), (2, 6, 8))
    mask = masks.images(jnp.array([[0, 1, 1, 2, 2]] * 2), 2, 3)

    @jax.jit
    def outputs(x, media):
        graphdef, params = nnx.split(build(config))

        def loss(params):
            block = nnx.merge(graphdef, params)
            y = block(x, block.attention.keys_values(media), mask)
            return (y**2).sum(), y

        gradients, y = jax.grad(loss, has_aux=True)(params)
        return nnx.to_pure_dict(gradients), y

    gradients, y = outputs(x, media)
    np.testing.assert_array_equal(y, x)
    gates = {name: gradients.pop(name) for name in ("attention_gate", "mlp_gate")}
    assert all(abs(float(g)) > 1e-3 for g in gates.values())
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_a_token_that_sees_no_image_gets_zeros_and_finite_gradients():
    block = build(CONFIG)
    block.attention_gate[...] = jnp.ones(())
    mask = masks.images(jnp.zeros((1, 3), jnp.int32), 2, 3)

    @jax.jit
    def outputs(x, media):
        y, back = jax.vjp(lambda x, media: block(x, block.attention.keys_values(media), mask), x, media)
        return y, back(jnp.ones_like(y))

    x = jax.random.normal(jax.random.key(0), (1, 3, 12))
    y, (by_x, by_media) = outputs(x, jnp.ones((1, 6, 8)))
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(by_x, np.ones_like(x))
    assert not np.any(by_media)


def test_blocks_lead_with_their_number():
    made = lambda: gated_cross_attention.Blocks(  # noqa: E731
        4, 12, 8, CONFIG, initializers=initializers.big_vision(width=12), rngs=nnx.Rngs(0)
    )
    blocks = nnx.to_pure_dict(nnx.split(nnx.eval_shape(made))[1])["blocks"]
    assert blocks["attention"]["key"]["kernel"].shape == (4, 8, 12) and blocks["attention_gate"].shape == (4,)
