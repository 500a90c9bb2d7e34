"""Dropped patches: which stay, that examples do not depend on one another, and no communication."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from vlm_jax.errors import InputError
from vlm_jax.ops import tokens

P = jax.P
KEY = jax.random.key(3)
RULES = [tokens.Drop(keep=0.5), tokens.Drop(keep=0.25, rule="grid"), tokens.Drop(keep=0.3, rule="block")]


def _kept(drop, rows=256, grid=(4, 6), key=KEY):
    return np.asarray(jax.jit(lambda k: tokens.kept(drop, k, jnp.arange(rows), grid))(key))


@pytest.mark.parametrize(("drop", "count"), list(zip(RULES, (12, 6, 7), strict=True)), ids=str)
def test_indices_ascend_and_every_patch_stays_equally_often(drop, count):
    index = _kept(drop, rows=2000)
    assert index.shape == (2000, count)
    assert (np.diff(index, axis=1) > 0).all()
    assert index.min() == 0 and index.max() == 23
    share = np.bincount(index.reshape(-1), minlength=24) / 2000
    if drop.rule != "block":  # whose place is uniform, so that the middle is left out more often
        np.testing.assert_allclose(share, drop.keep, atol=0.06)


def test_grid_keeps_one_patch_of_each_cell():
    row, column = np.divmod(_kept(RULES[1]), 6)
    cells = np.sort(row // 2 * 3 + column // 2, axis=1)
    np.testing.assert_array_equal(cells, np.broadcast_to(np.arange(6), cells.shape))
    nine = _kept(tokens.Drop(keep=1 / 9, rule="grid"), grid=(3, 6))
    assert nine.shape == (256, 2)
    np.testing.assert_array_equal(np.sort(nine % 6 // 3, axis=1), np.broadcast_to([0, 1], nine.shape))


@pytest.mark.parametrize(("keep", "size"), [(0.3, (5, 4)), (0.5, (4, 3)), (0.9, (2, 1)), (0.04, (6, 4))], ids=str)
def test_block_leaves_out_one_nearly_square_block_at_a_random_place(keep, size):
    grid = (6, 4)
    index = _kept(tokens.Drop(keep=keep, rule="block"), grid=grid)
    masks = np.ones((256, 24), bool)
    np.put_along_axis(masks, index, False, axis=1)
    assert (masks.sum(1) == 24 - round(24 * keep)).all()
    for mask in masks.reshape(-1, *grid):
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert (height, width) == size
        assert height * width - mask.sum() < width, "only the last row may be short"
    assert len(np.unique(masks, axis=0)) == (7 - size[0]) * (5 - size[1])


@pytest.mark.parametrize("drop", RULES, ids=str)
def test_what_an_example_keeps_follows_from_key_and_row_alone(drop):
    whole = _kept(drop, rows=16)
    some = jax.jit(lambda rows: tokens.kept(drop, KEY, rows, (4, 6)))(jnp.array([11, 2]))
    np.testing.assert_array_equal(some, whole[[11, 2]])
    assert len(np.unique(whole, axis=0)) > (1 if drop.rule == "block" else 8)
    assert (_kept(drop, rows=16, key=jax.random.key(4)) != whole).any()
    with jax.enable_x64(True):
        np.testing.assert_array_equal(_kept(drop, rows=16), whole)


def test_take_is_a_gather_with_its_gradient():
    x = jax.random.normal(KEY, (3, 24, 5))
    index = jnp.asarray(_kept(RULES[0], rows=3))
    value, pull = jax.vjp(lambda x: tokens.take(x, index), x)
    np.testing.assert_array_equal(value, np.take_along_axis(np.asarray(x), np.asarray(index)[..., None], 1))
    want = np.zeros((3, 24, 5), np.float32)
    np.put_along_axis(want, np.asarray(index)[..., None], np.asarray(value), 1)
    np.testing.assert_array_equal(pull(value)[0], want)


@pytest.mark.parametrize("drop", RULES, ids=str)
def test_a_sharded_batch_needs_no_communication(drop):
    mesh = jax.make_mesh((4, 2, 1), ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)

    def gradient(x, key):
        index = tokens.kept(drop, key, jnp.arange(16), (4, 6))
        return jax.value_and_grad(lambda x: jnp.square(tokens.take(x, index)).sum((1, 2)).sum())(x)[1]

    with jax.set_mesh(mesh):
        split = NamedSharding(mesh, P(("data", "fsdp")))
        x = jax.ShapeDtypeStruct((16, 24, 8), jnp.float32, sharding=split)
        text = jax.jit(gradient, out_shardings=split).lower(x, KEY).compile().as_text()
    assert not [name for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce") if name in text]
    assert "f32[2,24,8]" in text and "f32[16,24,8]" not in text


@pytest.mark.parametrize(
    ("fields", "grid", "message"),
    [
        ({"keep": 0.0}, (4, 4), "keep 0.0: a share"),
        ({"keep": 1.5}, (4, 4), "keep 1.5: a share"),
        ({"keep": 0.5, "rule": "grid"}, (4, 4), r"keep 0.5: rule 'grid' .*0\.25"),
        ({"keep": 0.25, "rule": "grid"}, (4, 3), r"cells of 2 x 2 patches do not divide a grid of 4 x 3; use"),
        ({"keep": 0.01}, (4, 4), r"no patch of a grid of 4 x 4 would stay; keep at least 0\.062"),
    ],
)
def test_what_cannot_be_dropped_is_refused(fields, grid, message):
    with pytest.raises(InputError, match=message):
        tokens.Drop(**fields).count(grid)
