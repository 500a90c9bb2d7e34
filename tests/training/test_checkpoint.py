"""Checkpoints: equal bytes on every mesh, frozen parameters once, and a clear word where the model is another."""


import jax
import numpy as np
import pytest
import toy

from vlm_jax.errors import InputError
from vlm_jax.training import checkpoint, sharding
from vlm_jax.training import state as states
from vlm_jax.training.optimizer import AdamW

ADAM = AdamW(warmup=0, ema=0.9)


def _state(mesh, system):
    model, transform = states.Model.of(system), ADAM.transform(ADAM.rate(10, 1, None))

    def init():
        return states.init(model, transform, ADAM.average(), seed=0)

    abstract = jax.eval_shape(init)
    return abstract, jax.jit(init, out_shardings=sharding.shardings(abstract, mesh))()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "config.json").write_text("{}")
    mesh = sharding.Mesh().make()
    abstract, state = _state(mesh, toy.Toy(frozen=r"^up/"))
    checkpoints = checkpoint.Checkpoints(workdir, keep=2)
    for step in (3, 5, 7):
        checkpoints.save(step, state, {"step": step})
    checkpoints.close()
    return workdir, abstract, jax.device_get(state)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 4, 2), (2, 2, 2)], ids=str)
def test_state_and_data_position_return_on_another_mesh(saved, sizes):
    workdir, abstract, want = saved
    mesh = sharding.Mesh(data=sizes[0], fsdp=sizes[1], model=sizes[2]).make()
    checkpoints = checkpoint.Checkpoints(workdir, keep=2)
    state, data = checkpoints.restore(checkpoints.latest, abstract, mesh)
    checkpoints.close()
    assert data == {"step": 7}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), want)
    spec = sharding.spec("params/down/kernel", (32, 8), mesh)
    assert state["params"]["down"]["kernel"].sharding.spec == spec


def test_only_the_last_ones_stay_and_frozen_parameters_are_written_once(saved):
    workdir, _, _ = saved
    assert checkpoint.steps(workdir) == [5, 7]
    assert (workdir / "frozen").is_dir()
    stored = checkpoint.ocp.checkpointables_metadata(workdir / "checkpoints" / "7").metadata
    assert "up" not in stored["params"] and "up" not in stored["average"]


def test_weights_are_loaded_without_moments(saved):
    workdir, _, want = saved
    model = states.Model.of(toy.Toy(frozen=r"^up/"))
    weights, step = checkpoint.load_weights(workdir, 5, states.weights_of(model), sharding.Mesh().make())
    assert step == 5 and set(weights) == {"params", "frozen", "buffers", "average"}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(weights), {name: want[name] for name in weights})


def test_another_model_is_named_by_its_first_differences(saved):
    workdir, abstract, _ = saved
    mesh = sharding.Mesh().make()
    other = jax.tree.map(lambda x: x, abstract)
    other["params"]["down"]["kernel"] = jax.ShapeDtypeStruct((32, 9), np.float32)
    other["params"]["more"] = jax.ShapeDtypeStruct((2,), np.float32)
    checkpoints = checkpoint.Checkpoints(workdir, keep=2)
    with pytest.raises(InputError, match=r"another model.*down/kernel: stored 32x8 float32, here 32x9.*more: stored nothing"):
        checkpoints.restore(7, other, mesh)
    checkpoints.close()


def test_missing_steps_and_folders_are_named(saved, tmp_path):
    workdir, _, _ = saved
    weights = states.weights_of(states.Model.of(toy.Toy()))
    with pytest.raises(InputError, match="no step 6; it has 5, 7"):
        checkpoint.load_weights(workdir, 6, weights, sharding.Mesh().make())
    with pytest.raises(InputError, match=r"no config\.json"):
        checkpoint.locate(tmp_path)
    assert checkpoint.locate(workdir / "checkpoints" / "5") == (workdir, 5)


def test_ema_weights_must_have_been_kept(saved):
    _, _, state = saved
    with pytest.raises(InputError, match="keeps no moving average"):
        states.variables(state | {"average": {}}, "ema")
