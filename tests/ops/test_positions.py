import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.ops import positions


def test_sines_and_cosines_are_the_reference_table(oracles):
    oracle = np.load(oracles / "sincos2d.npz")
    table = positions.sincos2d(int(oracle["in_h"]), int(oracle["in_w"]), int(oracle["in_dim"]))
    np.testing.assert_allclose(table, oracle["out_table"], atol=1e-5)


@pytest.mark.parametrize("width", [4, 10])
def test_sines_and_cosines_refuse_a_width_they_do_not_fit(width):
    with pytest.raises(errors.InputError, match=f"width {width}"):
        positions.sincos2d(2, 2, width)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("bicubic", "torch_bicubic_6x5"),
        ("bicubic", "torch_bicubic_2x3"),
        ("bilinear", "torch_bilinear_6x5"),
        ("bilinear", "torch_bilinear_aa_2x3"),
    ],
)
def test_resized_tables_are_torchs(oracles, method, expected):
    oracle = np.load(oracles / "posemb_resize.npz")
    target = oracle[f"out_{expected}"]
    table = jnp.asarray(oracle["in_grid"], jnp.float32).reshape(16, 3)
    resized = positions.resize_positions(table, (4, 4), target.shape[:2], method)
    np.testing.assert_allclose(resized, target.reshape(-1, 3), atol=1e-5)


def test_the_same_grid_is_left_alone_and_a_wrong_one_refused():
    table = jnp.ones((6, 2))
    assert positions.resize_positions(table, (2, 3), (2, 3)) is table
    with pytest.raises(errors.InputError, match="6 are not a grid of 4 x 4"):
        positions.resize_positions(table, (4, 4), (2, 3))
