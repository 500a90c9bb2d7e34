"""Every form over meshes of eight devices has the value and all gradients of the one-device formula, in little memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding

from vlm_jax.losses import contrastive, panels
from vlm_jax.ops import norm

P = jax.P
MESHES = [(8, 1, 1), (1, 8, 1), (4, 2, 1), (2, 2, 2)]
CASES = [(mesh, form) for mesh in MESHES for form in ("gathered", "ring", "hybrid") if form != "hybrid" or min(mesh[:2]) > 1]
MARKS = {"valid": jnp.arange(32) % 5 != 1, "ids": jnp.arange(32) // 3}


def _mesh(shape):
    return jax.make_mesh(shape, ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)


def _unit(x):
    return norm.l2_normalize(x, eps=0.0)


def _pairs(dtype, b=32, d=16, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    image, text = (_unit(jax.random.normal(key, (b, d), dtype)) for key in keys)
    return image, _unit(text + image / 2)


def _scalars(name, dtype, scale):
    return (dtype(scale),) if name == "softmax" else (dtype(scale), dtype(-3))


def _with_gradients(fn, name, marks):
    """fn's value and gradients by embeddings and scalars; marks go in as arguments, as in training."""
    argnums = tuple(range(3 if name == "softmax" else 4))
    jitted = jax.jit(jax.value_and_grad(lambda *a: fn(*a[:-1], **a[-1]), argnums))
    return lambda *arguments: jitted(*arguments, marks)


def _worst(got, want):
    """Largest difference of any leaf, by the leaf's largest entry."""
    leaves = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(np.abs(np.asarray(a) - np.asarray(b)).max() / max(np.abs(np.asarray(b)).max(), 1e-30) for a, b in leaves)


def _split(tree, mesh):
    return jax.device_put(tree, NamedSharding(mesh, P(("data", "fsdp"))))


@pytest.mark.parametrize("marks", [{}, MARKS], ids=["all", "marked"])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("shape", "form"), CASES, ids=str)
def test_every_form_equals_the_formula_in_float64(name, shape, form, marks):
    with jax.enable_x64(True):
        fn, pairs, scalars = getattr(contrastive, name), _pairs(jnp.float64), _scalars(name, jnp.float64, 100.0)
        want = _with_gradients(lambda *a, **k: fn(*a, form="formula", **k), name, marks)(*pairs, *scalars)
        mesh = _mesh(shape)
        with jax.set_mesh(mesh):
            got = _with_gradients(lambda *a, **k: fn(*a, form=form, **k), name, _split(marks, mesh))(*_split(pairs, mesh), *scalars)
    assert _worst(got, want) <= 1e-10


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("shape", "form"), CASES, ids=str)
def test_every_form_equals_the_formula_in_float32(name, shape, form):
    fn, pairs, mesh = getattr(contrastive, name), _pairs(jnp.float32), _mesh(shape)
    formula = _with_gradients(lambda *a, **k: fn(*a, form="formula", **k), name, {})
    with jax.set_mesh(mesh):
        sharded = _with_gradients(lambda *a, **k: fn(*a, form=form, **k), name, {})
    for scale, tolerance in ((20.0, 1e-5), (100.0, 1e-4)):
        scalars = _scalars(name, jnp.float32, scale)
        want = formula(*pairs, *scalars)
        with jax.set_mesh(mesh):
            assert _worst(sharded(*_split(pairs, mesh), *scalars), want) <= tolerance


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))
@given(
    name=st.sampled_from(["softmax", "sigmoid"]),
    case=st.sampled_from([((1, 1, 1), "gathered"), *CASES]),
    rows=st.integers(1, 5),
    width=st.integers(1, 9),
    cells=st.integers(1, 60),
    scale=st.floats(0.1, 100),
    marked=st.sets(st.sampled_from(["valid", "ids"])),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_any_chunk_give_the_formula(name, case, rows, width, cells, scale, marked, seed):
    (shape, form), rng = case, np.random.default_rng(seed)
    b = rows * shape[0] * shape[1]
    marks = {"valid": jnp.asarray(rng.random(b) < 0.7), "ids": jnp.asarray(rng.integers(0, b, b))}
    marks = {key: marks[key] for key in sorted(marked)}
    axes = tuple(axis for axis, size in zip(("data", "fsdp"), shape, strict=False) if size > 1)
    ring = {"gathered": 0, "hybrid": 1, "ring": len(axes)}[form]
    layout = panels.Layout(ring=axes[:ring], gather=axes[ring:], cells=cells)
    with jax.enable_x64(True):
        pairs, scalars = _pairs(jnp.float64, b, width, seed), _scalars(name, jnp.float64, scale)
        formula = getattr(contrastive, name)
        want = _with_gradients(lambda *a, **k: formula(*a, form="formula", **k), name, marks)(*pairs, *scalars)
        mesh, fn = _mesh(shape) if shape != (1, 1, 1) else _mesh((1, 1, 8)), getattr(panels, name)
        with jax.set_mesh(mesh):
            got = _with_gradients(lambda *a, **k: fn(layout, *a, k), name, _split(marks, mesh))(*_split(pairs, mesh), *scalars)
    assert np.abs(float(got[0]) - float(want[0])) <= 1e-10 * max(abs(float(want[0])), 1)
    for a, b in zip(got[1], want[1], strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-10 * max(np.abs(np.asarray(b)).max(), scale)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_memory_of_the_ring_grows_with_the_rows_and_not_with_the_pairs(name):
    """Twice the batch, four times the pairs, twice the bytes."""
    fn, mesh, layout = getattr(panels, name), _mesh((8, 1, 1)), panels.Layout(ring=("data",), cells=1 << 14)

    def temporary(b):
        rows = jax.ShapeDtypeStruct((b, 64), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
        scalars = [jax.ShapeDtypeStruct((), jnp.float32)] * (1 if name == "softmax" else 2)
        jitted = jax.jit(jax.grad(lambda *a: fn(layout, *a, {}), (0, 1)))
        with jax.set_mesh(mesh):
            return jitted.lower(rows, rows, *scalars).compile().memory_analysis().temp_size_in_bytes

    small, large = temporary(4096), temporary(8192)
    assert large <= 2.1 * small
    assert large < 8192 * 8192 * 4 / 8 / 10  # a tenth of a device's share of the logits


def test_the_loop_of_a_ring_holds_one_exchange_of_columns_and_one_of_sums():
    """Compiled collectives: no gather, and permutations only."""
    mesh = _mesh((8, 1, 1))
    with jax.set_mesh(mesh):
        rows = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
        jitted = jax.jit(jax.grad(lambda *a: contrastive.sigmoid(*a, form="ring"), (0, 1)))
        text = jitted.lower(rows, rows, jnp.float32(5), jnp.float32(0)).compile().as_text()
    assert " all-gather(" not in text and " all-to-all(" not in text
    assert text.count(" collective-permute(") == 4  # columns and sums: before the loop and in it, in it and after
