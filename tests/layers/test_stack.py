import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlm_jax.layers import block, initializers, stack
from vlm_jax.models import convnet, text, vit
from vlm_jax.training import tree

PACKAGE = Path(stack.__file__).resolve().parents[1]

DEPTH, WIDTH = 3, 8
X = jax.random.normal(jax.random.key(1), (2, 5, WIDTH))
MASK = jnp.tri(5, dtype=bool)[None, None]


def make(rngs):
    init = initializers.big_vision(width=WIDTH)
    options = {"activation": "gelu", "norm_epsilon": 1e-6, "qk_norm": "rms_norm", "layer_scale": 0.5}
    return block.Block(WIDTH, 2, 16, **options, initializers=init, rngs=rngs)


@pytest.fixture(scope="module")
def blocks():
    return jax.jit(lambda: stack.build(make, DEPTH, rngs=nnx.Rngs(0)))()


def value_and_gradients(blocks, **how):
    graphdef, params = nnx.split(blocks)

    def loss(params, x):
        return jnp.square(stack.apply(nnx.merge(graphdef, params), x, MASK, **how)).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(nnx.to_pure_dict(params), X)


@pytest.fixture(scope="module")
def expected(blocks):
    return value_and_gradients(blocks)


def test_blocks_start_from_different_keys(blocks):
    kernels = blocks.attention.query.kernel[...]
    assert kernels.shape == (DEPTH, WIDTH, WIDTH)
    assert not np.allclose(kernels[0], kernels[1])


@pytest.mark.parametrize("loop", ["scan", "unroll"])
def test_equals_one_block_after_the_other(blocks, loop):
    @jax.jit
    def one_by_one(x):
        for i in range(DEPTH):
            x = jax.tree.map(lambda w, i=i: w[i], blocks)(x, MASK)
        return x

    out = jax.jit(lambda x: stack.apply(blocks, x, MASK, loop=loop))(X)
    np.testing.assert_allclose(out, one_by_one(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("loop", "remat"), [("scan", "full"), ("scan", "dots"), ("scan", "names"), ("unroll", "names")]
)
def test_loop_and_remat_change_neither_value_nor_gradients(blocks, expected, loop, remat):
    actual = value_and_gradients(blocks, loop=loop, remat=remat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), actual, expected)


def saved_bytes(blocks, remat):
    """What the forward pass of a stack hands to its backward pass."""
    graphdef, params = nnx.split(blocks)
    pullback = jax.eval_shape(
        lambda p: jax.vjp(lambda p: stack.apply(nnx.merge(graphdef, p), X, MASK, remat=remat), p)[1],
        nnx.to_pure_dict(params),
    )
    return sum(leaf.size for leaf in jax.tree.leaves(pullback))


def test_each_policy_keeps_less_than_the_one_before(blocks):
    kept = [saved_bytes(blocks, remat) for remat in ("none", "dots", "names", "full")]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 4


def test_what_is_stacked_is_called_blocks_and_nothing_else_is():
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                named = any(isinstance(t, ast.Attribute) and t.attr == "blocks" for t in targets)
                built = isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith("stack.build")
                if named != built:
                    wrong.append(f"{file.name}: {ast.unparse(node)}")
    assert not wrong


TOWER = {"width": 8, "mlp_dim": 16, "num_heads": 2, "pool": "map", "projection_dim": 8}
TOWERS = {
    "vit": lambda depth: vit.Config(
        image_size=16, patch_size=4, depth=depth, stem="conv", stem_depth=depth, layer_scale=0.1, registers=1, **TOWER
    ),
    "text": lambda depth: text.Config(vocab_size=16, length=4, depth=depth, **TOWER),
    "convnet": lambda depth: convnet.Config(image_size=16, channels=(4, 8), depth=(depth, depth), projection_dim=8),
}


@pytest.mark.parametrize("name", sorted(TOWERS))
def test_paths_tell_which_parameters_lead_with_the_depth(name):
    def shapes(depth):
        return tree.flatten(nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: TOWERS[name](depth).build(rngs=nnx.Rngs(0))))))

    three, five = shapes(3), shapes(5)
    assert three.keys() == five.keys()
    for path, x in three.items():
        lead, *rest = five[path].shape
        assert ((lead, *rest) == x.shape) != stack.stacked(path), path
        assert not stack.stacked(path) or ((3, *rest) == x.shape and lead == 5), path
    assert any(map(stack.stacked, three)) and not all(map(stack.stacked, three))


class Scale(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.array([2.0, 3.0]))


@pytest.mark.parametrize("loop", ["scan", "unroll"])
def test_each_block_has_arrays_of_its_own_and_gives_some_back(loop):
    weights = Scale()
    each = {"added": jnp.array([10.0, 20.0])}

    def fn(block, x, own):
        return x * block.scale[...] + own["added"], {"before": x}

    x, given = stack.apply_each(fn, weights, jnp.ones((1, 1)), each, loop=loop)
    assert x.tolist() == [[56.0]] and given["before"].tolist() == [[[1.0]], [[12.0]]]
    x, nothing = stack.apply_each(lambda block, x, own: (x * block.scale[...], own), weights, jnp.ones((1, 1)), loop=loop)
    assert x.tolist() == [[6.0]] and nothing is None
