import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlm_jax import errors
from vlm_jax.models import vit
from vlm_jax.ops import positions
from vlm_jax.training import sharding, tree

from . import reference

TINY = vit.Config(image_size=16, patch_size=8, width=16, depth=2, mlp_dim=32, num_heads=2)
IMAGES = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))


def tower(**fields):
    return reference.filled(dataclasses.replace(TINY, **fields))


def paths(model):
    flat, _ = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(model)))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in flat}


@pytest.mark.parametrize(("name", "millions"), [("S/16", 22.05), ("B/16", 86.57), ("L/16", 304.33), ("H/14", 632.05)])
def test_presets_have_the_published_number_of_parameters(name, millions):
    """With a class token and ImageNet's classifier, as published (all but the classifier's 1,000 biases)."""
    config = vit.preset(name, pool="cls", class_token="positioned", projection_dim=1000)
    state = nnx.state(nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0))))
    assert sum(x.size for x in jax.tree.leaves(state)) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
    "name", ["Ti/16", "S/16", "M/32", "B/16", "L/14", "So400m/14", "H/14", "g/14", "G/14", "g-opt/16"]
)
def test_every_preset_is_a_valid_config(name):
    config = vit.preset(name, norm_epsilon=1e-5)
    assert (config.patch_size, config.norm_epsilon) == (int(name.split("/")[1]), 1e-5)


@pytest.mark.parametrize("fields", [{"pool": "gap"}, {"pool": "cls", "class_token": "positioned"}, {"pool": "map"}])
def test_the_embedding_is_the_projection_of_what_is_pooled(fields):
    model = tower(**fields, representation_dim=12, projection_dim=10)
    pooled, embedding = jax.jit(lambda x: (model.pooled(x), model(x)))(IMAGES)
    assert pooled.shape == (4, 12)
    np.testing.assert_allclose(embedding, pooled @ model.projection.kernel[...], atol=1e-5)
    plain = tower(**fields)
    np.testing.assert_array_equal(*jax.jit(lambda x: (plain.pooled(x), plain(x)))(IMAGES))


def test_everything_switched_on_runs_and_has_these_parameters():
    model = tower(
        patch_size=4, pool="map", class_token="positioned", registers=3, stem="conv", stem_channels=8, stem_depth=1,
        pre_norm="layer_norm", qk_norm="layer_norm", layer_scale=0.1, representation_dim=12, projection_dim=10,
    )  # fmt: skip
    shapes = {path: x.shape for path, x in paths(model).items()}
    expected = {
        "stem/stage1/fold/kernel": (48, 8),
        "stem/stage1/blocks/kernel": (1, 3, 3, 8, 8),
        "patch_embed/kernel": (8, 16),
        "class_token": (1, 16),
        "registers": (3, 16),
        "positions": (17, 16),
        "pre_norm/scale": (16,),
        "blocks/attention_norm/scale": (2, 16),
        "blocks/attention/query/kernel": (2, 16, 16),
        "blocks/attention/query_norm/scale": (2, 8),
        "blocks/attention/out/bias": (2, 16),
        "blocks/attention_scale": (2, 16),
        "blocks/mlp/up/kernel": (2, 16, 32),
        "blocks/mlp/down/kernel": (2, 32, 16),
        "blocks/mlp_scale": (2, 16),
        "norm/bias": (16,),
        "head/probe": (1, 16),
        "head/attention/key/kernel": (16, 16),
        "head/mlp/up/bias": (32,),
        "representation/kernel": (16, 12),
        "projection/kernel": (12, 10),
    }
    assert expected.items() <= shapes.items()
    assert "projection/bias" not in shapes
    embedding, tokens, hidden = jax.jit(lambda x: (model(x), model.encode(x), model.hidden(x)))(IMAGES)
    assert embedding.shape == (4, 10) == (4, model.config.output_dim)
    assert tokens.shape == (4, 17, 16)
    assert hidden.shape == (4, 20, 16)
    np.testing.assert_allclose(model.norm(hidden)[:, 4:], tokens[:, 1:], atol=1e-5)


def test_the_class_token_takes_part_and_the_mean_leaves_it_out():
    model = tower(pool="gap", class_token="unpositioned", registers=2)
    embedding, tokens = jax.jit(lambda x: (model(x), model.encode(x)))(IMAGES)
    np.testing.assert_allclose(embedding, tokens[:, 1:].mean(1), atol=1e-5)


def test_an_image_of_another_size_gets_resized_positions():
    for fields in ({}, {"positions": "sincos2d"}, {"position_resize": "bilinear"}):
        assert jax.eval_shape(tower(**fields).encode, jnp.ones((1, 24, 40, 3))).shape == (1, 15, 16)


