"""Flamingo from the command line: pages and pairs in one step, frozen parts on disk once, and prompts with answers in the report."""

import json
from pathlib import Path

import numpy as np
import pytest

from vlm_jax import train
from vlm_jax.data import interleaved_shapes, records

RECIPE = str(Path(__file__).parent / "flamingo_recipe.py")


@pytest.mark.slow
def test_a_run_trains_on_pages_and_pairs_and_is_asked_after_examples(tiny_world, tmp_path):
    pages = records.write(str(tmp_path / "pages"), [interleaved_shapes.page("pages", i) for i in range(16)], 1)[0]
    workdir, train_shards, val = tmp_path / "run", f"{tiny_world}/train-*.array_record", f"{tiny_world}/val-*.array_record"
    flags = ["--data.pages.train", pages, "--data.pages.val", pages, "--data.pairs.train", train_shards, "--data.pairs.val", val]
    for name in ("captions", "questions", "trained-pairs"):
        shots = f"{tiny_world}/trained_pairs-*.array_record" if name == "trained-pairs" else train_shards
        asked = shots if name == "trained-pairs" else val
        flags += [f"--evaluators.{name}.train", shots, f"--evaluators.{name}.data", asked]
    flags += ["--evaluators.trained-pairs.classes", f"{tiny_world}/classes.json"]
    for name in ("words", "new-words"):
        flags += [f"--evaluators.{name}.data", f"{tiny_world}/trained_pairs-*.array_record"]
    assert train.main([RECIPE, *flags, "--workdir", str(workdir)]) == 0

    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    assert len(losses) == 2
    for row in losses:
        np.testing.assert_allclose(row["loss"], row["loss/pages"] + 0.2 * row["loss/pairs"], rtol=1e-4)
    assert losses[0]["gate/attention"] == 0
    assert (workdir / "frozen").is_dir()
    results = {record["dataset"]: record for record in json.loads((workdir / "evaluation.json").read_text())}
    assert results["captions"]["metrics"].keys() >= {"objects_accuracy@0_shots", "objects_accuracy@2_shots", "cider_d@2_shots"}
    assert 0 <= results["questions"]["metrics"]["accuracy@2_shots"] <= 1
    assert results["trained_pairs"]["chance"]["acc1@2_shots"] > 0
    assert results["new_words"]["metrics"].keys() == {f"{name}@{k}_shots" for name in ("acc1", "acc1_shuffled") for k in (0, 2)}
    page = (workdir / "report.html").read_text()
    assert "&lt;image&gt;Question: " in page and "&lt;EOC&gt;" in page
