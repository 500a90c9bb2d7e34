"""What every evaluator has, so that a recipe may name it, the command line change it and JSON keep it."""

import dataclasses
import json

import pytest

from vlm_jax import config as configs
from vlm_jax.data import records
from vlm_jax.evaluation import binary, compositional, multi_label, retrieval, robustness, zero_shot

from .conftest import example

EVALUATORS = [
    zero_shot.ZeroShot(data="a", classes="classes.json", inner_norm="none"),
    multi_label.MultiLabel(data="a", classes="classes.json"),
    robustness.Robustness(data="a", shifted={"v2": "b", "sketch": "c"}, classes="classes.json"),
    binary.Binary(data="a", negative=("a meme",), positive=("a hateful meme", "hate")),
    compositional.Compositional(data="a", pair="set"),
    retrieval.Retrieval(data="a", captions="first_five", fold=1000),
]


@pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda e: type(e).__name__)
def test_an_evaluator_returns_from_json_and_takes_flags(evaluator):
    assert configs.from_json(json.loads(json.dumps(configs.to_json(evaluator)))) == evaluator
    run = dataclasses.make_dataclass("Run", [("evaluator", type(evaluator))], frozen=True)(evaluator)
    flags = ["--evaluator.data", "z", "--evaluator.limit", "7", "--evaluator.note", "said", "--evaluator.every", "9"]
    changed = configs.parse(run, flags, prog="x", description="").evaluator
    assert changed == dataclasses.replace(evaluator, data="z", limit=7, note="said", every=9)
    assert isinstance(evaluator.task, str) and evaluator.examples > 0


def test_data_sets_and_prompts_are_given_on_the_command_line():
    run = dataclasses.make_dataclass("Run", [("one", robustness.Robustness), ("two", binary.Binary)], frozen=True)
    flags = ["--one.shifted.v2", "z", "--two.positive", "a b", "c"]
    found = configs.parse(run(EVALUATORS[2], EVALUATORS[3]), flags, prog="x", description="")
    assert found.one.shifted == {"v2": "z", "sketch": "c"} and found.two.positive == ("a b", "c")


def test_none_to_show_and_a_single_record_are_enough_for_a_number(make_subject, classes, tmp_path):
    fields = {"labels": [0], "negatives": "green", "captions": ["red"]}
    one = "::".join(records.write(str(tmp_path / "one"), [example(0) | fields], 1))
    two = "::".join(records.write(str(tmp_path / "two"), [example(i) | {"label": i} for i in range(2)], 1))
    subject = make_subject()
    for evaluator in (
        zero_shot.ZeroShot(data=one, classes=classes, examples=0),
        multi_label.MultiLabel(data=one, classes=classes, examples=0),
        robustness.Robustness(data=one, shifted={"other": two}, classes=classes, examples=0),
        binary.Binary(data=two, negative=("a red",), positive=("a green",), examples=0),
        compositional.Compositional(data=one, examples=0),
        retrieval.Retrieval(data=one, examples=0),
    ):
        found = evaluator(subject)
        assert not found.examples and found.metrics and found.metrics.keys() == found.chance.keys()
        for name, value in found.metrics.items():
            low, high = found.intervals[name]
            assert low <= value <= high, (evaluator.task, name)
