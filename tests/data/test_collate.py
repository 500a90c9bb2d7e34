import numpy as np
import pytest

from vlm_jax.data import collate, images, records, text


@pytest.fixture
def pair(encode_image, noise, merges):
    pixels = noise(0, 8, 8)
    options = {"transform": images.Transform(size=8), "tokenizer": text.Tokenizer(merges, length=6).load()}

    def row(captions=("low", "new", "l"), caption="random", rng=None, image=None, index=5, tokens="first"):
        example = {"image": encode_image(pixels) if image is None else image, "captions": list(captions)}
        return collate.pairs(example, index, caption=caption, tokens=tokens, rng=rng, **options)

    return pixels, row


def test_a_row_has_pixels_tokens_and_its_place(pair):
    pixels, row = pair
    fields = row()
    np.testing.assert_array_equal(fields["image"], pixels)
    assert fields["tokens"].tolist() == [517, 514, 518, 0, 0, 0]
    assert fields["example"] == 5
    assert {name: value.dtype for name, value in fields.items()} == {"image": np.uint8, "tokens": np.int32, "example": np.int32}


def test_random_takes_every_caption_and_first_the_first(pair):
    _, row = pair

    def drawn(caption: str) -> set[int]:
        return {int(row(caption=caption, rng=np.random.default_rng(seed))["tokens"][1]) for seed in range(30)}

    assert len(drawn("random")) == 3
    assert drawn("first") == {514}
    assert row(rng=None)["tokens"][1] == 514


def test_tokens_of_a_long_caption_are_drawn_in_training_and_the_first_ones_in_evaluation(pair):
    _, row = pair
    long = ["l o w n e l o w n e"]
    drawn = {tuple(row(long, tokens="block", rng=np.random.default_rng(seed))["tokens"]) for seed in range(30)}
    assert len(drawn) == 5
    evaluated = row(long, tokens="block")["tokens"].tolist()
    assert evaluated == row(long, rng=np.random.default_rng(0))["tokens"].tolist()
    assert tuple(evaluated) in drawn


def test_a_space_comes_before_some_captions_in_training_and_before_none_in_evaluation(encode_image, noise):
    example = {"image": encode_image(noise(0, 8, 8)), "captions": ["low", "new"]}
    read = []

    class Tokenizer:
        def part(self, words, tokens, rng):
            read.append(words)
            return np.zeros(1, np.int32)

        def row(self, words):
            return self.part(words, "first", None)

    def load(leading_space, seed):
        rng = None if seed is None else np.random.default_rng(seed)
        options = {"transform": images.Transform(size=8), "tokenizer": Tokenizer(), "caption": "random"}
        collate.pairs(example, 0, leading_space=leading_space, rng=rng, **options)

    for leading_space in (0.0, 0.5):
        for seed in range(8):
            load(leading_space, seed)
    assert {words.strip() for words in read[:8]} == set(read[:8]) == {"low", "new"}
    assert {words[0] == " " for words in read[8:]} == {True, False} and {words.strip() for words in read[8:]} == {"low", "new"}
    read.clear()
    load(1.0, 0)
    load(1.0, None)
    assert read[0][0] == " " and read[1] == "low"


def test_what_is_missing_is_named(pair):
    _, row = pair
    with pytest.raises(records.RecordError, match="has no caption"):
        row(captions=())
    with pytest.raises(records.RecordError, match="has no image"):
        row(image=b"")
    with pytest.raises(records.RecordError, match="caption 0 is a int, not a string"):
        row(captions=[3])


def test_stacked_rows_keep_their_order(pair):
    _, row = pair
    batch = collate.stack((row(index=i) for i in (4, 2, 9)), 3)
    assert batch["example"].tolist() == [4, 2, 9]
    assert batch["image"].shape == (3, 8, 8, 3)
    assert batch["tokens"].shape == (3, 6)


def test_rows_that_do_not_make_a_batch_are_refused():
    row = {"x": np.zeros(3, np.int32)}
    for rows, words in (([row, {"x": np.zeros(1, np.int32)}], r"x of row 1 is int32 \(1,\)"), ([row, {"x": np.zeros(3)}], "float64"),
                        ([row], "1 rows for a batch of 2"), ([], "0 rows")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            collate.stack(rows, 2)
    with pytest.raises(IndexError):
        collate.stack([row] * 3, 2)
