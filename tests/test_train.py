"""Whole runs: what they leave, how they resume, that every mesh gives the same losses, and what is refused before step one."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import errors, evaluate, train
from vlm_jax import run as runs
from vlm_jax.errors import InputError
from vlm_jax.training import checkpoint, loop, sharding, tree
from vlm_jax.training import state as states

ROOT = Path(__file__).resolve().parents[1]
RECIPE = str(Path(__file__).parent / "tiny_recipe.py")


def _flags(world: Path, workdir: Path, *more: str) -> list[str]:
    return [
        *("--data.train", f"{world}/train-*.array_record", "--data.val", f"{world}/val-*.array_record"),
        *("--data.tokenizer.path", f"{world}/tokenizer.model", "--evaluators.held-out.classes", f"{world}/classes.json"),
        *("--evaluators.held-out.data", f"{world}/held_out-*.array_record", "--workdir", str(workdir), *more),
    ]


def _losses(workdir: Path) -> list[float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def finished(tiny_world, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main([RECIPE, *_flags(tiny_world, workdir)]) == 0
    return workdir


def test_a_run_leaves_what_the_documents_promise(finished):
    for name in ("config.json", "metrics.jsonl", "evaluation.json", "report.html", "tensorboard", "pairs.model"):
        assert (finished / name).exists(), name
    assert checkpoint.steps(finished) == [3, 6]
    records = json.loads((finished / "evaluation.json").read_text())
    assert {r["dataset"]: r["task"] for r in records} == {"val": "zeroshot_retrieval", "held_out": "zeroshot_classification"}
    assert all({"dataset", "model", "task", "metrics", "language", "step", "weights"} <= record.keys() for record in records)
    assert all(record["weights"] == "ema" and record["step"] == 6 for record in records)
    row = json.loads((finished / "metrics.jsonl").read_text().splitlines()[2])
    wanted = {"loss", "grad_norm", "grad_norm/image", "grad_norm/text", "scale", "positive_similarity", "negative_similarity"}
    assert wanted | {"learning_rate", "examples_per_second", "input_wait_share", "skipped"} <= row.keys()
    assert "trained the model" in (finished / "report.html").read_text(), "where the time went, too"


def test_an_interrupted_run_goes_on_bit_for_bit(finished, tiny_world, tmp_path, monkeypatch):
    fit = loop.fit

    def fit_to_step_four(state, batches, **arguments):
        stopping = (batch for number, batch in zip(range(4), batches, strict=False))
        return fit(state, stopping, **arguments)

    monkeypatch.setattr(loop, "fit", fit_to_step_four)
    with pytest.raises(StopIteration):
        train.main([RECIPE, *_flags(tiny_world, tmp_path / "run")])
    monkeypatch.undo()
    assert checkpoint.steps(tmp_path / "run") == [3]
    assert train.main([RECIPE, *_flags(tiny_world, tmp_path / "run", "--workers", "1")]) == 0
    assert _losses(tmp_path / "run") == _losses(finished)
    weights = [_weights(workdir) for workdir in (finished, tmp_path / "run")]
    jax.tree.map(np.testing.assert_array_equal, *weights)


def test_sigterm_saves_and_the_same_command_goes_on(tiny_world, tmp_path):
    """A preempted process: exit code 3, the step it was at is on disk, and nothing is made again."""
    flags = [RECIPE, *_flags(tiny_world, tmp_path / "run", "--steps", "40", "--save-every", "0", "--eval-every", "0", "--log-every", "1")]
    child = subprocess.Popen([sys.executable, "-m", "vlm_jax.train", *flags], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while child.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=120)
    assert child.returncode == errors.PREEMPTED, said
    (step,) = checkpoint.steps(tmp_path / "run")
    assert step < 40 and f"stopped: SIGTERM after step {step} of 40, which is saved" in said
    assert train.main(flags) == 0
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 41))
    first, second = json.loads((tmp_path / "run" / "goodput.json").read_text())
    assert (first["last_step"], second["first_step"], second["last_step"]) == (step, step, 40)


def _weights(workdir):
    config, folder, _ = configs.of_checkpoint(str(workdir))
    shapes = states.weights_of(states.Model.of(config.system))
    return jax.device_get(checkpoint.load_weights(folder, None, shapes, sharding.Mesh().make())[0])


def test_a_finished_run_has_nothing_left_to_train(finished, tiny_world, capsys):
    before = _losses(finished)
    assert train.main([RECIPE, *_flags(tiny_world, finished)]) == 0
    assert "nothing left to train" in capsys.readouterr().out
    assert _losses(finished) == before


def test_evaluate_gives_the_numbers_of_the_run(finished, tmp_path, capsys):
    want = {r["dataset"]: r["metrics"] for r in json.loads((finished / "evaluation.json").read_text())}
    assert evaluate.main(["--checkpoint", str(finished), "--tasks", "val", "--out", str(tmp_path)]) == 0
    (got,) = json.loads((tmp_path / "evaluation.json").read_text())
    assert got["metrics"] == pytest.approx(want["val"], abs=1e-6)
    assert evaluate.main(["--checkpoint", str(finished / "checkpoints" / "3"), "--out", str(tmp_path), "--weights", "raw"]) == 0
    records = json.loads((tmp_path / "evaluation.json").read_text())
    assert [(r["step"], r["weights"]) for r in records] == [(3, "raw")] * 2


def test_init_from_starts_with_the_weights_of_another_run(finished, tiny_world, tmp_path):
    flags = _flags(tiny_world, tmp_path / "next", "--init-from", str(finished), "--steps", "1", "--optimizer.warmup", "0")
    assert train.main([RECIPE, *flags, "--optimizer.learning-rate", "0", "--optimizer.weight-decay", "0"]) == 0
    weights, source = _weights(tmp_path / "next"), _weights(finished)["average"]
    jax.tree.map(np.testing.assert_array_equal, weights["params"], source)
    jax.tree.map(np.testing.assert_array_equal, weights["average"], source)


def test_init_from_takes_a_part_and_says_what_is_fresh(finished, tiny_world, tmp_path, capsys):
    """LiT as a user starts it: the image tower of a run, locked; the other parameters are those of the seed."""
    still = ("--steps", "2", "--optimizer.warmup", "1", "--system.frozen", "^image/", "--seed", "7")
    assert train.main([RECIPE, *_flags(tiny_world, tmp_path / "lit", "--init-from", f"image/ <- {finished}", *still)]) == 0
    said = capsys.readouterr().out
    count = len(tree.flatten(_weights(finished)["average"]["image"]))
    assert f"{count} parameters of image/ from {finished}" in said and "freshly initialised: log_scale, text/" in said
    locked, trained = _weights(tmp_path / "lit")["frozen"], _weights(tmp_path / "lit")["params"]
    jax.tree.map(np.testing.assert_array_equal, locked["image"], _weights(finished)["average"]["image"])
    assert set(trained) == {"text", "log_scale"} and set(locked) == {"image"}
    with pytest.raises(InputError, match=r"init_from .*: no parameter begins with 'vision/'; it has image, log_scale, text"):
        train.main([RECIPE, *_flags(tiny_world, tmp_path / "no", "--init-from", f"image/ = vision/ <- {finished}", *still)])
    with pytest.raises(InputError, match=r"init_from .*: image/blocks/\S+: stored with shape \(1, "):
        train.main([RECIPE, *_flags(tiny_world, tmp_path / "no", "--init-from", f"image/blocks/[:1] <- {finished}", *still)])


@pytest.mark.slow
def test_a_cheap_stage_goes_on_at_full_size(tiny_world, tmp_path):
    """Half of the patches of 32 pixels and 8 tokens, then all patches of 48 pixels and 24 tokens."""

    def stage(name, *flags):
        towers = ("--system.image.patch-size", "4", "--system.text.pool", "mean", "--system.text.attention", "bidirectional")
        hidden = ("--system.text.padding-mask", "pad", "--system.text.pad-id", "0", "--data.caption", "first", "--data.image.flip", "0")
        flags = _flags(tiny_world, tmp_path / name, *towers, *hidden, "--save-every", "0", *flags)
        config = configs.parse(configs.load_recipe(RECIPE)[0], flags, prog="test", description="")
        runs.Run.build(config, name="tiny", devices=jax.devices()[:1]).train()
        return _losses(tmp_path / name), _weights(tmp_path / name)["params"]["image"]["positions"].shape

    short = ("--system.image-tokens.keep", "0.5", "--data.tokenizer.length", "8", "--data.image.resize-to", "32")
    large = ("--system.image.image-size", "48", "--data.image.size", "48", "--data.image.resize-to", "48")
    first, grid = stage("cheap", *short, "--steps", "120", "--optimizer.learning-rate", "3e-3")
    init = ("--init-from", str(tmp_path / "cheap"), "--weights", "raw")
    second, larger = stage("large", *large, *init, "--steps", "8")
    assert (grid, larger) == ((64, 32), (144, 32))
    chance = np.log(16)
    assert first[0] > chance and np.mean(first[-8:]) < 0.6 * chance
    assert max(second) < 0.9 * chance and np.mean(second) < 0.7 * chance
    with pytest.raises(InputError, match=r"system\.text\.length 25: the weights have positions for 24 tokens"):
        stage("longer", *init, "--system.text.length", "25")


def test_dry_run_prints_sizes_and_writes_nothing(tiny_world, tmp_path, capsys):
    assert train.main([RECIPE, *_flags(tiny_world, tmp_path / "dry"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "image/blocks/attention/query/kernel" in out and "compiled in" in out and "loss" in out
    assert not (tmp_path / "dry").exists()


def _curve(tiny_world, tmp_path, devices, *more):
    default, _ = configs.load_recipe(RECIPE)
    flags = _flags(tiny_world, tmp_path / "curve", "--steps", "20", "--save-every", "0", *more)
    run = runs.Run.build(configs.parse(default, flags, prog="test", description=""), name="tiny", devices=devices)
    with jax.set_mesh(run.mesh):
        state, step, losses = run.program.start(), run.program.jitted(), []
        for _ in range(20):
            state, metrics = step(state, sharding.put_batch(next(run.batches), run.mesh))
            losses.append(float(metrics["loss"]))
    run.batches.close()
    return losses, step._cache_size()


@pytest.fixture(scope="module")
def one_device_curve(tiny_world, tmp_path_factory):
    return _curve(tiny_world, tmp_path_factory.mktemp("one"), jax.devices()[:1])[0]


@pytest.mark.parametrize(
    ("sizes", "more"),
    [
        ((8, 1, 1), ()),
        pytest.param((2, 2, 2), (), marks=pytest.mark.slow),
        ((1, 4, 2), ("--system.image.remat", "full")),
        ((4, 2, 1), ("--microbatches", "2")),
    ],
    ids=str,
)
def test_every_mesh_gives_the_losses_of_one_device(tiny_world, tmp_path, one_device_curve, sizes, more, capfd):
    mesh = [flag for name, size in zip(("data", "fsdp", "model"), sizes, strict=True) for flag in (f"--mesh.{name}", str(size))]
    losses, compilations = _curve(tiny_world, tmp_path, None, *mesh, *more)
    np.testing.assert_allclose(losses, one_device_curve, rtol=1e-5)
    assert compilations == 1
    assert "rematerialization" not in capfd.readouterr().err


@pytest.mark.slow
def test_bfloat16_stays_close_to_float32(tiny_world, tmp_path, one_device_curve):
    losses, _ = _curve(tiny_world, tmp_path, jax.devices()[:1], "--precision", "bfloat16")
    np.testing.assert_allclose(losses, one_device_curve, rtol=0.02)  # 8 bits of mantissa, over 20 updates
    assert not np.allclose(losses, one_device_curve, rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.train", "nowhere/shard-00000.tar"], r"train nowhere/shard-00000.tar.*does not exist"),
        (["--data.train", "shard-{3..1}.tar"], r"shard-\{3\.\.1\}\.tar"),
        (["--system.image.widht", "3"], r"widht.*--system\.image\.width"),
        (["--batch-size", "many"], "many"),
        (["--batch-size", "20"], "batch_size 20 is not divisible by 8"),
        (["--batch-size", "512"], "batch_size 512 .* more than its 128"),
        (["--system.text.vocab-size", "100"], "vocab_size 100 is smaller than the tokenizer's"),
        (["--system.image.patch-size", "7"], "patch_size 7 does not divide image_size 32"),
        (["--data.tokenizer.path", "none.model"], r"tokenizer\.path none\.model"),
        (["--workdir", "/proc/runs"], "workdir /proc/runs"),
        (["--mesh.data", "3"], "mesh"),
        (["--steps", "soon"], "steps 'soon'"),
        (["--optimizer.warmup", "7"], "warmup 7"),
        (["--system.frozen", "."], "freezes every parameter"),
        (["--init-from", "nowhere"], "checkpoint nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_before_the_first_step(flags, message, tiny_world, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        train.main([RECIPE, *_flags(tiny_world, tmp_path / "run"), *flags])
    assert "\n" not in str(error.value)


def test_another_model_in_the_same_workdir_is_refused(finished, tiny_world):
    with pytest.raises(InputError, match=r"another model \(system\.text changed\)"):
        train.main([RECIPE, *_flags(tiny_world, finished, "--system.text.width", "48", "--system.text.num-heads", "3")])


def test_other_data_in_the_same_workdir_is_refused(finished, tiny_world):
    with pytest.raises(InputError, match="batch_size was 16, is 8"):
        train.main([RECIPE, *_flags(tiny_world, finished, "--batch-size", "8")])


def test_unknown_tasks_and_recipes_are_refused(finished, tmp_path):
    with pytest.raises(InputError, match="tasks nothing: this run has val, held_out"):
        evaluate.main(["--checkpoint", str(finished), "--tasks", "nothing"])
    with pytest.raises(InputError, match=r"no such Python file"):
        train.main([str(tmp_path / "none.py")])
    with pytest.raises(InputError, match="no recipe is named"):
        train.main([])
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(InputError, match="defines no function config"):
        train.main([str(tmp_path / "empty.py")])


@pytest.mark.parametrize("arguments", [[RECIPE, "--steps", "none"], [RECIPE, "--system.image.widht", "3"]], ids=["value", "field"])
def test_the_command_prints_one_line_and_exits_with_2(arguments):
    done = subprocess.run([sys.executable, "-m", "vlm_jax.train", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1
    assert not done.stdout
