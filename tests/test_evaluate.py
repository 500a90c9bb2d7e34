"""The command that evaluates: suites, comparisons, and evaluations that were killed."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import jax
import pytest

from vlm_jax import config as configs
from vlm_jax import errors, evaluate
from vlm_jax import run as runs
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base
from vlm_jax.training import checkpoint

ROOT = Path(__file__).resolve().parents[1]
RECIPE = str(Path(__file__).parent / "tiny_recipe.py")
SUITE = """
from vlm_jax.evaluation import retrieval, zero_shot

def evaluators():
    return {{
        "pairs": retrieval.Retrieval(data="{world}/val-*.array_record"),
        "shapes": zero_shot.ZeroShot(data="{world}/held_out-*.array_record", classes="{world}/classes.json"),
    }}
"""


@pytest.fixture(scope="module")
def finished(tiny_world, tmp_path_factory) -> Path:
    """A run as training leaves it at steps 3 and 6, without the training."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    flags = [
        *("--data.train", f"{tiny_world}/train-*.array_record", "--data.val", f"{tiny_world}/val-*.array_record"),
        *("--data.tokenizer.path", f"{tiny_world}/tokenizer.model", "--evaluators.held-out.classes", f"{tiny_world}/classes.json"),
        *("--evaluators.held-out.data", f"{tiny_world}/held_out-*.array_record", "--workdir", str(workdir)),
    ]
    run = runs.Run.build(configs.parse(configs.load_recipe(RECIPE)[0], flags, prog="test", description=""), name="finished")
    workdir.mkdir()
    configs.save(workdir / "config.json", run.config)
    run.config.data.keep(str(workdir))
    checkpoints = checkpoint.Checkpoints(workdir, 2)
    with jax.set_mesh(run.mesh):
        state = run.program.start()
        for step in (3, 6):
            state["average"] = jax.tree.map(lambda x: x + 0.01, state["average"])
            checkpoints.save(step, state, {})
        checkpoints.close()
        run.suite.run(6, state, workdir)
    run.batches.close()
    return workdir


@pytest.fixture
def suite(tiny_world, tmp_path) -> str:
    path = tmp_path / "suite.py"
    path.write_text(SUITE.format(world=tiny_world))
    return str(path)


@pytest.fixture
def embedded(monkeypatch):
    """Methods of the batches that are embedded."""
    calls, embed = [], base.Compiled.embed

    def counting(self, method, variables, rows):
        calls.append(method)
        return embed(self, method, variables, rows)

    monkeypatch.setattr(base.Compiled, "embed", counting)
    return calls


def test_a_suite_takes_the_place_of_the_runs_evaluators_and_its_fields_are_flags(finished, suite, tmp_path, capsys):
    flags = ["--checkpoint", str(finished), "--suite", suite, "--out", str(tmp_path / "out"), "--evaluators.pairs.captions", "first"]
    assert evaluate.main([*flags, "--evaluators.pairs.limit", "5"]) == 0
    pairs, shapes = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (pairs["dataset"], shapes["dataset"]) == ("pairs", "shapes")
    assert pairs["chance"]["image_retrieval_recall@1"] == pytest.approx(0.2)
    want = {r["dataset"]: r["metrics"] for r in json.loads((finished / "evaluation.json").read_text())}["held_out"]
    assert shapes["metrics"] == pytest.approx(want, abs=1e-6)
    low, high = shapes["intervals"]["acc1"]
    assert low <= shapes["metrics"]["acc1"] <= high and shapes["blind"]
    said = capsys.readouterr().out
    assert "at step 6, ema weights" in said and "95 % interval" in said and "Top-1 accuracy" in said
    assert not (tmp_path / "out" / evaluate.CACHE).exists(), "a finished evaluation leaves no embeddings"


