"""Words of captions: those of Stanford's tokenizer, on lines made for it, on COCO's captions, and whatever the input."""

import gzip
import json
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from vlm_jax.evaluation import ptb


def test_made_lines_have_the_words_that_java_gives(oracles):
    oracle = json.loads((oracles / "ptb_tokens.json").read_text())
    found = ptb.tokenize(oracle["captions"])
    different = {
        caption: (" ".join(words), told)
        for caption, words, told in zip(oracle["captions"], found, oracle["tokens"], strict=True)
        if words != told.split()
    }
    assert not different


def test_the_lines_of_the_evaluation_oracle_too(oracles):
    oracle = json.loads((oracles / "caption_metrics.json").read_text())["ptb"]
    assert [" ".join(words) for words in ptb.tokenize(oracle["raw"].values())] == list(oracle["tok"].values())


@pytest.mark.parametrize("kind", ["references", "predictions_fakecap", "predictions_mixed_human"])
def test_captions_of_coco_have_the_words_that_java_gives(shared_data, kind):
    def read(name):
        return json.loads(gzip.decompress((shared_data / "coco_captions_val2017" / f"{name}.json.gz").read_bytes()))

    captions, told = read(kind), read(f"ptb_{kind}")
    if kind == "references":
        pairs = [pair for key, own in captions.items() for pair in zip(own, told[key], strict=True)]
    else:
        pairs = [(entry["caption"], told[str(entry["image_id"])]) for entry in captions]
    start = time.process_time()
    found = ptb.tokenize(caption for caption, _ in pairs)
    assert time.process_time() - start < 15, "25,014 captions take half a second; with room for a slow machine"
    assert not [(pair, words) for pair, words in zip(pairs, found, strict=True) if words != pair[1].split()]


def test_the_full_stop_of_a_single_letter_depends_on_the_next_caption():
    assert ptb.tokenize(["the letter K.", "A dog"]) == [["the", "letter", "k"], ["a", "dog"]]
    assert ptb.tokenize(["the letter K.", "Dogs"]) == [["the", "letter", "k."], ["dogs"]]


def test_a_caption_of_several_lines_is_one_caption():
    assert ptb.tokenize(["a dog\nand a\r\ncat\u2028there", "a bird"]) == [["a", "dog", "and", "a", "cat", "there"], ["a", "bird"]]


@pytest.mark.parametrize("caption", ["", "   ", "\n", ".", '" ... " -- !', "\N{GRINNING FACE}", "\x00"])
def test_a_caption_without_words_has_none(caption):
    assert ptb.tokenize([caption, "a dog"]) == [[], ["a", "dog"]]


def test_no_captions_have_no_words():
    assert ptb.tokenize([]) == []


@pytest.mark.parametrize("part", ["a,", "<a ", "'", "1.1,", "a@", "()", "a-", "x", "x "])
def test_a_long_caption_that_repeats_itself_takes_no_time(part):
    start = time.process_time()
    ptb.tokenize([part * 3000])
    assert time.process_time() - start < 5, "hundredths of a second; with room for a slow machine"


ANY = st.text(st.characters(codec="utf-8"), max_size=40) | st.text("aAB.,'-/ 0<>()\"\n", max_size=40)


@hypothesis.given(st.lists(ANY, max_size=4))
@hypothesis.example(["<a - b>", "5 - 7/8", "(555) 123-4567", "\xa0.\xa0"])
@hypothesis.settings(deadline=None, max_examples=60)
def test_every_text_gives_words_in_lower_case_without_blanks_or_punctuation(captions):
    found = ptb.tokenize(captions)
    assert len(found) == len(captions)
    for words in found:
        assert all(words) and not ptb.PUNCTUATION.intersection(words)
        assert all(word == word.lower() and not any(letter.isspace() for letter in word) for word in words)


@hypothesis.given(st.lists(st.sampled_from("a dog runs on the grass with red frisbee and two cats".split()), min_size=1))
@hypothesis.settings(deadline=None, max_examples=50)
def test_plain_words_stay_as_they_are_whatever_ends_the_caption(words):
    for text in (" ".join(words), " ".join(words).capitalize(), ", ".join(words), "  ".join(words) + " .", " ".join(words) + " !"):
        assert ptb.tokenize([text]) == [words]
