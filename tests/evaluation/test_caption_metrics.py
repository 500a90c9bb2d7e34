"""BLEU, ROUGE-L, CIDEr-D and CIDEr against pycocoevalcap's numbers and plain definitions."""

import json
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from vlm_jax.errors import InputError
from vlm_jax.evaluation import caption_metrics


@pytest.fixture(scope="module")
def oracle(oracles):
    return json.loads((oracles / "caption_metrics.json").read_text())


@pytest.fixture(scope="module")
def case(oracle):
    return [own[0].split() for own in oracle["res"].values()], [[text.split() for text in own] for own in oracle["gts"].values()]


def test_bleu_of_corpus_and_images_equals_the_oracle(oracle, case):
    counts = caption_metrics.bleu_counts(*case)
    np.testing.assert_allclose(caption_metrics.bleu(counts.sum(0)), oracle["bleu"], atol=1e-12)
    np.testing.assert_allclose(caption_metrics.bleu(counts).T, oracle["bleu_per"], atol=1e-12)


def test_rouge_l_equals_the_oracle(oracle, case):
    np.testing.assert_allclose(caption_metrics.rouge_l(*case), oracle["rougeL_per"], atol=1e-12)
    assert caption_metrics.rouge_l(*case).mean() == pytest.approx(oracle["rougeL"], abs=1e-12)


def test_cider_d_and_plain_cider_equal_the_oracle(oracle, case):
    np.testing.assert_allclose(caption_metrics.cider_d(*case), oracle["cider_per"], atol=1e-12)
    mean, each = oracle["cider_plain_formula"]
    np.testing.assert_allclose(caption_metrics.cider(*case), each, atol=1e-12)
    assert caption_metrics.cider(*case).mean() == pytest.approx(mean, abs=1e-12)


def test_of_two_references_equally_close_in_length_the_shorter_counts():
    counts = caption_metrics.bleu_counts([list("abc")], [[list("abcde"), list("a"), list("abcdefg")]])
    assert counts[0, -1] == 1


def test_precision_and_recall_of_rouge_l_may_come_from_two_references():
    candidate, references = list("abcd"), [list("abcdefgh"), list("ab")]
    precision, recall = 4 / 4, 2 / 2
    assert caption_metrics.rouge_l([candidate], [references]) == [(1 + 1.44) * precision * recall / (recall + 1.44 * precision)]


def test_a_caption_without_words_matches_nothing_but_another_one():
    assert caption_metrics.rouge_l([[], ["a"], []], [[["a"]], [[]], [[]]]).tolist() == [0, 0, 1]
    assert (caption_metrics.bleu(caption_metrics.bleu_counts([[], ["a"]], [[["a"]], [[]]])) < 1e-3).all()
    assert caption_metrics.cider_d([[], ["a"]], [[["a"]], [[]]]).tolist() == [0, 0]


def test_frequencies_of_a_corpus_take_the_place_of_those_of_the_references(case):
    candidates, references = case
    own = caption_metrics.DocumentFrequencies.of(references)
    whole = caption_metrics.cider_d(candidates, references)
    np.testing.assert_allclose(caption_metrics.cider_d(candidates[:1], references[:1], own), whole[:1], atol=1e-14)
    assert caption_metrics.cider_d(candidates[:1], references[:1]) == [0], "log(1 image / 1 image) is 0 for all"
    corpus = caption_metrics.DocumentFrequencies(1000, {gram: 5 * count for gram, count in own.counts.items()})
    assert (caption_metrics.cider_d(candidates, references, corpus) != whole).all()


def test_an_n_gram_counts_once_for_an_image_however_many_references_have_it():
    found = caption_metrics.DocumentFrequencies.of([[["a", "a"], ["a"]], [["a", "b"]]])
    assert (found.images, found.counts[("a",)], found.counts[("a", "b")]) == (2, 2, 1)


