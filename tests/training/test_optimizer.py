"""Schedules against the oracle, what is decayed, scaled and clipped, and every optimizer on every mesh, on disk and in a recipe."""

import dataclasses
import functools
import itertools
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from vlm_jax import config as configs
from vlm_jax.errors import InputError
from vlm_jax.models import text, vit
from vlm_jax.systems import clip
from vlm_jax.training import checkpoint, optimizer, sharding, tree
from vlm_jax.training import state as states
from vlm_jax.training import step as train_step

ROOT = Path(__file__).resolve().parents[2]
LAYERS = {"layer_decay": (("image", 0.5),), "rates": (("head/bias", 0.0),), "warmup": 0, "schedule": "constant"}
OPTIMIZERS = {
    "adamw": optimizer.AdamW(learning_rate=1e-2, moment_dtype="bfloat16", **LAYERS),
    "adafactor": optimizer.Adafactor(learning_rate=1e-2, factor_from=8, **LAYERS),
    "lion": optimizer.Lion(learning_rate=1e-3, **LAYERS),
}
each = pytest.mark.parametrize("config", OPTIMIZERS.values(), ids=OPTIMIZERS)

PARAMS = {"image": {"up": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}, "log_scale": jnp.ones(())}
ZERO = {"image": {"up": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}, "log_scale": jnp.zeros(())}


@pytest.mark.parametrize("form", ["cosine", "rsqrt"])
def test_schedules_reproduce_the_oracle(form, oracles):
    want = np.load(oracles / "schedules.npz")
    final = float(want["in_min"]) if form == "cosine" else 0.0
    rate = optimizer.schedule(form, float(want["in_base"]), int(want["in_warmup"]), int(want["in_total"]), final)
    np.testing.assert_allclose([float(rate(s)) for s in want["in_steps"]], want[f"out_{form}"], rtol=2e-5, atol=1e-9)


def test_constant_schedule_stays_after_the_warm_up():
    rate = optimizer.schedule("constant", 2.0, 4, 10, 0.0)
    np.testing.assert_allclose([float(rate(s)) for s in (0, 2, 4, 9)], [0, 1, 2, 2])


def _update(config, grads, step=0):
    transform = config.transform(lambda step: jnp.asarray(0.1))
    return transform.update(grads, transform.init(PARAMS), PARAMS, step=jnp.asarray(step))[0]


def test_decay_reaches_kernels_only_and_is_multiplied_by_the_rate():
    update = _update(optimizer.AdamW(weight_decay=0.5), ZERO)
    np.testing.assert_allclose(update["image"]["up"]["kernel"], -0.05, rtol=1e-6)
    assert not update["image"]["up"]["bias"].any() and not update["log_scale"].any()


def test_rates_scale_the_paths_they_find():
    grads = {"image": {"up": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}, "log_scale": jnp.ones(())}
    update = _update(optimizer.AdamW(weight_decay=0.0, rates=((r"^image/", 0.5), (r"kernel$", 0.1))), grads)
    np.testing.assert_allclose(update["image"]["up"]["kernel"], -0.05, rtol=1e-4)
    np.testing.assert_allclose(update["log_scale"], -0.1, rtol=1e-4)


def test_steps_follow_optax_adamw():
    config = optimizer.AdamW(learning_rate=0.1, warmup=0, schedule="constant", weight_decay=0.01, decay="", clip_norm=1.0)
    ours = config.transform(config.rate(100, 8, None))
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, 0.9, 0.95, 1e-8, weight_decay=0.01))
    a, b, state_a, state_b = PARAMS, PARAMS, ours.init(PARAMS), theirs.init(PARAMS)
    rng = np.random.default_rng(0)
    for step in range(4):
        grads = {"image": {"up": {"kernel": jnp.asarray(rng.normal(size=(2, 2))), "bias": jnp.asarray(rng.normal(size=2))}},
                 "log_scale": jnp.asarray(rng.normal())}  # fmt: skip
        update, state_a = ours.update(grads, state_a, a, step=jnp.asarray(step))
        a = optax.apply_updates(a, update)
        update, state_b = theirs.update(grads, state_b, b)
        b = optax.apply_updates(b, update)
    np.testing.assert_allclose(a["image"]["up"]["kernel"], b["image"]["up"]["kernel"], rtol=1e-5)