def test_a_comparison_evaluates_what_is_not_known_and_marks_the_best(finished, tmp_path, capsys, embedded):
    names = [str(finished), str(finished / "checkpoints" / "3")]
    flags = ["--compare", *names, "--out", str(tmp_path), "--tasks", "held_out"]
    assert evaluate.main(flags) == 0
    said = capsys.readouterr().out
    assert f"finished ({finished}) is evaluated already" in said and f"evaluating finished@3 ({finished})" in said
    assert "best of its row" in said
    with (tmp_path / "comparison.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {(line["model"], line["step"]) for line in lines} == {("finished", "6"), ("finished@3", "3")}
    acc1 = [line for line in lines if line["metric"] == "acc1"]
    assert all(float(line["low"]) <= float(line["value"]) <= float(line["high"]) and line["chance"] for line in acc1)
    embedded.clear()
    assert evaluate.main(flags) == 0
    assert not embedded and "finished@3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--evaluators.held-out.data", "none.tar"], r"evaluators\.held_out\.data none\.tar: does not exist"),
        (["--evaluators.held-out.classes", "none.json"], r"evaluators\.held_out\.classes 'none\.json'"),
        (["--evaluators.held-out.limti", "3"], "limti"),
        (["--serve", "--data", "none.tar"], r"data none\.tar: does not exist"),
        (["--port", "80"], "port 80: belongs to the search page; add --serve"),
        (["--serve", "--limit", "-3"], "limit -3"),
        (["--suite", "none.py"], r"suite none\.py: no such Python file"),
        (["--suite", RECIPE], r"suite .*tiny_recipe\.py: it defines no function evaluators\(\)"),
        (["--tasks", "other"], "tasks other: this run has val, held_out"),
        (["--embeddings-gb", "-1"], "embeddings-gb -1.0"),
        (["--out", "/proc/none"], "out /proc/none"),
        (["--weights", "ema", "--system.image.patch-size", "7"], "patch_size 7"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_before_a_model_is_loaded(finished, flags, message, monkeypatch):
    monkeypatch.setattr("vlm_jax.training.checkpoint.load_weights", lambda *_, **__: pytest.fail("the model is loaded"))
    with pytest.raises(InputError, match=message) as error:
        evaluate.main(["--checkpoint", str(finished), *flags])
    assert "\n" not in str(error.value)


def test_a_suite_of_something_else_is_refused(finished, tmp_path):
    for text, message in (("{}", "returned dict"), ("{'a': 1}", "'a' is int, not an evaluator"), ("3", "returned int")):
        (tmp_path / "s.py").write_text(f"def evaluators():\n    return {text}\n")
        with pytest.raises(InputError, match=message):
            evaluate.main(["--checkpoint", str(finished), "--suite", str(tmp_path / "s.py")])


def test_the_same_checkpoint_twice_and_none_are_refused(finished, capsys):
    with pytest.raises(InputError, match="named twice"):
        evaluate.main(["--compare", str(finished), str(finished), "--out", "/tmp"])
    with pytest.raises(SystemExit) as ended:
        evaluate.main([])
    assert ended.value.code == errors.BAD_INPUT and "--checkpoint" in capsys.readouterr().err


def test_a_killed_evaluation_goes_on(finished, tmp_path, capsys, embedded):
    """A process is killed after its first batches; the same command embeds only the others, and gives the same numbers."""
    flags = ["--checkpoint", str(finished), "--out", str(tmp_path), "--batch-size", "8", "--tasks", "val"]
    code = (
        "import os, signal, sys, time\n"
        "from vlm_jax import evaluate\n"
        "from vlm_jax.evaluation import base, embeddings\n"
        "embeddings.SECONDS = 0.0\n"
        "embed, calls = base.Compiled.embed, []\n"
        "def killed(self, method, *more):\n"
        "    calls.append(method)\n"
        "    if calls.count('embed_image') == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return embed(self, method, *more)\n"
        "base.Compiled.embed = killed\n"
        "evaluate.main(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted((tmp_path / evaluate.CACHE).glob("*/*.npy"))
    assert evaluate.main(flags) == 0
    said = capsys.readouterr().out
    assert "embeddings were kept by an earlier evaluation" in said
    assert embedded.count("embed_image") == 2 and not embedded.count("embed_text"), "24 images, 8 of them known"
    (got,) = json.loads((tmp_path / "evaluation.json").read_text())
    want = {r["dataset"]: r["metrics"] for r in json.loads((finished / "evaluation.json").read_text())}["val"]
    assert got["metrics"] == pytest.approx(want, abs=1e-6)
    assert not (tmp_path / evaluate.CACHE).exists()


def test_embeddings_are_kept_where_that_is_asked_for(finished, tmp_path, embedded):
    flags = ["--checkpoint", str(finished), "--out", str(tmp_path), "--tasks", "val"]
    assert evaluate.main([*flags, "--keep-embeddings", "always"]) == 0
    first = list(embedded)
    embedded.clear()
    assert evaluate.main(flags) == 0
    assert first and not embedded and not (tmp_path / evaluate.CACHE).exists()
    assert evaluate.main([*flags, "--keep-embeddings", "never", "--weights", "raw"]) == 0
    assert embedded == first and not (tmp_path / evaluate.CACHE).exists()


@pytest.mark.slow
def test_the_page_of_a_checkpoint_is_served_until_ctrl_c(finished, tiny_world, tmp_path):
    flags = ["--checkpoint", str(finished), "--serve", "--out", str(tmp_path), "--limit", "9"]
    interruptible = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from vlm_jax import evaluate; "
    code = interruptible + "sys.exit(evaluate.main(sys.argv[1:]))"
    child = subprocess.Popen([sys.executable, "-c", code, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/", child.stdout.readline())[0]
        state = {"state": "embedding"}
        while state["state"] == "embedding":
            state = json.loads(urllib.request.urlopen(f"{address}state", timeout=30).read())
            time.sleep(0.05)
        assert (state["state"], state["total"], state["step"]) == ("ready", 9, 6)
        query = urllib.request.Request(f"{address}text", b'{"text": "a red circle"}')
        assert len(json.loads(urllib.request.urlopen(query, timeout=30).read())["images"]) == 9
        child.send_signal(signal.SIGINT)
        said, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == errors.DONE and "stopped" in said
    assert list((tmp_path / evaluate.CACHE).glob("*/*.npy")), "embedded once"
