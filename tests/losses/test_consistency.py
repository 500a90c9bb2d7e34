"""CyCLIP's terms: the oracle, the formula over all pairs in value and gradient on every mesh, and their invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.losses import consistency, contrastive
from vlm_jax.ops import norm
from vlm_jax.training import sharding

TERMS = {"in_modal": consistency.in_modal, "cross_modal": consistency.cross_modal}


def _formula(name, image, text):
    """As the paper writes it, over the matrices of all pairs."""
    if name == "in_modal":
        return jnp.sum((image @ image.T - text @ text.T) ** 2) / len(image)
    return jnp.sum((image @ text.T - text @ image.T) ** 2) / len(image)


def _embeddings(b, d, dtype, seed=0):
    """Matching rows are alike, as they are in training."""
    keys = jax.random.split(jax.random.key(seed), 3)
    common = jax.random.normal(keys[0], (b, d), dtype)
    image, text = (norm.l2_normalize(common + 0.5 * jax.random.normal(key, (b, d), dtype)) for key in keys[1:])
    return image, text


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
def test_the_scalars_of_the_oracle(oracles, dtype, tolerance):
    with jax.enable_x64(True), np.load(oracles / "cyclip.npz") as o:
        image, text = (norm.l2_normalize(jnp.asarray(o[f"in_{name}"], dtype)) for name in ("img", "txt"))
        scale = jnp.exp(jnp.asarray(o["in_logit_scale"], dtype))
        found = {name: term(image, text) for name, term in TERMS.items()}
        found["contrastive"] = contrastive.softmax(image, text, scale)
        first, second = float(o["in_lambda1"]), float(o["in_lambda2"])
        found["total"] = found["contrastive"] + first * found["in_modal"] + second * found["cross_modal"]
        found["total_c_cyclip"] = found["contrastive"] + 0.5 * found["cross_modal"]
        found["total_i_cyclip"] = found["contrastive"] + 0.5 * found["in_modal"]
        for name, value in found.items():
            assert value.dtype == dtype
            np.testing.assert_allclose(value, o[f"out_{name}"], rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("name", TERMS)
def test_value_and_gradients_are_those_of_the_formula_on_every_mesh(name, sizes):
    for dtype, tolerance in (("float64", 1e-10), ("float32", 2e-5)):
        with jax.enable_x64(dtype == "float64"):
            image, text = _embeddings(64, 16, dtype)
            want, gradients = jax.value_and_grad(functools.partial(_formula, name), (0, 1))(image, text)
            mesh = sharding.Mesh(data=sizes[0], fsdp=sizes[1], model=sizes[2]).make(jax.devices()[: int(np.prod(sizes))])
            with jax.set_mesh(mesh):
                parts = sharding.put_batch({"i": np.asarray(image), "t": np.asarray(text)}, mesh)
                value, found = jax.jit(jax.value_and_grad(TERMS[name], (0, 1)))(parts["i"], parts["t"])
            np.testing.assert_allclose(value, want, rtol=tolerance)
            for a, b in zip(found, gradients, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def test_equal_modalities_cost_nothing_and_rotations_change_nothing():
    with jax.enable_x64(True):
        image, text = _embeddings(12, 6, "float64")
        rotation, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(5), (6, 6), "float64"))
        for term in TERMS.values():
            assert abs(term(image, image)) < 1e-12
            np.testing.assert_allclose(term(image @ rotation, text @ rotation), term(image, text), rtol=1e-10)
            assert term(image, text) > 0.01


def test_no_matrix_of_all_pairs_is_formed():
    """At 4,096 pairs of width 32, the value and both gradients take less than the matrix would."""
    image, text = _embeddings(4096, 32, "float32")
    for term in TERMS.values():
        compiled = jax.jit(jax.grad(term, (0, 1))).lower(image, text).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 4096 * 4096 * 4 / 8