def test_a_pattern_that_finds_no_parameter_is_refused():
    with pytest.raises(InputError, match=r"optimizer.rates 'text/'.*image/up"):
        optimizer.AdamW(rates=(("text/", 0.1),)).check(PARAMS)


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(InputError, match="warmup 50: 50 of 20 steps"):
        optimizer.AdamW(warmup=50).rate(20, 8, None)


def test_lion_follows_optax():
    config = optimizer.Lion(clip_norm=0.0, weight_decay=0.5, decay="")
    ours = config.transform(lambda step: jnp.asarray(0.1))
    theirs = optax.with_extra_args_support(optax.lion(0.1, 0.9, 0.99, weight_decay=0.5))
    state_a, state_b = ours.init(PARAMS), theirs.init(PARAMS)
    rng = np.random.default_rng(0)
    for step in range(6):
        grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), PARAMS)
        a, state_a = ours.update(grads, state_a, PARAMS, step=jnp.asarray(step))
        b, state_b = theirs.update(grads, state_b, PARAMS)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


@each
def test_a_factor_of_zero_leaves_the_parameter_as_it_was(config):
    config = dataclasses.replace(config, layer_decay=(), rates=((r"kernel$", 0.0),), weight_decay=0.5)
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    moved = optax.apply_updates(PARAMS, _update(config, grads))
    np.testing.assert_array_equal(moved["image"]["up"]["kernel"], PARAMS["image"]["up"]["kernel"])
    assert (moved["image"]["up"]["bias"] != PARAMS["image"]["up"]["bias"]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [optimizer.AdamW, optimizer.Lion, optimizer.Adafactor])
def test_only_the_first_moment_is_kept_in_bfloat16(kind, dtype):
    params = {"kernel": jnp.ones((40, 40)), "bias": jnp.ones(40)}
    transform = kind(moment_dtype=dtype).transform(lambda step: jnp.asarray(0.1))
    updates, state = transform.update(params, transform.init(params), params, step=jnp.asarray(0))
    first, others = tree.partition(_flat(state), r"(mu|ema)/"), {x.dtype for x in jax.tree.leaves(updates)}
    assert {x.dtype for x in jax.tree.leaves(first[1])} == {jnp.dtype(dtype)}
    assert {x.dtype for x in jax.tree.leaves(first[0])} | others == {jnp.dtype("float32"), jnp.dtype("int32")}


def _flat(state):
    return {tree.path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(state)}


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("AdamW", {"learning_rate": float("nan")}, "learning_rate nan"),
        ("AdamW", {"beta2": 1.0}, r"beta2 1.0: must lie in \[0, 1\)"),
        ("Lion", {"learning_rate": -1.0}, "learning_rate -1"),
        ("Lion", {"beta1": float("nan")}, "beta1 nan"),
        ("Adafactor", {"beta2_cap": 1.5}, "beta2_cap 1.5"),
        ("Adafactor", {"clip_rms": -1.0}, "clip_rms -1"),
        ("Adafactor", {"factor_from": 0}, "factor_from 0"),
        ("Adafactor", {"moment_dtype": "float16"}, "moment_dtype 'float16' is unknown: choose one of float32, bfloat16"),
        ("AdamW", {"schedule": "linear"}, "schedule 'linear' is unknown"),
        ("AdamW", {"rates": (("image/", float("nan")),)}, "rates 'image/' nan"),
        ("AdamW", {"rates": (("image/(", 0.1),)}, r"rates 'image/\(': no regular expression"),
        ("AdamW", {"layer_decay": (("image", 0.0),)}, "layer_decay 'image' 0.0"),
        ("AdamW", {"layer_decay": (("image", float("nan")),)}, "layer_decay 'image' nan"),
        ("AdamW", {"layer_decay": (("image", 0.5), ("image", 0.6))}, "names a tower twice"),
    ],
)
def test_values_that_cannot_work_are_refused(kind, fields, message):
    with pytest.raises(InputError, match=message):
        getattr(optimizer, kind)(**fields)


