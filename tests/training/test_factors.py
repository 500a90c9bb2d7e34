"""Learning-rate factors by path and layer, against the oracle and over the parameters of every tower."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlm_jax.errors import InputError
from vlm_jax.models import text, vit
from vlm_jax.training import factors, tree

SMALL = {"width": 16, "depth": 3, "mlp_dim": 32, "num_heads": 2, "projection_dim": 8}
TOWERS = {
    "vit": vit.Config(
        image_size=32,
        patch_size=8,
        stem="conv",
        class_token="positioned",
        registers=2,
        pre_norm="layer_norm",
        pool="map",
        representation_dim=8,
        layer_scale=0.1,
        qk_norm="rms_norm",
        **SMALL,
    ),
    "text": text.Config(vocab_size=64, length=8, pool="map", projection_bias="learned", **SMALL),
}

PARTS = {
    "vit": (
        {"stem", "patch_embed", "positions", "class_token", "registers", "pre_norm"},
        {"norm", "head", "representation", "projection"},
    ),
    "text": ({"token_embed", "positions"}, {"norm", "head", "projection"}),
}


def _shapes(config):
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0))), nnx.Param))


def _params(depth):
    image = {
        "patch_embed": {"kernel": jnp.ones((4, 2))},
        "positions": jnp.ones((9, 2)),
        "stem": {"stage1": {"blocks": {"kernel": jnp.ones((5, 3, 3, 2, 2))}}},
        "blocks": {"mlp": {"up": {"kernel": jnp.ones((depth, 2, 8)), "bias": jnp.ones((depth, 8))}}},
        "norm": {"scale": jnp.ones(2)},
        "head": {"kernel": jnp.ones((2, 2))},
    }
    return {"image": image, "text": {"blocks": {"scale": jnp.ones((2, 4))}}, "log_scale": jnp.ones(())}


def _of(params, rates=(), layer_decay=(), before=factors.BEFORE):
    return factors.of(params, rates, layer_decay, before)


def test_layer_decay_reproduces_the_oracle(oracles):
    want = np.load(oracles / "schedules.npz")["out_llrd"]
    found = _of(_params(len(want) - 2), layer_decay=(("image", 0.65),))
    for path in ("image/patch_embed/kernel", "image/positions", "image/stem/stage1/blocks/kernel"):
        np.testing.assert_allclose(np.ravel(found[path]), want[:1], rtol=1e-12)
    assert found["image/blocks/mlp/up/kernel"].shape == (12, 1, 1)
    np.testing.assert_allclose(found["image/blocks/mlp/up/kernel"].ravel(), want[1:-1], rtol=1e-12)
    np.testing.assert_allclose(found["image/blocks/mlp/up/bias"].ravel(), want[1:-1], rtol=1e-12)
    others = ("image/norm/scale", "image/head/kernel", "text/blocks/scale", "log_scale")
    assert want[-1] == 1 and [found[path] for path in others] == [None] * 4


def test_factors_by_path_multiply_those_of_layers():
    found = _of(_params(2), rates=((r"kernel$", 0.1), (r"^image/", 0.5)), layer_decay=(("image", 0.5), ("text", 0.1)))
    np.testing.assert_allclose(found["image/blocks/mlp/up/kernel"].ravel(), [0.025, 0.05])
    np.testing.assert_allclose(found["image/blocks/mlp/up/bias"].ravel(), [0.125, 0.25])
    np.testing.assert_allclose(found["text/blocks/scale"].ravel(), [0.01, 0.1])
    np.testing.assert_allclose([found["image/positions"], found["image/norm/scale"]], [0.0625, 0.5])


def test_a_tower_may_be_the_whole_model_and_name_its_own_beginning():
    found = _of(_params(2)["image"] | {"words": jnp.ones(3)}, layer_decay=(("", 0.5),), before=r"^(positions|words)$")
    assert (found["words"], found["positions"], found["patch_embed/kernel"]) == (0.125, 0.125, None)


@pytest.mark.parametrize("tower", sorted(TOWERS))
def test_every_parameter_of_a_tower_is_before_in_or_after_its_blocks(tower):
    params = {"tower": _shapes(TOWERS[tower])}
    found = _of(params, layer_decay=(("tower", 0.5),))
    after = {path.split("/")[1] for path, factor in found.items() if factor is None}
    before = {path.split("/")[1] for path, factor in found.items() if isinstance(factor, float) and factor == 0.5**4}
    assert (before, after) == PARTS[tower]
    assert {path.split("/")[1] for path in found} == after | before | {"blocks"}
    for path, x in tree.flatten(params).items():
        assert isinstance(found[path], np.ndarray) == path.startswith("tower/blocks/")
        assert np.broadcast_shapes(np.shape(1.0 if found[path] is None else found[path]), x.shape) == x.shape


def _check(rates=(), layer_decay=(), coverage="rest_is_one"):
    factors.check(_params(2), rates, layer_decay, factors.BEFORE, coverage)


def test_a_tower_without_blocks_names_those_that_have_some():
    with pytest.raises(InputError, match=re.escape("layer_decay 'vision': no trainable parameter is at vision/blocks/; towers")):
        _check(layer_decay=(("vision", 0.5),))
    with pytest.raises(InputError, match="'image', 'image/stem/stage1', 'text'"):
        _check(layer_decay=(("", 0.5),))


def test_a_pattern_without_effect_is_refused():
    with pytest.raises(InputError, match=r"rates 'video/' finds no parameter; paths are such as image/"):
        _check(rates=(("video/", 0.1),))
    with pytest.raises(InputError, match=r"rates 'head': earlier patterns have all that it finds, image/head/kernel"):
        _check(rates=(("kernel$", 0.1), ("head", 0.5)))
    _check(rates=(("head", 0.5), ("kernel$", 0.1)))


def test_full_coverage_refuses_parameters_that_nothing_names():
    with pytest.raises(InputError, match=r"coverage all.* names image/norm/scale, image/head/kernel, log_scale;"):
        _check(layer_decay=(("image", 0.5), ("text", 0.5)), coverage="all")
    _check(layer_decay=(("image", 0.5), ("text", 0.5)), rates=((r"norm|head|log_scale", 1.0),), coverage="all")
    _check(rates=(("^image/", 0.0), ("", 1.0)), coverage="all")


def test_shapes_are_enough():
    params = jax.eval_shape(lambda: _params(2))
    np.testing.assert_allclose(_of(params, layer_decay=(("text", 0.5),))["text/blocks/scale"].ravel(), [0.25, 0.5])
