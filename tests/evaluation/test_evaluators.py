"""What every evaluator has, so that a recipe may name it, the command line change it and JSON keep it."""

import dataclasses
import json

import pytest

from vlm_jax import config as configs
from vlm_jax.evaluation import binary, compositional, multi_label, retrieval, robustness, zero_shot

EVALUATORS = [
    zero_shot.ZeroShot("a", "classes.json", inner_norm="none"),
    multi_label.MultiLabel("a", "classes.json"),
    robustness.Robustness("a", {"v2": "b", "sketch": "c"}, "classes.json"),
    binary.Binary("a", ("a meme",), ("a hateful meme", "hate")),
    compositional.Compositional("a", pair="set"),
    retrieval.Retrieval("a", "first_five", fold=1000),
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
