"""The contrastive losses against oracles, and every form over a mesh against the one-device formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from vlm_jax.losses import contrastive
from vlm_jax.ops import norm

P = jax.P
MESHES = [(8, 1, 1), (1, 8, 1), (4, 2, 1), (2, 2, 2)]


def _mesh(shape):
    return jax.make_mesh(shape, ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)


def _unit(x):
    return norm.l2_normalize(x, eps=0.0)


def test_softmax_reproduces_the_oracle_in_value_and_gradients(oracles):
    want = np.load(oracles / "clip_infonce.npz")
    with jax.enable_x64(True):

        def loss(image, text, log_scale):
            return contrastive.softmax(_unit(image), _unit(text), jnp.exp(log_scale))

        arguments = [jnp.asarray(want[name]) for name in ("in_img", "in_txt", "in_logit_scale")]
        value, grads = jax.value_and_grad(loss, (0, 1, 2))(*arguments)
    np.testing.assert_allclose(value, want["out_loss"], rtol=1e-9)
    for got, name in zip(grads, ("img", "txt", "logit_scale"), strict=True):
        np.testing.assert_allclose(got, want[f"out_grad_{name}"], rtol=1e-8, atol=1e-9)


def test_sigmoid_reproduces_the_oracle_in_value_and_gradients(oracles):
    want = np.load(oracles / "siglip_sigmoid.npz")
    with jax.enable_x64(True):

        def loss(image, text, log_scale, bias):
            return contrastive.sigmoid(_unit(image), _unit(text), jnp.exp(log_scale), bias)

        arguments = [jnp.asarray(want[name]) for name in ("in_img", "in_txt", "in_t_prime", "in_b")]
        value, grads = jax.value_and_grad(loss, (0, 1, 2, 3))(*arguments)
    np.testing.assert_allclose(value, want["out_loss"], rtol=1e-7)
    for got, name in zip(grads, ("img", "txt", "t_prime", "b"), strict=True):
        np.testing.assert_allclose(got, want[f"out_grad_{name}"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("x64", "scale", "tolerance"), [(True, 100.0, 1e-10), (False, 20.0, 1e-5)], ids=["float64", "float32"])
def test_gathered_form_equals_the_formula_in_value_and_all_gradients(name, shape, x64, scale, tolerance):
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        keys = jax.random.split(jax.random.key(0))
        image, text = (_unit(jax.random.normal(key, (32, 16), dtype)) for key in keys)
        text = _unit(text + image)
        scalars = (dtype(scale),) if name == "softmax" else (dtype(scale), dtype(-3.0))
        fn = getattr(contrastive, name)
        argnums = tuple(range(2 + len(scalars)))
        want = jax.jit(jax.value_and_grad(lambda *a: fn(*a, form="formula"), argnums))(image, text, *scalars)
        mesh = _mesh(shape)
        with jax.set_mesh(mesh):
            split = NamedSharding(mesh, P(("data", "fsdp")))
            got = jax.jit(jax.value_and_grad(lambda *a: fn(*a, form="gathered"), argnums))(
                jax.device_put(image, split), jax.device_put(text, split), *scalars
            )
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert np.abs(np.asarray(a) - np.asarray(b)).max() <= tolerance * max(np.abs(np.asarray(b)).max(), 1e-30)


def test_auto_gathers_only_where_the_batch_is_split():
    image = _unit(jax.random.normal(jax.random.key(1), (16, 8)))

    def gathers(shape):
        with jax.set_mesh(_mesh(shape)):
            return "all_gather" in str(jax.make_jaxpr(lambda x: contrastive.softmax(x, x, jnp.float32(5)))(image))

    assert gathers((8, 1, 1))
    assert not gathers((1, 1, 8))


def test_bfloat16_embeddings_give_a_float32_loss():
    image = _unit(jax.random.normal(jax.random.key(2), (16, 8))).astype(jnp.bfloat16)
    assert contrastive.softmax(image, image, jnp.float32(5)).dtype == jnp.float32