@pytest.mark.parametrize(
    "fields",
    [
        {"class_token": "positioned", "pool": "cls", "registers": 2},
        {"positions": "sincos2d", "registers": 1},
        {"pool": "map", "patch_size": 4, "stem": "conv", "stem_channels": 8, "stem_depth": 1},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_dropped_patches_are_neither_encoded_nor_pooled(fields):
    """Every patch alone, the others left out, is the sequence of that patch with its position and all leading tokens."""
    model = tower(**fields)
    n = (16 // model.config.patch_size) ** 2
    keep = jnp.array([[0, n - 1], [1, 2], [0, 3], [2, n - 2]])

    @jax.jit
    def run(images):
        tokens = model.embed(images)
        first = tokens.shape[1] - n
        index = jnp.concatenate([jnp.broadcast_to(jnp.arange(first), (4, first)), first + keep], 1)
        want = jnp.take_along_axis(tokens, index[..., None], 1)
        return model.embed(images, keep), want, model(images, keep), model.encode(images, keep), first

    got, want, embedding, encoded, first = run(IMAGES)
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert encoded.shape[1] == 2 + (first > 0 and "class_token" in fields)
    if model.config.pool == "gap":
        np.testing.assert_allclose(embedding, encoded.mean(1), atol=1e-5)
    elif model.config.pool == "cls":
        np.testing.assert_allclose(embedding, encoded[:, 0], atol=1e-5)


def test_keeping_every_patch_changes_nothing():
    model = tower()
    every = jnp.broadcast_to(jnp.arange(4), (4, 4))
    whole, kept = jax.jit(lambda x: (model(x), model(x, every)))(IMAGES)
    np.testing.assert_allclose(whole, kept, atol=1e-6)


@pytest.mark.parametrize("class_token", ["none", "unpositioned", "positioned"])
@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
def test_weights_for_another_size_are_what_the_tower_makes_of_them_itself(class_token, method):
    small = tower(image_size=32, class_token=class_token, position_resize=method)
    config = dataclasses.replace(small.config, image_size=48)
    weights = config.adapt(paths(small))
    images = jax.random.normal(jax.random.key(1), (2, 48, 48, 3))
    first = int(class_token == "positioned")
    table = small.positions[...]
    want = positions.resize_positions(table[first:], (4, 4), (6, 6), method)
    np.testing.assert_array_equal(weights["positions"][:first], table[:first])
    np.testing.assert_array_equal(weights["positions"][first:], want)
    large = nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0)))), tree.unflatten(weights))
    own, resized = jax.jit(lambda x: (small.embed(x), large.embed(x)))(images)
    np.testing.assert_allclose(own, resized, atol=1e-6)


def test_weights_that_fit_stay_as_they_are_and_tables_of_no_grid_are_refused():
    weights = paths(tower(image_size=32))
    same = dataclasses.replace(TINY, image_size=32).adapt(weights)
    assert same.keys() == weights.keys()
    np.testing.assert_array_equal(same["positions"], weights["positions"])
    with pytest.raises(errors.InputError, match="positions 16: not those of a square grid with class_token 'positioned'"):
        dataclasses.replace(TINY, class_token="positioned").adapt(weights)


def test_bfloat16_kernels_give_bfloat16_tokens_near_the_float32_ones():
    model = tower(pool="map", projection_dim=8)
    graphdef, state = nnx.split(model)
    cast = jax.tree_util.tree_map_with_path(
        lambda path, x: x.astype(jnp.bfloat16) if "kernel" in jax.tree_util.keystr(path) else x, nnx.to_pure_dict(state)
    )
    low, full = jax.jit(lambda x: (nnx.merge(graphdef, cast)(x), model(x)))(IMAGES)
    assert (low.dtype, full.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(low.astype(jnp.float32), full, atol=0.05)


def test_the_same_embeddings_and_gradients_on_eight_devices():
    graphdef, state = nnx.split(tower(pool="map", projection_dim=8))
    params = nnx.to_pure_dict(state)

    def step(params, images):
        return jax.value_and_grad(lambda p: jnp.square(nnx.merge(graphdef, p)(images)).sum())(params)

    expected = jax.jit(step)(params, IMAGES)
    mesh = sharding.Mesh(data=2, fsdp=2, model=2).make()
    places = sharding.shardings(params, mesh)
    with jax.set_mesh(mesh):
        split = jax.jit(step, in_shardings=(places, sharding.batch_sharding(mesh)), out_shardings=(None, places))
        actual = split(params, np.asarray(IMAGES))
    assert not actual[1]["blocks"]["mlp"]["up"]["kernel"].sharding.is_fully_replicated
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 225, "patch_size": 14}, "patch_size 14 does not divide image_size 225"),
        ({"num_heads": 3}, "num_heads 3 does not divide width 16"),
        ({"depth": 0}, "depth 0: must be at least 1"),
        ({"patch_size": 0}, "patch_size 0"),
        ({"registers": -1}, "registers -1"),
        ({"pool": "cls"}, "pool 'cls' has no token to take: set class_token"),
        ({"positions": "sincos2d", "width": 18}, "width 18: sincos2d positions need a multiple of 4"),
        ({"positions": "sincos2d", "class_token": "positioned"}, "class_token 'positioned' has no place"),
        ({"stem": "conv", "image_size": 28, "patch_size": 14}, "patch_size 14: stem 'conv' has stride 4, 8, 16"),
        ({"pool": "none", "projection_dim": 8}, "pool 'none' gives no vector to project"),
    ],
)
def test_a_config_that_cannot_work_says_what_to_change(fields, message):
    with pytest.raises(errors.InputError, match=message):
        dataclasses.replace(TINY, **fields)


@pytest.mark.parametrize("name", ["B", "B/x", "XXL/16"])
def test_an_unknown_preset_is_refused(name):
    with pytest.raises(errors.InputError, match=name.split("/")[0]):
        vit.preset(name)


def test_without_pooling_only_tokens_come_out():
    model = tower(pool="none")
    assert jax.eval_shape(model.encode, IMAGES).shape == (4, 4, 16)
    with pytest.raises(errors.InputError, match="pool 'none' makes no embedding"):
        model(IMAGES)
