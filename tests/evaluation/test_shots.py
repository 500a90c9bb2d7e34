"""Names of metrics that are known for several numbers of examples."""

import pytest

from vlm_jax.evaluation import shots


@pytest.mark.parametrize(
    ("name", "found"),
    [("acc1@4_shots", ("acc1", 4)), ("acc1@1_shot", ("acc1", 1)), ("cider_d@16_shots_deviation", ("cider_d_deviation", 16)),
     ("image_retrieval_recall@5", None), ("few_shots", None), ("acc1", None)],
)  # fmt: skip
def test_a_name_tells_its_number_of_examples(name, found):
    assert shots.parts(name) == found


def test_three_numbers_make_a_table():
    names = ["acc1@0_shots", "acc1@8_shots", "loss", "rouge_l@2_shots"]
    groups = {"acc1": {0: "acc1@0_shots", 8: "acc1@8_shots"}, "rouge_l": {2: "rouge_l@2_shots"}}
    assert shots.by_metric(names) == (groups, ["loss"])
    assert shots.by_metric(names[:3]) == ({}, names[:3])


def test_the_most_examples_stand_for_an_evaluation():
    assert shots.foremost(["acc1@0_shots", "acc1@16_shots", "acc1@8_shots"]) == "acc1@16_shots"
    assert shots.foremost(["acc1@0_shots", "rouge_l@32_shots", "acc1@8_shots"]) == "acc1@8_shots"
    assert shots.foremost(["loss", "acc1@8_shots"]) == "loss" and shots.foremost([]) is None
