import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.ops import rotary


@pytest.fixture
def oracle(oracles):
    return np.load(oracles / "rope.npz")


def turned(x, positions):
    rotation = rotary.rotation(jnp.asarray(positions)[None], rotary.frequencies(x.shape[-1], 10_000.0))
    return np.asarray(rotary.rotate(jnp.asarray(x, jnp.float32)[None, :, None], rotation))[0, :, 0]


def test_frequencies_and_halves_of_channels_are_those_of_transformers(oracle):
    np.testing.assert_allclose(rotary.frequencies(8, 10_000.0), oracle["out_inv_freq"], rtol=1e-6)
    np.testing.assert_allclose(turned(oracle["in_q"], oracle["in_positions"]), oracle["out_rotate_half"], atol=1e-6)


def test_neighbouring_channels_as_in_the_original_weights_are_a_permutation_away(oracle):
    order = np.concatenate([np.arange(0, 8, 2), np.arange(1, 8, 2)])
    made = np.empty((5, 8))
    made[:, order] = turned(oracle["in_q"][:, order], oracle["in_positions"])
    np.testing.assert_allclose(made, oracle["out_interleaved"], atol=1e-6)


def test_products_depend_on_the_distance_alone():
    query, key = np.random.RandomState(0).normal(size=(2, 1, 16))
    products = [float(np.sum(turned(query, [at]) * turned(key, [at + 7]))) for at in (0, 1, 50, 900)]
    np.testing.assert_allclose(products, products[0], atol=1e-4)
    assert abs(products[0] - float(np.sum(turned(query, [0]) * turned(key, [9])))) > 1e-2
