"""CLIP with a modified ResNet: training renews the statistics of the global batch, evaluation and a lock use those that are stored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_two_tower import TEXT, _context

from vlm_jax.errors import InputError
from vlm_jax.layers import batch_norm
from vlm_jax.models import resnet
from vlm_jax.systems import clip, cyclip, lit, siglip, two_tower
from vlm_jax.training import sharding, step, tree
from vlm_jax.training import state as states
from vlm_jax.training.optimizer import AdamW

IMAGE = resnet.Config(image_size=32, layers=(1, 1, 1, 1), width=4, num_heads=2, projection_dim=8)


@dataclasses.dataclass(frozen=True)
class Small:
    """A tower of images or texts with one batch norm, which a test compiles in a second."""

    kind: str
    image_size: int = 32
    output_dim: int = 8
    vocab_size: int = 32

    def build(self, *, rngs):
        return SmallTower(self, rngs)


class SmallTower(nnx.Module):
    def __init__(self, config, rngs):
        self.table = nnx.Param(0.1 * jax.random.normal(rngs.params(), (192 if config.kind == "image" else 32, 8)))
        self.norm = batch_norm.BatchNorm(8, epsilon=1e-5)
        self.kind = config.kind

    def __call__(self, x):
        return self._embed(x, "stored")[0]

    def with_batch_statistics(self, x):
        y, new = self._embed(x, "batch")
        return y, {"norm": new}

    def _embed(self, x, statistics):
        if self.kind == "image":
            x = x.reshape(len(x), 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(len(x), 4, 4, 192) @ self.table[...]
        else:
            x = self.table[...][x][:, None]
        y, new = self.norm(x, statistics)
        return jnp.tanh(y).mean((1, 2)), new


SMALL = {"image": Small("image"), "text": Small("text")}
ADAM = AdamW(learning_rate=3e-3, warmup=0, schedule="constant", weight_decay=0.0, epsilon=1e-4)
"""With an epsilon above the noise of gradients that are zero, such as that of a bias of all keys."""


def batch(size=16):
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 32, (size, 6)).astype(np.int32)
    tokens[:, -1] = 1
    return {"pairs": {"image": rng.standard_normal((size, 32, 32, 3), np.float32), "tokens": tokens}}


def train(system, batches, mesh=None, dtype=jnp.float32):
    """The states before the first and after every step, and all metrics."""
    model, mesh = states.Model.of(system), mesh or sharding.Mesh().make(jax.devices()[:1])
    transform = ADAM.transform(ADAM.rate(100, 16, None))
    one = step.make(model, transform, ADAM.average(), dtype=dtype, seed=0, total_steps=100, steps_per_epoch=1.0)
    with jax.set_mesh(mesh):
        shardings = sharding.shardings(jax.eval_shape(lambda: states.init(model, transform, ADAM.average(), seed=0)), mesh)
        state = jax.jit(lambda: states.init(model, transform, ADAM.average(), seed=0), out_shardings=shardings)()
        jitted = jax.jit(one, out_shardings=(shardings, None))
        found, rows = [jax.device_get(state)], []
        for data in batches:
            state, metrics = jitted(state, sharding.put_batch(data, mesh))
            found.append(jax.device_get(state))
            rows.append(jax.device_get(metrics))
    assert jitted._cache_size() == 1
    return found, rows


@pytest.mark.parametrize("cls", [clip.Clip, siglip.Siglip, cyclip.Cyclip, lit.Lit])
def test_every_system_gives_all_new_statistics_of_a_tower_that_is_trained(cls):
    system = cls(image=IMAGE, text=TEXT)
    model = states.Model.of(system)

    def objective(model, data):
        return system.objective(model, data, {}, _context())

    found = jax.eval_shape(objective, model.merge(model.params, model.buffers), jax.tree.map(jnp.asarray, batch()))
    want = {} if cls is lit.Lit else tree.flatten(model.buffers)
    assert {path: x.shape for path, x in tree.flatten(found.buffers).items()} == {path: x.shape for path, x in want.items()}
    assert len(tree.flatten(model.buffers)) == 2 * (3 + 4 * 4)


@pytest.mark.parametrize(
    ("towers", "buffers"),
    [(SMALL, 4), pytest.param({"image": IMAGE, "text": TEXT}, 2 * (3 + 4 * 4), marks=pytest.mark.slow)],
    ids=["small", "resnet"],
)
def test_steps_learn_and_renew_statistics_and_one_that_is_not_finite_keeps_them(towers, buffers):
    bad = batch()
    bad["pairs"]["image"][0, 0, 0, 0] = np.nan
    found, rows = train(clip.Clip(**towers), [*[batch()] * 12, bad])
    assert rows[11]["loss"] < 0.9 * rows[0]["loss"]
    moved = tree.flatten(jax.tree.map(lambda a, b: bool((a != b).any()), found[0]["buffers"], found[12]["buffers"]))
    assert len(moved) == buffers and all(moved.values()), moved
    assert rows[12]["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, found[13]["buffers"], found[12]["buffers"])


def test_under_bfloat16_statistics_stay_float32():
    system = clip.Clip(image=IMAGE, text=TEXT)
    model, transform = states.Model.of(system), ADAM.transform(ADAM.rate(100, 16, None))
    one = step.make(model, transform, ADAM.average(), dtype=jnp.bfloat16, seed=0, total_steps=100, steps_per_epoch=1.0)
    state = jax.eval_shape(lambda: states.init(model, transform, ADAM.average(), seed=0))
    new, _ = jax.eval_shape(one, state, batch())
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {x.dtype for x in jax.tree.leaves(new["buffers"])} == {jnp.dtype(jnp.float32)}


def test_chunks_are_refused_where_statistics_are_renewed():
    system = clip.Clip(image=IMAGE, text=TEXT)
    model = states.Model.of(system)
    built = model.merge(model.params, model.buffers)
    system.check_chunks(built, 1)
    for refused in (lambda: system.check_chunks(built, 4), lambda: system.objective(built, batch(), {}, _context(4))):
        with pytest.raises(InputError, match=r"microbatches 4: the image tower normalises by statistics of the whole batch.*'\^image/'"):
            refused()


@pytest.mark.parametrize(("frozen", "renewed"), [("^image/", ()), ("^image/stage", ("image",)), ("(?!)", ("image",)), (".*", ())])
def test_only_a_tower_that_is_frozen_whole_keeps_its_statistics(frozen, renewed):
    system = dataclasses.replace(clip.Clip(image=IMAGE, text=TEXT), frozen=frozen)
    assert nnx.eval_shape(lambda: system.build(rngs=nnx.Rngs(0))).renewed == renewed


@pytest.mark.slow
@pytest.mark.parametrize("microbatches", [1, 4])
def test_a_locked_tower_embeds_in_training_as_in_evaluation(microbatches):
    system = lit.Lit(image=IMAGE, text=TEXT)
    model = system.build(rngs=nnx.Rngs(0))
    model.image.stem1.norm.variance = type(model.image.stem1.norm.variance)(jnp.full(2, 3.0))
    with jax.set_mesh(sharding.Mesh(data=2, fsdp=2).make(jax.devices()[:4])):
        image, _, buffers = jax.jit(lambda model, data: two_tower.embed(model, data, _context(microbatches)))(model, batch())
    np.testing.assert_allclose(image, jax.jit(two_tower.Model.embed_image)(model, batch()["pairs"]["image"]), atol=1e-5)
    assert buffers == {}


@pytest.mark.slow
def test_three_steps_over_any_mesh_are_those_of_one_device():
    """Losses, gradients, parameters and statistics: the batch of a norm is the global one."""
    system = clip.Clip(image=IMAGE, text=TEXT)
    want, rows = train(system, [batch()] * 3)
    for data, fsdp, model in ((8, 1, 1), (2, 4, 1), (4, 1, 2)):
        got, others = train(system, [batch()] * 3, sharding.Mesh(data=data, fsdp=fsdp, model=model).make())
        for name in ("loss", "grad_norm/image", "grad_norm/text"):
            np.testing.assert_allclose([r[name] for r in others], [r[name] for r in rows], rtol=1e-4)
        for part in ("params", "buffers"):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got[-1][part], want[-1][part])
