"""Checkpoints: equal bytes on every mesh, damage found, frozen parameters once, and a clear word where the model is another."""

import hashlib
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from vlm_jax import errors
from vlm_jax.errors import InputError
from vlm_jax.training import checkpoint, manifest, sharding
from vlm_jax.training import state as states
from vlm_jax.training import step as steps
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
    step, state, data = checkpoints.resume(abstract, mesh, "stop")
    checkpoints.close()
    assert (step, data) == (7, {"step": 7})
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


def test_weights_alone_can_be_loaded_but_not_resumed(saved, tmp_path):
    _, abstract, state = saved
    checkpoint.save_weights(tmp_path / "merged", 3, state)
    model = states.Model.of(toy.Toy(frozen=r"^up/"))
    weights, step = checkpoint.load_weights(tmp_path / "merged", None, states.weights_of(model), sharding.Mesh().make())
    assert step == 3 and manifest.verify(tmp_path / "merged" / "checkpoints" / "3") == "verified"
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(weights), {name: state[name] for name in weights})
    with pytest.raises(InputError, match=r"it holds weights and no moments; start another run with --init-from"):
        _resume(tmp_path / "merged", abstract)
    with pytest.raises(InputError, match="it is there already"):
        checkpoint.save_weights(tmp_path / "merged", 3, state)


def test_another_model_is_named_by_its_first_differences(saved):
    workdir, abstract, _ = saved
    mesh = sharding.Mesh().make()
    other = jax.tree.map(lambda x: x, abstract)
    other["params"]["down"]["kernel"] = jax.ShapeDtypeStruct((32, 9), np.float32)
    other["params"]["more"] = jax.ShapeDtypeStruct((2,), np.float32)
    checkpoints = checkpoint.Checkpoints(workdir, keep=2)
    with pytest.raises(InputError, match=r"another model.*down/kernel: stored 32x8 float32, here 32x9.*more: stored nothing"):
        checkpoints.resume(other, mesh, "stop")
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


# ------------------------------------------------------------------------------------------------ damage


@pytest.fixture
def run(saved, tmp_path):
    """A copy of the run, to be damaged."""
    shutil.copytree(saved[0], tmp_path / "run")
    return tmp_path / "run"


def _resume(workdir, abstract, on_corrupt="previous", mesh=None):
    checkpoints = checkpoint.Checkpoints(workdir, keep=2)
    try:
        return checkpoints.resume(abstract, mesh or sharding.Mesh().make(), on_corrupt)
    finally:
        checkpoints.close()


def _flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def test_one_flipped_bit_in_any_file_is_found(run, saved):
    """R4."""
    rng, found, files = np.random.default_rng(0), 0, _files(run / "checkpoints" / "7") + _files(run / "frozen")
    for path in files:
        bit = int(rng.integers(8 * path.stat().st_size))
        _flip(path, bit)
        folder = run / "frozen" if "frozen" in path.parts else run / "checkpoints" / "7"
        try:
            manifest.verify(folder)
        except manifest.Damaged as error:
            found += str(path.relative_to(folder)) in str(error)
        _flip(path, bit)
    print(f"R4: one bit flipped in each of {len(files)} files, {found} found and named")
    assert len(files) > 30 and found == len(files)
    assert _resume(run, saved[1], "stop")[0] == 7


def test_a_damaged_step_is_set_aside_and_can_be_saved_again(run, saved, capsys):
    _, abstract, want = saved
    _flip(max(_files(run / "checkpoints" / "7" / "params"), key=lambda path: path.stat().st_size), 4000)
    with pytest.raises(errors.InfrastructureError, match=r"7 is damaged: params/.*SHA-256.*--on-corrupt previous.*5"):
        _resume(run, abstract, "stop")
    assert checkpoint.steps(run) == [5, 7]
    step, state, data = _resume(run, abstract)
    assert (step, data) == (5, {"step": 5})
    assert "7 is damaged: params/" in (said := capsys.readouterr().err) and "5 is used instead" in said
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), want)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["5", "damaged-7"]
    checkpoints = checkpoint.Checkpoints(run, keep=2)
    checkpoints.save(7, state, {"step": 7})
    checkpoints.close()
    assert manifest.verify(run / "checkpoints" / "7") == "verified" and checkpoint.steps(run) == [5, 7]
    (run / "checkpoints" / "7" / "commit_success.txt").unlink()
    assert _resume(run, abstract)[0] == 5
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["5", "damaged-7", "damaged-7-2"]


def test_where_no_step_is_good_nothing_is_renamed_and_the_run_does_not_start_anew(run, saved):
    for step in ("5", "7"):
        _flip(run / "checkpoints" / step / "_CHECKPOINT_METADATA", 99)
    for _ in range(2):
        with pytest.raises(errors.InfrastructureError, match=r"7 is damaged.*5 is damaged.*no other is good"):
            _resume(run, saved[1])
    assert checkpoint.steps(run) == [5, 7]


def test_damaged_frozen_parameters_stop_in_any_case(run, saved):
    _flip(max(_files(run / "frozen"), key=lambda path: path.stat().st_size), 4000)
    with pytest.raises(errors.InfrastructureError, match=r"frozen is damaged: state/.*there is no other"):
        _resume(run, saved[1])


