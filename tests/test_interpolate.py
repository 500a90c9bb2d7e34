"""Weights between two runs as a user makes them: both ends, the coefficient that is chosen, the curve, and what is refused."""

import json

import jax
import numpy as np
import pytest

from vlm_jax import convert, evaluate, imported, train
from vlm_jax.errors import InputError
from vlm_jax.training import tree

RECIPE = "tests/tiny_recipe.py"


def _train(world, workdir, *more):
    data = [
        *("--data.train", f"{world}/train-*.array_record", "--data.val", f"{world}/val-*.array_record"),
        *("--data.tokenizer.path", f"{world}/tokenizer.model", "--evaluators.held-out.classes", f"{world}/classes.json"),
        *("--evaluators.held-out.data", f"{world}/held_out-*.array_record", "--workdir", str(workdir)),
    ]
    assert train.main([RECIPE, *data, "--optimizer.warmup", "1", "--save-every", "0", *more]) == 0
    return str(workdir)


@pytest.fixture(scope="module")
def runs(tiny_world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    first = _train(tiny_world, folder / "first", "--steps", "4")
    tuned = ("--init-from", first, "--seed", "3", "--optimizer.learning-rate", "1e-2")
    return first, _train(tiny_world, folder / "second", "--steps", "4", *tuned)


def _weights(path):
    return tree.flatten(imported.load(str(path)).variables)


def test_the_ends_are_the_models_and_the_middle_their_mean(runs, tmp_path):
    ends = [_weights(path) for path in runs]
    assert np.abs(ends[0]["log_scale"] - ends[1]["log_scale"]) > 1e-4
    for coefficient, name in ((0, "zero"), (1, "one"), (None, "half")):
        flags = [] if coefficient is None else ["--coefficient", str(coefficient)]
        assert convert.main(["interpolate", *runs, str(tmp_path / name), *flags]) == 0
        found = _weights(tmp_path / name)
        want = jax.tree.map(lambda a, b: (a + b) / 2, *ends) if coefficient is None else ends[coefficient]
        assert found.keys() == want.keys()
        for path in found:
            np.testing.assert_allclose(found[path], want[path], rtol=0 if coefficient is not None else 1e-6, atol=0)


def test_the_coefficient_is_chosen_by_the_mean_over_tasks_and_the_curve_is_kept(runs, tmp_path, capsys):
    target = tmp_path / "patched"
    flags = ["--tasks", "val", "held_out", "--coefficients", "0", "0.5", "1"]
    assert convert.main(["interpolate", *runs, str(target), *flags]) == 0
    said = capsys.readouterr().out
    curve = json.loads((target / "interpolation.json").read_text())
    assert curve["coefficients"] == [0, 0.5, 1] and len(curve["scores"]) == 2
    mean = np.mean(list(curve["scores"].values()), 0)
    np.testing.assert_allclose(curve["mean"], mean)
    assert curve["chosen"] == [0, 0.5, 1][int(mean.argmax())] and "chosen" in said
    assert "share of the second model" in (target / "report.html").read_text()
    assert evaluate.main(["--checkpoint", str(target), "--tasks", "val", "held_out", "--out", str(tmp_path / "out")]) == 0
    for record in json.loads((tmp_path / "out" / "evaluation.json").read_text()):
        metric = next(iter(record["metrics"]))
        scores = curve["scores"][f"{record['dataset']} {metric}"]
        assert record["metrics"][metric] == pytest.approx(scores[curve["coefficients"].index(curve["chosen"])], abs=1e-6)


def test_evaluators_of_a_file_choose_too(runs, tmp_path):
    (tmp_path / "suite.py").write_text(
        "from vlm_jax.evaluation import retrieval\n\n\ndef evaluators():\n    return {'own': retrieval.Retrieval(limit=10)}\n"
    )
    flags = ["--suite", str(tmp_path / "suite.py"), "--tasks", "own", "--coefficients", "0", "1"]
    assert convert.main(["interpolate", *runs, str(tmp_path / "target"), *flags]) == 0
    assert list(json.loads((tmp_path / "target" / "interpolation.json").read_text())["scores"]) == ["own image_retrieval_recall@1"]


@pytest.mark.slow
def test_what_cannot_be_merged_or_chosen_is_refused(runs, tiny_world, tmp_path):
    for flags, message in (
        (["--coefficient", "0.5", "--tasks", "val"], "coefficient: give it, or --tasks"),
        (["--coefficient", "1.5"], "from 0, the first model, to 1, the second"),
        (["--tasks", "nothing"], "tasks nothing: there are val, held_out"),
    ):
        with pytest.raises(InputError, match=message):
            convert.main(["interpolate", *runs, str(tmp_path / "target"), *flags])
    wider = _train(tiny_world, tmp_path / "wider", "--steps", "2", "--system.image.mlp-dim", "96")
    with pytest.raises(InputError, match=r"models of different shapes cannot be merged: they differ in image/blocks/\S+"):
        convert.main(["interpolate", runs[0], wider, str(tmp_path / "target")])
    assert not (tmp_path / "target").exists()
    with pytest.raises(InputError, match="exists and is not empty"):
        convert.main(["interpolate", *runs, runs[0]])
