import dataclasses
import json
import pickle

import pytest

from tests import vocabulary_file
from vlm_jax import errors
from vlm_jax.data import text


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> str:
    return vocabulary_file.write(tmp_path_factory.mktemp("json") / "tokenizer.json")


def test_rows_begin_and_end_with_the_tokens_of_the_usual_names(gemma):
    loaded = text.Tokenizer(gemma, length=8).load()
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (2, 1, 0)
    row = loaded(["a photo"])[0].tolist()
    ids = loaded.encode("a photo")
    assert row == [2, *ids, 1, *[0] * (6 - len(ids))]
    without = text.Tokenizer(gemma, length=8, begin="none", pad="eos").load()(["a photo"])[0].tolist()
    assert without == [*ids, *[1] * (8 - len(ids))]


def test_what_the_file_cuts_and_fills_is_not_cut_nor_filled_twice(gemma):
    loaded = text.Tokenizer(gemma, length=64, begin="none").load()
    assert len(loaded.encode("a photo of a dog and two cats")) > 4
    assert len(loaded.encode("a")) == 1


@pytest.mark.parametrize("string", ["a photo of a dog", "naïve café 北京 🙂", "", "  two  spaces "])
def test_decodes_what_it_encoded(gemma, string):
    loaded = text.Tokenizer(gemma, length=64).load()
    assert loaded.decode(loaded([string])[0]) == string


def test_a_special_token_that_a_text_spells_out_is_text(gemma):
    loaded = text.Tokenizer(gemma, length=64).load()
    ids = loaded.encode("a <eos> b")
    assert loaded.eos_id not in ids and loaded.decode(ids) == "a <eos> b"


def test_ids_cover_the_vocabulary(gemma):
    loaded = text.Tokenizer(gemma).load()
    assert loaded.vocab_size == 1 + max(json.loads(open(gemma, encoding="utf-8").read())["model"]["vocab"].values())


def test_lower_case_comes_first(gemma):
    assert text.Tokenizer(gemma, case="lower").load().encode("A Photo") == text.Tokenizer(gemma).load().encode("a photo")


def test_survives_pickling_and_moving(gemma, tmp_path):
    config = text.Tokenizer(gemma, length=8)
    config.keep(tmp_path, "pairs")
    moved = config.kept(tmp_path, "pairs")
    assert moved.path == str(tmp_path / "pairs.json")
    again = pickle.loads(pickle.dumps(moved.load()))
    assert again(["a dog"]).tolist() == config.load()(["a dog"]).tolist()


def test_unusual_names_are_named_in_the_configuration(tmp_path):
    path = vocabulary_file.write(tmp_path / "tokenizer.json", ("<unk>", "[[start]]", "[[stop]]"))
    config = text.Tokenizer(path, length=6, begin="[[start]]", end="[[stop]]", pad="eos")
    assert config.load()(["a"])[0].tolist() == [1, *config.load().encode("a"), 2, 2, 2, 2]
    for changed, message in (
        ({"end": "auto"}, "tokenizer.end 'auto'"),
        ({"end": "</s>"}, "tokenizer.end '</s>': tokenizer.json has no such token"),
        ({"begin": "<s>"}, "tokenizer.begin '<s>'"),
        ({"pad": "pad"}, 'tokenizer.pad "pad"'),
    ):
        with pytest.raises(errors.InputError, match=message):
            dataclasses.replace(config, **changed).load()


def test_one_token_may_begin_and_end_a_text(gemma):
    """As OPT's </s>."""
    loaded = text.Tokenizer(gemma, length=8, begin="<eos>").load()
    row = loaded(["a dog"])[0]
    assert row[0] == loaded.eos_id and loaded.decode(row) == "a dog"


def test_begin_and_end_of_other_vocabularies_can_be_named_too(piece_model, merges):
    loaded = text.Tokenizer(piece_model, length=8, begin="</s>").load()
    assert loaded(["a"])[0][0] == loaded.eos_id
    assert text.Tokenizer(merges, length=8, begin="none").load().bos_id is None
    with pytest.raises(errors.InputError, match=r"tokenizer\.begin 'nothing'"):
        text.Tokenizer(piece_model, begin="nothing").load()