# ------------------------------------------------------------------------------------------------ devices, disk


def _init(config):
    model, transform = states.Model.of(toy.StackedToy()), config.transform(config.rate(100, 16, None))
    return lambda: states.init(model, transform, config.average(), seed=0)


def _abstract(config):
    return jax.eval_shape(_init(config))


def _state(config, mesh):
    return jax.jit(_init(config), out_shardings=sharding.shardings(_abstract(config), mesh))()


ONE = (1, 1, 1)
# In float32, else a sum in another order may round to another bfloat16.
EXACT = {name: dataclasses.replace(config, moment_dtype="float32") for name, config in OPTIMIZERS.items()}


@pytest.fixture(scope="module")
def fresh():
    """A state for each optimizer."""
    return jax.device_get(jax.jit(lambda: {name: _init(config)() for name, config in EXACT.items()})())


@pytest.fixture(scope="module")
def fit(fresh):
    """Trains with each optimizer on a mesh of these sizes, in one program, which compiles in a third of the time of three.

    Final states and the metrics of every step, both by name of the optimizer.
    """
    model = states.Model.of(toy.StackedToy())
    rules = {"dtype": jnp.float32, "seed": 3, "total_steps": 100, "steps_per_epoch": 10.0}
    steps = {
        name: train_step.make(model, config.transform(config.rate(100, 16, None)), config.average(), **rules)
        for name, config in EXACT.items()
    }

    @functools.cache
    def run(sizes, batches):
        mesh = sharding.Mesh(data=sizes[0], fsdp=sizes[1], model=sizes[2]).make(jax.devices()[: math.prod(sizes)])
        shardings = {name: sharding.shardings(state, mesh) for name, state in fresh.items()}
        all_steps = jax.jit(
            lambda states, batch: {name: step(states[name], batch) for name, step in steps.items()},
            out_shardings={name: (places, None) for name, places in shardings.items()},
        )
        state, rows = jax.device_put(fresh, shardings), []
        with jax.set_mesh(mesh):
            for batch in batches:
                out = all_steps(state, sharding.put_batch(jax.tree.map(np.asarray, batch()), mesh))
                state = {name: new for name, (new, _) in out.items()}
                rows.append(jax.device_get({name: metrics for name, (_, metrics) in out.items()}))
        return jax.device_get(state), {name: [row[name] for row in rows] for name in state}

    return run


