"""Retrieval with a tiny model: numbers, captions that are alike, examples, and what is refused."""

import dataclasses
import zlib

import numpy as np
import pytest

from vlm_jax.data import records, sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, retrieval

from .conftest import example


@pytest.fixture(scope="module")
def result(make_subject, data) -> base.Result:
    return retrieval.Retrieval(data=data)(make_subject())


def in_order(data_count=27):
    """The examples in the order of the shards, which were written round robin."""
    return sorted((example(i) for i in range(data_count)), key=lambda e: (int(e["key"][1:]) % 2, int(e["key"][1:])))


def write(folder, examples) -> str:
    return "::".join(records.write(str(folder / "some"), examples, 1))


def test_the_numbers_are_those_of_a_plain_computation_over_all_pairs(result, make_subject):
    subject, examples = make_subject(), in_order()
    images = subject.embed_images([subject.transform(e["image"]) for e in examples]).astype(np.float64)
    captions = [text for e in examples for text in e["captions"]]
    owner = np.repeat(np.arange(27), 3)
    place = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    unique = subject.embed_texts(list(place)).astype(np.float64)
    scores = np.round(images @ unique.T, 6)[:, [place[text] for text in captions]]
    to_image = np.array([(scores[:, c] > scores[owner[c], c]).sum() for c in range(81)])
    to_text = np.array([(scores[i] > scores[i, owner == i].max()).sum() for i in range(27)])
    for k in (1, 5, 10):
        assert result.metrics[f"image_retrieval_recall@{k}"] == pytest.approx((to_image < k).mean(), abs=1e-6)
        assert result.metrics[f"text_retrieval_recall@{k}"] == pytest.approx((to_text < k).mean(), abs=1e-6)
        assert result.chance[f"image_retrieval_recall@{k}"] == pytest.approx(k / 27)
    assert result.metrics["image_retrieval_median_rank"] == np.median(to_image) + 1
    assert result.metrics["text_retrieval_median_rank"] == np.median(to_text) + 1
    assert 0 < result.metrics["image_retrieval_recall@1"] < 1, "a useful test has hits and misses"


def test_every_metric_has_its_chance_and_its_interval(result):
    assert result.chance.keys() == result.metrics.keys() == result.intervals.keys()
    for name, (low, high) in result.intervals.items():
        assert low <= result.metrics[name] <= high and (low < high or "median" in name), name
    assert result.chance["rsum"] == pytest.approx(
        100 * sum(value for name, value in result.chance.items() if "_recall@" in name and "true" not in name)
    )
    assert result.chance["text_retrieval_recall@1"] == pytest.approx(3 / 81)
    assert result.chance["image_retrieval_median_rank"] == 14


def test_figures_show_the_cosines_of_pairs_and_a_map_of_both_kinds(result):
    histogram = result.figures["similarities"]
    assert histogram.counts["matching pairs"].sum() < histogram.counts["other pairs"].sum()
    drawn = result.figures["embedding_map"]
    assert set(drawn.groups) == {"images", "texts"} and len(drawn.titles) == len(drawn.points)


def test_folds_are_searched_one_by_one_and_their_numbers_averaged(make_subject, data, tmp_path):
    subject, examples = make_subject(), in_order()
    folded = retrieval.Retrieval(data=data, fold=9)(subject)
    parts = [retrieval.Retrieval(data=write(tmp_path / str(k), examples[k : k + 9]))(subject) for k in (0, 9, 18)]
    for name, value in folded.metrics.items():
        assert value == pytest.approx(np.mean([part.metrics[name] for part in parts])), name
        assert folded.chance[name] == pytest.approx(np.mean([part.chance[name] for part in parts])), name
        low, high = folded.intervals[name]
        assert low <= value <= high
    assert folded.metrics != parts[0].metrics, "a useful test has folds that differ"
    assert "searched among 9 images at a time" in folded.note
    with pytest.raises(InputError, match="fold 10: does not divide 27 images"):
        retrieval.Retrieval(data=data, fold=10)(subject)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 27), (8, 8), (8, 128)])
def test_devices_and_batch_size_change_no_number(result, make_subject, data, devices, batch_size):
    assert retrieval.Retrieval(data=data)(make_subject(devices, batch_size)).metrics == result.metrics


def test_the_second_evaluation_compiles_nothing(make_subject, data):
    subject = make_subject(8)
    for _ in range(2):
        retrieval.Retrieval(data=data)(subject)
    assert subject.compiled.compilations == 2


def test_the_same_words_on_all_images_are_a_tie_that_costs_nothing(make_subject, tmp_path):
    same = [example(i) | {"captions": ["a photo"]} for i in range(12)]
    found = retrieval.Retrieval(data=write(tmp_path, same))(make_subject(8))
    assert found.metrics["text_retrieval_recall@1"] == 1.0
    assert found.metrics["image_retrieval_recall@1"] == pytest.approx(1 / 12)
    assert found.note.startswith("12 images, 12 captions, 12 of them with words that another image's caption has too.")
    assert found.note.endswith("Ties count for the model; a table has them against it.")
    table = found.tables["ties"]
    assert table.rows == ("text_retrieval_recall@1", "text_retrieval_recall@5", "text_retrieval_recall@10")
    np.testing.assert_array_equal(table.values, [[1, 0]] * 3)


