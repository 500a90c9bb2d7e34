"""Arithmetic of traced programs."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from vlm_jax.training import flops

P = jax.P


def test_products_convolutions_and_loops_are_counted():
    a, b = jnp.ones((4, 8)), jnp.ones((8, 16))
    assert flops.forward(lambda a, b: a @ b, a, b) == 2 * 4 * 8 * 16

    def loop(a):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(lambda x: x @ jnp.ones((8, 8)))(x), None), a, length=5)[0]

    assert flops.forward(loop, a) == 5 * 2 * 4 * 8 * 8

    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert flops.forward(convolve, jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 5))) == 2 * (2 * 6 * 6 * 5) * (3 * 3 * 3)


def test_work_that_is_split_counts_whole_and_work_that_is_repeated_counts_once():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)
    fn = jax.shard_map(lambda w, x: x @ w, in_specs=(P(), P(("data", "fsdp"))), out_specs=P(("data", "fsdp")))
    with jax.set_mesh(mesh):
        assert flops.forward(fn, jnp.ones((8, 16)), jnp.ones((4, 8))) == 2 * 4 * 8 * 16


def test_peak_is_the_longest_name_that_fits():
    assert flops.peak("TPU v5 lite") == 197e12
    assert flops.peak("TPU v5p") == 459e12
    assert flops.peak("NVIDIA H100 80GB HBM3") == 989e12
    assert flops.peak("cpu") is None