FIVE = tuple(functools.partial(toy.batch, i) for i in range(5))


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_mesh_gives_the_steps_of_one_device(name, sizes, fit):
    (state, rows), (want, want_rows) = fit(sizes, FIVE), fit(ONE, FIVE)
    np.testing.assert_allclose([r["loss"] for r in rows[name]], [r["loss"] for r in want_rows[name]], rtol=1e-5)
    assert len(rows[name]) == 5
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), state[name]["params"], want[name]["params"]
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_toy_learns_and_its_layers_move_as_their_factors_say(name, fit, fresh):
    state, rows = fit(ONE, FIVE)
    moved = jax.tree.map(lambda a, b: np.abs(a - b), state[name]["params"]["image"], fresh[name]["params"]["image"])
    assert rows[name][-1]["loss"] < rows[name][0]["loss"] and not moved["head"]["bias"].any()
    by_block = moved["blocks"]["up"]["kernel"].mean((1, 2))
    np.testing.assert_allclose(by_block[1:] / by_block[:-1], 2, rtol=0.5)
    np.testing.assert_allclose(by_block[0] / moved["patch_embed"]["kernel"].mean(), 2, rtol=0.5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_is_not_finite_leaves_all_moments_as_they_were(name, fit, fresh):
    state, rows = fit(ONE, (_not_finite,))
    assert [row["skipped"] for row in rows[name]] == [1] and state[name].pop("step") == 1
    jax.tree.map(np.testing.assert_array_equal, state[name], {part: fresh[name][part] for part in state[name]})


def _not_finite():
    return jax.tree.map(lambda x: x.at[0, 0].set(jnp.nan), toy.batch(1))


def test_factored_moments_keep_the_shards_of_the_axes_they_have():
    mesh = sharding.Mesh(data=2, fsdp=2, model=2).make()
    state = _state(OPTIMIZERS["adafactor"], mesh)
    found = {path.partition("factored_")[2]: x.sharding.spec for path, x in _flat(state["opt_state"]).items()}
    assert state["params"]["image"]["blocks"]["up"]["kernel"].sharding.spec == jax.P(None, "fsdp", "model")
    assert found["rows/image/blocks/up/kernel"] == jax.P(None, "fsdp")
    assert found["columns/image/blocks/up/kernel"] == jax.P(None, "model")
    assert found["rows/image/blocks/down/kernel"] == jax.P(None, "model")
    assert found["columns/image/blocks/down/kernel"] == jax.P(None, "fsdp")
    assert (found["rows/image/head/kernel"], found["columns/image/head/kernel"]) == (jax.P(), jax.P("fsdp"))
    assert sharding.spec("opt_state/1/0/factored_rows/text/token_embed/embedding", (100,), mesh) == jax.P(("model", "fsdp"))
    assert sharding.spec("opt_state/1/0/factored_columns/text/token_embed/embedding", (64,), mesh) == jax.P()
    squares = {path: x.sharding.spec for path, x in _flat(state["opt_state"]).items() if "squares/" in path}
    assert {path.rpartition("squares/")[2]: spec for path, spec in squares.items() if "up" in path} == {
        "image/blocks/up/bias": jax.P(None, "model")
    }


@each
def test_a_checkpoint_returns_the_state_on_another_mesh(config, tmp_path):
    abstract, state = _abstract(config), _state(config, sharding.Mesh().make(jax.devices()[:1]))
    number = itertools.count(1)
    want = jax.tree.map(lambda x: (x + next(number)).astype(x.dtype), state)
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    checkpoints.save(5, want, {})
    checkpoints.wait()
    mesh = sharding.Mesh(data=2, fsdp=2, model=2).make()
    _, state, _ = checkpoints.resume(abstract, mesh, "stop")
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(want))
    shards = sharding.shardings(abstract, mesh)
    assert jax.tree.all(jax.tree.map(lambda x, want: x.sharding == want, state, shards))


def test_a_run_goes_on_with_its_optimizer_only_and_may_change_the_dtype_of_moments(tmp_path):
    mesh = sharding.Mesh().make(jax.devices()[:1])
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, _state(OPTIMIZERS["adamw"], mesh), {})
    checkpoints.wait()
    for other in (OPTIMIZERS["lion"], OPTIMIZERS["adafactor"], dataclasses.replace(OPTIMIZERS["adamw"], clip_norm=0.0)):
        with pytest.raises(InputError, match=r"another optimizer \([01].*: stored .*, here .*--init-from"):
            checkpoints.resume(_abstract(other), mesh, "stop")
    config = dataclasses.replace(OPTIMIZERS["adamw"], moment_dtype="float32")
    _, state, _ = checkpoints.resume(_abstract(config), mesh, "stop")
    assert {str(x.dtype) for x in jax.tree.leaves(state["opt_state"])} == {"float32", "int32"}
    checkpoints.close()


# ------------------------------------------------------------------------------------------------ recipe, table, document