def test_captions_that_are_alike_count_each_as_a_candidate(make_subject, tmp_path):
    red = [e for e in map(example, range(60)) if e["label"] == 0][:3]
    others = [example(i) | {"captions": ["a red"]} for i in (1, 2, 3)]
    target = red[0] | {"captions": ["black"]}
    found = retrieval.Retrieval(data=write(tmp_path, [target, *others]))(make_subject())
    assert found.metrics["text_retrieval_recall@5"] == 1.0
    first = found.examples[0]
    assert first.expected.text == "black" and first.answers[0].text == "a red"
    assert found.metrics["text_retrieval_recall@1"] < 1.0


@pytest.mark.parametrize(("choice", "count"), [("all", 14), ("first_five", 10), ("first", 2)])
def test_the_choice_of_captions_takes_that_many(make_subject, tmp_path, choice, count):
    many = [example(i) | {"captions": [f"picture {i} {k}" for k in range(7)]} for i in range(2)]
    found = retrieval.Retrieval(data=write(tmp_path, many), captions=choice)(make_subject())
    assert found.note.startswith(f"2 images, {count} captions.") or f", {count} captions" in found.note


def test_examples_mark_what_is_right_in_both_directions(result):
    examples = {e["captions"][0]: e for e in in_order()}
    to_text = [e for e in result.examples if e.group.startswith("image to text")]
    to_image = [e for e in result.examples if e.group.startswith("text to image")]
    assert len(to_text) == len(to_image) == 6 and examples
    for shown in to_text:
        assert shown.query.image and not shown.query.text
        own = next(e["captions"] for e in in_order() if shown.expected.text in e["captions"])
        colour = shown.expected.text.split()[-1]
        assert all(colour in answer.text for answer in shown.answers if answer.verdict == "right"), own
    for shown in to_image:
        assert shown.query.text and shown.expected.image
        right = [answer.image for answer in shown.answers if answer.verdict == "right"]
        assert all(answer.image for answer in shown.answers)
        assert not right or shown.expected.image in right
    scores = [answer.score for answer in to_text[0].answers]
    assert scores == sorted(scores, reverse=True)


def test_examples_are_hits_and_misses_in_halves_as_far_as_there_are(result, make_subject, tmp_path):
    groups = [e.group for e in result.examples]
    assert groups.count("text to image: misses") == groups.count("text to image: hits") == 3
    assert {group.partition(": ")[0] for group in groups} == {"image to text", "text to image"}
    for shown in result.examples:
        scores = [answer.score for answer in shown.answers]
        best = [a.verdict for a in shown.answers if a.score == scores[0]]
        assert ("right" in best) == shown.group.endswith("hits")
    same = [example(i) | {"captions": ["a photo"]} for i in range(4)]
    found = retrieval.Retrieval(data=write(tmp_path, same))(make_subject())
    assert [e.group for e in found.examples].count("image to text: hits") == 4


def test_an_image_without_a_caption_is_refused_by_name(make_subject, tmp_path):
    with pytest.raises(InputError, match="record 'k1' has no caption"):
        retrieval.Retrieval(data=write(tmp_path, [example(0), example(1) | {"captions": []}]))(make_subject())
    with pytest.raises(InputError, match="captions must be a list of strings"):
        retrieval.Retrieval(data=write(tmp_path, [example(1) | {"captions": [3]}]))(make_subject())


def test_missing_shards_are_refused_by_name(make_subject, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.tar"):
        retrieval.Retrieval(data=str(tmp_path / "nowhere.tar"))(make_subject())
    with pytest.raises(InputError, match="pattern is empty"):
        retrieval.Retrieval()(make_subject())


def test_a_source_without_records_is_refused(make_subject, monkeypatch):
    monkeypatch.setattr("vlm_jax.data.sources.open_source", lambda data: [])
    with pytest.raises(InputError, match="data empty: holds no records"):
        retrieval.Retrieval(data="empty")(make_subject())


class EveryWord:
    """Any word to one of the tiny model's ids."""

    length = 24

    def __call__(self, texts):
        rows = np.zeros((len(texts), self.length), np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [zlib.crc32(word.encode()) % 11 + 1 for word in text.split()[: self.length]]
            row[: len(ids)] = ids
        return rows


def test_photographs_with_five_captions_each_have_the_numbers_of_their_definition(make_subject, shared_data):
    data, count = str(shared_data / "flickr8k" / "flickr8k-val-00000.tar"), 30
    subject, source = dataclasses.replace(make_subject(), tokenizer=EveryWord()), sources.open_source(data)
    found = retrieval.Retrieval(data=data, captions="first_five", limit=count)(subject)
    captions = [source[i]["captions"][:5] for i in range(count)]
    assert {len(own) for own in captions} == {5}
    texts = list(dict.fromkeys(text for own in captions for text in own))
    embedded = dict(zip(texts, subject.embed_texts(texts), strict=True))
    scores = subject.embed_records(source, count) @ np.stack([embedded[text] for own in captions for text in own]).T
    owner = np.repeat(np.arange(count), 5)
    hits, shares, places = [], [], []
    for i in range(count):
        ranks = np.array([(scores[i] > scores[i, s] + 1e-6).sum() for s in np.flatnonzero(owner == i)])
        hits.append(ranks.min() < 10)
        shares.append((ranks < 10).mean())
        places.append(ranks.min() + 1)
    assert found.metrics["text_retrieval_recall@10"] == pytest.approx(np.mean(hits), abs=1e-6)
    assert found.metrics["text_retrieval_true_recall@10"] == pytest.approx(np.mean(shares), abs=1e-6)
    assert found.metrics["text_retrieval_mean_rank"] == pytest.approx(np.mean(places), abs=1e-6)
    assert found.chance["text_retrieval_true_recall@10"] == pytest.approx(10 / 150)
