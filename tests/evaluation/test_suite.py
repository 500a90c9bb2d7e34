"""What tells the numbers of one evaluation from those of another, and what is refused before a model is loaded."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from vlm_jax.errors import InputError
from vlm_jax.evaluation import retrieval, robustness, suite, zero_shot

CONFIG = {"system": {"width": 8}, "seed": 0, "batch_size": 4}


@pytest.fixture
def evaluator(data, classes, tmp_path) -> zero_shot.ZeroShot:
    shards = "::".join(str(shutil.copy(path, tmp_path)) for path in data.split("::"))
    return zero_shot.ZeroShot(data=shards, classes=str(shutil.copy(classes, tmp_path)))


def test_the_same_numbers_have_the_same_hash(evaluator):
    whole = suite.made_of(CONFIG, evaluator, 3, "raw")
    assert whole == suite.made_of({**CONFIG, "batch_size": 9, "mesh": 1}, dataclasses.replace(evaluator), 3, "raw")


@pytest.mark.parametrize("change", ["step", "weights", "system", "limit", "data", "classes"])
def test_other_numbers_have_another_hash(evaluator, change):
    before = suite.made_of(CONFIG, evaluator, 3, "raw")
    if change in ("data", "classes"):
        os.utime(getattr(evaluator, change).split("::")[0], ns=(1, 1))
    config = {**CONFIG, "system": {"width": 16}} if change == "system" else CONFIG
    other = dataclasses.replace(evaluator, limit=9) if change == "limit" else evaluator
    assert suite.made_of(config, other, 4 if change == "step" else 3, "ema" if change == "weights" else "raw") != before


def test_all_data_and_classes_are_opened(data, classes):
    good = zero_shot.ZeroShot(data=data, classes=classes)
    suite.check({"good": good, "pairs": retrieval.Retrieval(data=data)})
    shifted = robustness.Robustness(data=data, shifted={"far": "none.tar"}, classes=classes)
    with pytest.raises(InputError, match=r"evaluators\.far_off\.shifted none\.tar: does not exist"):
        suite.check({"good": good, "far_off": shifted})
    with pytest.raises(InputError, match=r"evaluators\.bad\.classes"):
        suite.check({"bad": dataclasses.replace(good, classes=str(Path(classes).with_name("none.json")))})