def test_a_recipe_may_take_any_optimizer_and_the_command_line_its_fields():
    demo, _ = configs.load_recipe(str(ROOT / "configs" / "demo.py"))
    demo = dataclasses.replace(demo, optimizer=optimizer.Lion())
    arguments = ["--optimizer.beta2", "0.98", "--optimizer.layer-decay", "text", "0.65", "--optimizer.rates", "head", "0.1", "bias", "2"]
    changed = configs.parse(demo, arguments, prog="", description="").optimizer
    assert changed == optimizer.Lion(beta2=0.98, layer_decay=(("text", 0.65),), rates=(("head", 0.1), ("bias", 2.0)))
    with pytest.raises(InputError, match="beta2-cap"):
        configs.parse(demo, ["--optimizer.beta2-cap", "0.9"], prog="", description="")
    assert configs.from_json(json.loads(json.dumps(configs.to_json(changed)))) == changed


def test_a_configuration_from_before_there_were_others_still_loads():
    old = {"_type": "vlm_jax.training.optimizer.AdamW", "learning_rate": 0.002, "beta2": 0.98, "rates": [["text/", 0.5]], "ema": 0.0}
    assert configs.from_json(old) == optimizer.AdamW(learning_rate=0.002, beta2=0.98, rates=(("text/", 0.5),))


def test_an_optimizer_without_a_rule_says_so():
    with pytest.raises(TypeError, match="choose AdamW, Adafactor or Lion"):
        optimizer.Optimizer().transform(lambda step: step)


def test_the_table_of_parameters_shows_factors_and_decay_where_there_are_some():
    model, mesh = states.Model.of(toy.StackedToy(frozen="^scale$")), sharding.Mesh().make(jax.devices()[:1])
    rows = {line.split()[0]: line.split()[4:] for line in states.table(model, mesh, OPTIMIZERS["adamw"]).splitlines()}
    assert rows["parameter"] == ["rate", "and", "decay", "shards"]
    assert rows["image/blocks/up/kernel"] == ["0.125", "to", "0.5,", "decayed"]
    assert rows["image/patch_embed/bias"] == ["0.0625"] and rows["image/head/bias"] == ["0"]
    assert rows["image/head/kernel"] == ["1,", "decayed"] and rows["scale"] == ["frozen"]
    plain = states.table(model, mesh, optimizer.AdamW())
    assert "rate and decay" not in plain and "image/head/kernel" in plain


DOCUMENT = ROOT / "docs" / "training.md"
TOWERS = {
    "image": vit.preset("B/16", image_size=224, projection_dim=512),
    "text": text.Config(
        vocab_size=49408, length=77, width=512, depth=12, mlp_dim=2048, num_heads=8, attention="causal", pool="argmax", projection_dim=512
    ),
}


@pytest.fixture(scope="module")
def b16():
    """Shapes of the parameters of CLIP with a ViT-B/16."""
    return states.Model.of(clip.Clip(**TOWERS)).params


def test_documented_excerpts_are_optimizers_that_fit(b16):
    blocks = re.findall(r"^```python\n(optimizer.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        found = eval(f"dict({block.strip()})", {"optimizer": optimizer})["optimizer"]
        found.check(b16)
        jax.eval_shape(found.transform(found.rate(10000, 1024, None)).init, b16)


def test_documented_bytes_are_those_of_the_state(b16):
    rows = re.findall(r"^\| `optimizer\.(.*?)` \| ([\d.]+) \| ([\d,]+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert len(rows) == 6
    count = sum(x.size for x in jax.tree.leaves(b16))
    assert f"{count:,} parameters" in DOCUMENT.read_text()
    for call, bytes_per_parameter, megabytes in rows:
        config = eval(f"optimizer.{call}", {"optimizer": optimizer})
        state = jax.eval_shape(config.transform(lambda step: step).init, b16)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        assert (bytes_per_parameter, megabytes) == (f"{size / count:.2f}", f"{size / 1e6:,.0f}"), call
