"""Accuracy of answers: that of the official code, answer by answer."""

import gzip
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from vlm_jax.errors import InputError
from vlm_jax.evaluation import intervals, vqa_accuracy


@pytest.fixture(scope="module")
def official(oracles):
    return json.loads((oracles / "vqa_normalise.json").read_text())


def test_every_string_of_the_oracle_is_normalised_as_there(official):
    assert {text: vqa_accuracy.normalize(text) for text, _ in official["cases"]} == dict(official["cases"])


def test_every_contraction_number_and_mark_of_the_official_tables_is_known(official):
    tables = official["contractions"] | official["numbers"] | dict.fromkeys(official["articles"], "")
    found = {word: vqa_accuracy.normalize(word) for word in tables}
    assert found == {word: whole if word.islower() else word.lower() for word, whole in tables.items()}
    for mark in official["punct"]:
        assert vqa_accuracy.normalize(f"x{mark}y") == "x y"
        assert vqa_accuracy.normalize(f"x{mark}y z{mark} w") == "xy z w"


@pytest.mark.parametrize(("normalization", "key"), [("official", "acc_official"), ("always", "acc_always_normalise")])
def test_every_case_of_the_oracle_has_its_accuracy(oracles, normalization, key):
    cases = json.loads((oracles / "vqa_accuracy.json").read_text())["cases"]
    for case in cases:
        assert vqa_accuracy.accuracy(case["pred"], case["gts"], normalization) == pytest.approx(case[key], abs=1e-12)


@pytest.mark.parametrize("kind", ["annotator1", "majority", "perturbed"])
def test_every_question_of_textvqa_has_the_official_accuracy(shared_data, kind):
    folder = shared_data / "textvqa_val"

    def read(name):
        return json.loads(gzip.decompress((folder / f"{name}.json.gz").read_bytes()))

    annotations = read("annotations")["annotations"]
    people = {str(entry["question_id"]): [answer["answer"] for answer in entry["answers"]] for entry in annotations}
    answers = {str(entry["question_id"]): entry["answer"] for entry in read(f"predictions_{kind}")}
    each = read(f"per_question_{kind}")
    found = vqa_accuracy.accuracies([answers[key] for key in each], [people[key] for key in each])
    np.testing.assert_allclose(100 * found, list(each.values()), atol=1e-9)
    overall = json.loads((folder / "oracle_accuracy.json").read_text())[kind]["overall"]
    assert 100 * found.mean() == pytest.approx(overall, abs=1e-9)
    low, high = intervals.of_mean(found)
    assert low < found.mean() < high < low + 0.03


def test_whether_a_mark_is_beside_a_blank_is_asked_of_the_answer_as_it_was():
    assert vqa_accuracy.normalize("z-w x/-y") == "z w x y"


def test_at_most_32_full_stops_are_taken_away():
    assert vqa_accuracy.normalize(". " * 40 + "x").count(".") == 8


def test_where_all_people_wrote_the_same_the_official_code_compares_what_is_written():
    assert vqa_accuracy.accuracy("Yes", ["yes"] * 10) == 0
    assert vqa_accuracy.accuracy("Yes", ["yes"] * 10, "always") == 1
    assert vqa_accuracy.accuracy("Yes\n", ["Yes ", *["yes"] * 9]) == 1


ANSWER = st.sampled_from(["yes", "Yes", "yes.", "no", "the dog", "dog", "two", "2", "dont know", "don't know", ""])


@hypothesis.given(ANSWER, st.lists(ANSWER, min_size=1, max_size=12), st.sampled_from(["official", "always"]))
@hypothesis.settings(deadline=None, max_examples=60)
def test_accuracy_is_the_mean_over_leaving_one_out(answer, people, normalization):
    found = vqa_accuracy.accuracy(answer, people, normalization)
    raw = normalization == "official" and len(set(people)) == 1
    same = [(answer == other) if raw else vqa_accuracy.normalize(answer) == vqa_accuracy.normalize(other) for other in people]
    assert found == pytest.approx(np.mean([min(1, (sum(same) - left) / 3) for left in same]), abs=1e-12)
    assert found <= vqa_accuracy.accuracy(answer, people, "always")
    assert vqa_accuracy.accuracy(answer, people[::-1], normalization) == found


@hypothesis.given(st.text(max_size=30) | st.text("aA, .-'1?!/", max_size=20))
@hypothesis.settings(deadline=None, max_examples=60)
def test_a_normalised_answer_has_single_blanks_and_none_of_the_articles(text):
    words = vqa_accuracy.normalize(text).split(" ")
    assert "" not in words or words == [""]
    assert not {"a", "an", "the"}.intersection(words)


@pytest.mark.parametrize(
    ("answers", "people", "words"),
    [([], [], "answers 0"), (["a"], [], "people 0"), (["a"], [[]], "people \\[\\]"), (["a"], ["yes"], "people 'yes'")],
)
def test_what_is_missing_is_said(answers, people, words):
    with pytest.raises(InputError, match=words):
        vqa_accuracy.accuracies(answers, people)