def test_an_unverified_step_is_used_where_it_can_be_read(run, saved, capsys):
    (run / "checkpoints" / "7" / manifest.NAME).unlink()
    assert _resume(run, saved[1], "stop")[0] == 7
    assert "7: unverified" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints" / "7" / "training" / "d")
    with pytest.raises(errors.InfrastructureError, match="7 is damaged: it cannot be read"):
        _resume(run, saved[1], "stop")
    assert _resume(run, saved[1])[0] == 5


def test_evaluation_takes_the_previous_step_but_never_instead_of_a_named_one(run):
    weights, mesh = states.weights_of(states.Model.of(toy.Toy(frozen=r"^up/"))), sharding.Mesh().make()
    _flip(run / "checkpoints" / "7" / "params" / "_METADATA", 99)
    assert checkpoint.load_weights(run, None, weights, mesh, on_corrupt="previous")[1] == 5
    for step, on_corrupt in ((7, "previous"), (None, "stop")):
        with pytest.raises(errors.InfrastructureError, match="7 is damaged: params/_METADATA"):
            checkpoint.load_weights(run, step, weights, mesh, on_corrupt=on_corrupt)
    assert checkpoint.steps(run) == [5, 7]


def test_bytes_are_equal_on_every_mesh_and_the_next_losses_agree(saved, tmp_path):
    """R5."""
    _, abstract, want = saved
    shutil.copytree(saved[0], tmp_path / "run")
    model, transform = states.Model.of(toy.Toy(frozen=r"^up/")), ADAM.transform(ADAM.rate(10, 1, None))
    train_step = steps.make(model, transform, ADAM.average(), dtype=jnp.float32, seed=3, total_steps=100, steps_per_epoch=10.0)

    def digest(state):
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
        return hashlib.sha256(b"".join(str(keys).encode() + np.asarray(x).tobytes() for keys, x in leaves)).hexdigest()

    losses = {}
    for sizes in ((8, 1, 1), (2, 4, 1), (4, 2, 1), (1, 4, 2), (1, 1, 1)):
        mesh = sharding.Mesh(data=sizes[0], fsdp=sizes[1], model=sizes[2]).make(jax.devices()[: int(np.prod(sizes))])
        _, state, _ = _resume(tmp_path / "run", abstract, "stop", mesh)
        assert digest(state) == digest(want)
        with jax.set_mesh(mesh):
            losses[sizes] = []
            for seed in range(3):
                state, metrics = jax.jit(train_step)(state, sharding.put_batch(jax.tree.map(np.asarray, toy.batch(seed)), mesh))
                losses[sizes].append(float(metrics["loss"]))
    difference = max(abs(a / b - 1) for own in losses.values() for a, b in zip(own, losses[(8, 1, 1)], strict=True))
    print(f"R5: saved on (8,), restored on {list(losses)[1:]}: equal bytes {digest(want)[:12]}; next 3 losses to {difference:.1e}")
    assert difference <= 1e-6


# ------------------------------------------------------------------------------------------------ what is compared, and saved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["extra"] | {"seen": jax.ShapeDtypeStruct((), np.float32)}, "extra/seen: stored scalar int32, here scalar float32"),
        (lambda s: s["extra"] | {"queue": jax.ShapeDtypeStruct((4,), np.float32)}, "extra/queue: stored nothing, here 4 float32"),
    ],
    ids=["dtype", "name"],
)
def test_another_extra_is_named(saved, change, message):
    abstract = saved[1] | {"extra": change(saved[1])}
    with pytest.raises(InputError, match=rf"another system \({message}\)"):
        _resume(saved[0], abstract)


def test_dtypes_are_named_where_they_would_be_cast_in_silence(saved):
    abstract = jax.tree.map(lambda x: x, saved[1])
    abstract["params"]["down"]["bias"] = jax.ShapeDtypeStruct((8,), jnp.bfloat16)
    with pytest.raises(InputError, match=r"another model \(down/bias: stored 8 float32, here 8 bfloat16\)"):
        _resume(saved[0], abstract)
    counts = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32 if jnp.issubdtype(x.dtype, jnp.integer) else x.dtype), saved[1]["opt_state"]
    )
    with pytest.raises(InputError, match=r"another optimizer \(.*count: stored scalar int32, here scalar float32"):
        _resume(saved[0], saved[1] | {"opt_state": counts})


def test_a_state_that_is_not_finite_replaces_no_good_one(run, saved):
    checkpoints = checkpoint.Checkpoints(run, keep=1)
    _, state, _ = checkpoints.resume(saved[1], sharding.Mesh().make(), "stop")
    for item, kind in (("params", jnp.inf), ("average", jnp.nan), ("opt_state", jnp.inf)):
        bad = state | {item: jax.tree.map(lambda x, kind=kind: x + jnp.asarray(kind).astype(x.dtype), state[item])}
        with pytest.raises(InputError, match=rf"the state after step 9 is not finite \({item}/.*is not saved"):
            checkpoints.save(9, bad, {})
    checkpoints.close()
    assert checkpoint.steps(run) == [5, 7] and _resume(run, saved[1], "stop")[0] == 7