def test_cider_d_is_clipped_and_less_for_another_length_and_plain_cider_is_not():
    frequencies = caption_metrics.DocumentFrequencies(10, {})
    reference = "a dog runs".split()
    plain = caption_metrics.cider([reference * 2], [[reference]], frequencies)
    clipped = caption_metrics.cider_d([reference * 2], [[reference]], frequencies)
    # one n-gram: twice the weight is clipped to once, so half the cosine; 3 words more
    alone = [caption_metrics.cider_d([["a"] * k], [[["a"]]], frequencies)[0] for k in (1, 2)]
    assert alone[0] == pytest.approx(10 / 4) and alone[1] == pytest.approx(10 / 4 / 2 * math.exp(-1 / 72))
    assert 0 < clipped[0] < plain[0] * math.exp(-9 / 72)


@pytest.mark.parametrize(
    ("candidates", "references", "words"),
    [
        ([], [], "candidates 0"),
        ([["a"]], [], "references 0"),
        ([["a"]], [[]], "references of candidate 0"),
        ([["a"]], ["a dog"], "references of candidate 0"),
    ],
)
def test_what_is_missing_is_said(candidates, references, words):
    for metric in (caption_metrics.bleu_counts, caption_metrics.rouge_l, caption_metrics.cider_d, caption_metrics.cider):
        with pytest.raises(InputError, match=words):
            metric(candidates, references)


@pytest.mark.parametrize(("images", "counts"), [(0, {}), (2, {("a",): 3})])
def test_frequencies_that_cannot_be_are_refused(images, counts):
    with pytest.raises(InputError, match=f"images {images}"):
        caption_metrics.DocumentFrequencies(images, counts)


WORDS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=8)
IMAGE = st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3))


def numbers(candidates, references):
    counts = caption_metrics.bleu_counts(candidates, references)
    return np.column_stack(
        [
            caption_metrics.bleu(counts),
            caption_metrics.rouge_l(candidates, references),
            caption_metrics.cider_d(candidates, references) / 10,
            caption_metrics.cider(candidates, references) / 10,
        ]
    )


@hypothesis.given(st.lists(IMAGE, min_size=1, max_size=4), st.randoms(use_true_random=False))
@hypothesis.settings(deadline=None, max_examples=50)
def test_every_number_is_a_share_and_no_order_matters(images, rng):
    candidates, references = map(list, zip(*images, strict=True))
    found = numbers(candidates, references)
    assert (found >= 0).all() and (found <= 1 + 1e-9).all()
    np.testing.assert_allclose(numbers(candidates, [rng.sample(own, len(own)) for own in references]), found, atol=1e-12)
    np.testing.assert_allclose(numbers(candidates[::-1], references[::-1]), found[::-1], atol=1e-12)


@hypothesis.given(st.lists(IMAGE, min_size=1, max_size=4))
@hypothesis.settings(deadline=None, max_examples=50)
def test_a_candidate_that_is_a_reference_has_bleu_and_rouge_1(images):
    candidates, references = [own[-1] for _, own in images], [own for _, own in images]
    assert caption_metrics.rouge_l(candidates, references) == pytest.approx(1)
    for candidate, bleu in zip(candidates, caption_metrics.bleu(caption_metrics.bleu_counts(candidates, references)), strict=True):
        assert bleu[: len(candidate)] == pytest.approx(1, abs=1e-6)
    single = [[own[-1]] for _, own in images]
    frequencies = caption_metrics.DocumentFrequencies(100, {})
    orders = [min(4, len(candidate)) for candidate in candidates]
    assert caption_metrics.cider_d(candidates, single, frequencies) == pytest.approx(10 * np.array(orders) / 4)


@hypothesis.given(WORDS, WORDS)
@hypothesis.settings(deadline=None, max_examples=50)
def test_the_common_subsequence_is_that_of_the_table(first, second):
    table = np.zeros((len(first) + 1, len(second) + 1), int)
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            table[i + 1, j + 1] = table[i, j] + 1 if one == other else max(table[i, j + 1], table[i + 1, j])
    length = table[-1, -1]
    precision, recall = length / len(first), length / len(second)
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision) if length else 0
    assert caption_metrics.rouge_l([first], [[second]])[0] == pytest.approx(expected)
