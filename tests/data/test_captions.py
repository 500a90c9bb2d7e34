"""Which caption of an example is taken, and in what form."""

import dataclasses

import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.data import captions, images, pipeline, records, sources, text


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("none", "  A cafÃ© &amp;lt;3\n by_the  Sea! "),
        ("whitespace", "A café <3 by_the Sea!"),
        ("lower", "a café <3 by_the sea!"),
        ("canonical", "a café 3 by the sea"),
    ],
)
def test_captions_are_cleaned_by_name(how, expected):
    assert captions.clean("  A cafÃ© &amp;lt;3\n by_the  Sea! ", how) == expected


def test_by_key_a_caption_stays_the_same_and_all_are_taken_by_someone():
    examples = [{"key": f"k{i}", "captions": ["a", "b", "c"]} for i in range(60)]
    chosen = [captions.choose(example, "key", "none", np.random.default_rng(i)) for i, example in enumerate(examples)]
    assert chosen == [captions.choose(example, "key", "none", None) for example in examples]
    assert min(chosen.count(word) for word in "abc") >= 10


def test_what_cleaning_leaves_nothing_of_is_no_caption():
    with pytest.raises(records.RecordError, match="caption 0 is empty"):
        captions.choose({"key": "k", "captions": ["?!"]}, "first", "canonical", None)


@pytest.fixture(scope="module")
def counted(tmp_path_factory, encode_image, noise, merges) -> pipeline.Pairs:
    """Records of 1, 2, 3, 0 and 2 captions."""
    folder = tmp_path_factory.mktemp("counted")
    captions_of = [["low"], ["new", "newer"], ["l", "o", "w"], [], ["n", "e"]]
    made = ({"key": f"{i}", "image": encode_image(noise(i, 8, 8)), "captions": c} for i, c in enumerate(captions_of))
    records.write(str(folder / "train"), made, 1)
    pattern = f"{folder}/train-*.array_record"
    tokenizer = text.Tokenizer(merges, length=6)
    return pipeline.Pairs(pattern, pattern, tokenizer, images.Transform(size=8), caption="all", bad_records=1.0)


def test_with_all_an_epoch_has_every_caption_once(counted):
    assert counted.describe().train_records == 9
    tokenizer = counted.tokenizer.load()
    iterator = pipeline.train_iterator({"pairs": counted}, batch_size=9, seed=1)
    epochs = [next(iterator)["pairs"] for _ in range(3)]
    iterator.close()
    wanted = sorted(["low", "new", "newer", "l", "o", "w", "n", "e"])
    orders = []
    for batch in epochs:
        said = [tokenizer.decode(row) for row in batch["tokens"]]
        replaced = max(range(9), key=lambda i: said.count(said[i]))  # the record without captions lets another one in
        assert sorted(said[:replaced] + said[replaced + 1 :]) == wanted
        orders.append(tuple(said))
    assert len(set(orders)) == 3
    assert iterator.bad_records.count == 3


def test_captions_are_counted_once(counted, monkeypatch):
    source = sources.open_source(counted.train)
    assert captions.ends(source).tolist() == [1, 3, 6, 7, 9]
    assert [captions.find(source, i) for i in range(9)] == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0), (4, 0), (4, 1)]
    monkeypatch.setattr(type(source), "__getitem__", None)
    assert captions.ends(sources.open_source(counted.train)).tolist() == [1, 3, 6, 7, 9]


def test_a_cache_that_cannot_be_written_is_said(counted, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLM_JAX_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(errors.InputError, match=r"cache folder .*captions: .*; set VLM_JAX_CACHE"):
        dataclasses.replace(counted).describe()
