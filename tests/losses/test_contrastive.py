"""The contrastive losses against oracles and plain loops, and the rule that chooses a form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from vlm_jax.errors import InputError
from vlm_jax.losses import contrastive
from vlm_jax.ops import norm

P = jax.P


def _mesh(shape):
    return jax.make_mesh(shape, ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)


def _unit(x):
    return norm.l2_normalize(x, eps=0.0)


def _pairs(seed=0, b=12, d=5):
    keys = jax.random.split(jax.random.key(seed))
    return tuple(_unit(jax.random.normal(key, (b, d))) for key in keys)


@pytest.mark.parametrize("form", ["formula", "gathered"])
def test_softmax_reproduces_the_oracle_in_value_and_gradients(form, oracles):
    want = np.load(oracles / "clip_infonce.npz")
    with jax.enable_x64(True):

        def loss(image, text, log_scale):
            return contrastive.softmax(_unit(image), _unit(text), jnp.exp(log_scale), form=form)

        arguments = [jnp.asarray(want[name]) for name in ("in_img", "in_txt", "in_logit_scale")]
        value, grads = jax.value_and_grad(loss, (0, 1, 2))(*arguments)
    np.testing.assert_allclose(value, want["out_loss"], rtol=1e-9)
    for got, name in zip(grads, ("img", "txt", "logit_scale"), strict=True):
        np.testing.assert_allclose(got, want[f"out_grad_{name}"], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("form", ["formula", "gathered"])
def test_sigmoid_reproduces_the_oracle_in_value_and_gradients(form, oracles):
    want = np.load(oracles / "siglip_sigmoid.npz")
    with jax.enable_x64(True):

        def loss(image, text, log_scale, bias):
            return contrastive.sigmoid(_unit(image), _unit(text), jnp.exp(log_scale), bias, form=form)

        arguments = [jnp.asarray(want[name]) for name in ("in_img", "in_txt", "in_t_prime", "in_b")]
        value, grads = jax.value_and_grad(loss, (0, 1, 2, 3))(*arguments)
    np.testing.assert_allclose(value, want["out_loss"], rtol=1e-7)
    for got, name in zip(grads, ("img", "txt", "t_prime", "b"), strict=True):
        np.testing.assert_allclose(got, want[f"out_grad_{name}"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", ["formula", "gathered"])
def test_marks_leave_out_the_cells_that_plain_loops_leave_out(form):
    image, text = _pairs()
    valid, ids = np.arange(12) % 4 != 1, np.array([0, 0, 2, 3, 2, 5, 6, 7, 7, 7, 10, 11])
    softmax, sigmoid = [], []
    cosines = np.asarray(image) @ np.asarray(text).T
    for i in np.flatnonzero(valid):
        others = [j for j in np.flatnonzero(valid) if j == i or ids[j] != ids[i]]
        own = 6 * cosines[i, i]
        row, column = (np.log(sum(np.exp(6 * c[j]) for j in others)) for c in (cosines[i], cosines[:, i]))
        softmax.append((row + column) / 2 - own)
        sigmoid += [np.log1p(np.exp((-1 if j == i else 1) * (6 * cosines[i, j] - 2))) for j in others]
    marks = {"valid": jnp.asarray(valid), "ids": jnp.asarray(ids)}
    got = contrastive.softmax(image, text, jnp.float32(6), form=form, **marks)
    np.testing.assert_allclose(got, np.mean(softmax), rtol=1e-5)
    got = contrastive.sigmoid(image, text, jnp.float32(6), jnp.float32(-2), form=form, **marks)
    np.testing.assert_allclose(got, np.sum(sigmoid) / valid.sum(), rtol=1e-5)


@pytest.mark.parametrize("form", ["formula", "gathered"])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_a_batch_without_a_valid_row_costs_nothing(name, form):
    scalars = (jnp.float32(6),) if name == "softmax" else (jnp.float32(6), jnp.float32(-2))
    fn = getattr(contrastive, name)
    value, grads = jax.value_and_grad(lambda *a: fn(*a, form=form, valid=jnp.zeros(12, bool)), (0, 1, 2))(*_pairs(), *scalars)
    assert value == 0
    for gradient in grads:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("form", ["formula", "gathered"])
def test_a_row_that_is_not_a_number_is_not_hidden(form):
    image, text = _pairs()
    assert not np.isfinite(contrastive.softmax(image.at[3].set(jnp.nan), text, jnp.float32(5), form=form))
    assert not np.isfinite(contrastive.sigmoid(image.at[3].set(jnp.nan), text, jnp.float32(5), jnp.float32(0), form=form))


@pytest.mark.parametrize("form", ["formula", "gathered"])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_bfloat16_embeddings_have_float32_logits_and_bfloat16_gradients(name, form):
    image, text = (x.astype(jnp.bfloat16) for x in _pairs(b=32, d=16))
    scalars = (jnp.float32(20),) if name == "softmax" else (jnp.float32(20), jnp.float32(-3))
    fn = getattr(contrastive, name)
    argnums = tuple(range(2 + len(scalars)))
    value, grads = jax.value_and_grad(lambda *a: fn(*a, form=form), argnums)(image, text, *scalars)
    rounded = (image.astype(jnp.float32), text.astype(jnp.float32))
    exact, want = jax.value_and_grad(lambda *a: fn(*a, form="formula"), argnums)(*rounded, *scalars)
    assert value.dtype == jnp.float32 and grads[0].dtype == jnp.bfloat16 and grads[2].dtype == jnp.float32
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    for a, b in zip(grads[2:], want[2:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    for a, b in zip(grads[:2], want[:2], strict=True):  # bfloat16 has 8 bits
        assert np.abs(np.asarray(a, np.float32) - b).max() <= 2**-7 * np.abs(b).max()


@pytest.mark.parametrize(
    ("pairs", "width", "sizes", "itemsize", "form"),
    [
        (2048, 512, (1, 1), 4, "formula"),
        (4096, 512, (1, 1), 4, "gathered"),
        (64, 128, (8, 1), 4, "gathered"),
        (131_072, 512, (256, 1), 2, "gathered"),
        (524_288, 512, (16, 16), 2, "hybrid"),
        (524_288, 512, (256, 1), 2, "ring"),
        (1_048_576, 768, (16, 16), 2, "ring"),
    ],
)
def test_the_rule_takes_the_fastest_form_whose_memory_fits(pairs, width, sizes, itemsize, form):
    assert contrastive.choose(pairs, width, sizes, itemsize) == form


@pytest.mark.parametrize(("shape", "collective"), [((8, 1, 1), True), ((1, 1, 8), False)])
def test_auto_communicates_only_where_the_batch_is_split(shape, collective):
    mesh = _mesh(shape)
    with jax.set_mesh(mesh):
        image, _ = jax.device_put(_pairs(b=16), NamedSharding(mesh, P(("data", "fsdp"))))
        program = str(jax.make_jaxpr(lambda x: contrastive.softmax(x, x, jnp.float32(5)))(image))
    assert ("all_gather" in program) == collective


def test_a_hybrid_needs_two_batch_axes():
    image, text = _pairs(b=16)
    with jax.set_mesh(_mesh((8, 1, 1))), pytest.raises(InputError, match=r"'hybrid' .*'data': 8, 'fsdp': 1.*'ring'"):
        contrastive.softmax(image, text, jnp.float32(5), form="hybrid")
