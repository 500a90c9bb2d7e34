"""Two stacks as one: every block comes where it belongs, in a loop or not, with what is its own and what it gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlm_jax.layers import interleaved


class Numbers(nnx.Module):
    def __init__(self, count, first):
        self.number = nnx.Param(jnp.arange(count, dtype=jnp.float32) + first)


def one(block, x, own):
    return 3 * x + block.number[...] + own


def several(blocks, x, own):
    def body(x, block_and_own):
        block, own = block_and_own
        return 2 * x + block.number[...] + own, x[0, 0, 0]

    return jax.lax.scan(body, x, (blocks, own))


@pytest.mark.parametrize(("depth", "every", "offset", "loop"), [(4, 1, 0, "scan"), (6, 2, 1, "scan"), (5, 2, 0, "unroll")])
def test_blocks_come_in_order(depth, every, offset, loop):
    places = list(range(offset, depth, every))
    inserted, blocks = Numbers(len(places), 1), Numbers(depth, 5)
    of_inserted, of_blocks = np.linspace(0, 1, len(places), dtype=np.float32), np.linspace(-1, 0, depth, dtype=np.float32)
    x, given = interleaved.apply(
        inserted, blocks, jnp.ones((1, 1, 1)), one, several,
        every=every, offset=offset, loop=loop, of_inserted=of_inserted, of_blocks=of_blocks,
    )  # fmt: skip
    expected, seen = 1.0, []
    for i in range(depth):
        if i in places:
            j = places.index(i)
            expected = 3 * expected + 1 + j + of_inserted[j]
        seen.append(expected)
        expected = 2 * expected + 5 + i + of_blocks[i]
    np.testing.assert_allclose(x, expected, rtol=1e-6)
    np.testing.assert_allclose(given, seen, rtol=1e-6)
