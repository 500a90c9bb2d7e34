import html
import json
import pickle
import random

import ftfy
import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.data import text

REAL = ["t5_base.spm.model", "bpe_32k_c4.spm.model", "test_model.model", "clip_bpe"]


def ids(*tokens: str) -> list[int]:
    """Ids of the tiny merges: printable characters from 0, with </w> from 256, then merges."""
    merged = ["lo", "low", "low</w>", "er</w>", "ne"]
    return [512 + merged.index(t) if t in merged else ord(t[0]) - ord("!") + 256 * t.endswith("</w>") for t in tokens]


@pytest.fixture
def tiny(merges) -> text.LoadedTokenizer:
    return text.Tokenizer(merges, length=8).load()


@pytest.mark.parametrize("name", REAL)
def test_ids_of_public_vocabularies_are_exact(shared_data, name):
    folder = shared_data / "tokenizers"
    expected = json.loads((folder / "expected_ids.json").read_text())
    file = "bpe_simple_vocab_16e6.txt.gz" if name == "clip_bpe" else name
    tokenizer = text.Tokenizer(str(folder / file), pad="eos").load()
    assert tokenizer.vocab_size == expected["vocab_sizes"][name]
    assert [tokenizer.encode(t) for t in expected["texts"]] == expected["ids"][name]


def test_rows_of_clip_are_start_ids_end_and_zeros(shared_data):
    tokenizer = text.Tokenizer(str(shared_data / "tokenizers" / "bpe_simple_vocab_16e6.txt.gz"), length=9).load()
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (49406, 49407, 0)
    rows = tokenizer(["a photo of a cat.", "", "dog " * 40])
    assert rows.dtype == np.int32
    assert rows.tolist() == [
        [49406, 320, 1125, 539, 320, 2368, 269, 49407, 0],
        [49406, 49407, 0, 0, 0, 0, 0, 0, 0],
        [49406] + [1929] * 7 + [49407],
    ]


def test_clip_unescapes_mends_and_collapses(shared_data):
    tokenizer = text.Tokenizer(str(shared_data / "tokenizers" / "bpe_simple_vocab_16e6.txt.gz")).load()
    same = tokenizer.encode('a "cat" & dog')
    for dirty in ("A &quot;cat&quot; &amp; dog", "a &amp;quot;cat&amp;quot; &amp;amp; dog", "  a \n \"cat\"\t& \u00a0dog "):
        assert tokenizer.encode(dirty) == same
    assert tokenizer.encode("<b> &amp;quot;") == tokenizer.encode('<b> "')  # ftfy leaves entities beside a "<", both passes are needed
    assert tokenizer.encode("schÃ¶n") == tokenizer.encode("schön")
    assert tokenizer.encode("it's 2023") == tokenizer.encode("it") + [568] + [i for d in "2023" for i in tokenizer.encode(d)]


@pytest.mark.parametrize("string", ["a photo of a cat", "ünïcödé naïve café 北京 🙂", "", "x < y & z"])
def test_clip_decodes_what_it_encoded(shared_data, string):
    tokenizer = text.Tokenizer(str(shared_data / "tokenizers" / "bpe_simple_vocab_16e6.txt.gz"), length=77).load()
    assert tokenizer.decode(tokenizer([string])[0]) == string


def test_plain_ascii_needs_no_mending():
    """The short cut of the cleaning: on these texts ftfy and unescaping change nothing."""
    draw = random.Random(0)
    characters = [chr(c) for c in range(32, 127) if chr(c) != "&"]
    for _ in range(2000):
        plain = "".join(draw.choices(characters, k=draw.randint(0, 30)))
        assert html.unescape(html.unescape(ftfy.fix_text(plain))) == plain


def test_merges_apply_by_rank_within_words(tiny):
    assert tiny.encode("low lower new") == ids("low</w>", "low", "er</w>", "ne", "w</w>")
    assert tiny.encode("lolo") == ids("lo", "l", "o</w>")
    assert tiny.vocab_size == 512 + 5 + 2
    assert (tiny.bos_id, tiny.eos_id, tiny.pad_id) == (517, 518, 0)


def test_words_split_into_letters_digits_contractions_and_signs(tiny):
    assert tiny.encode("I'LL x12!?") == ids("i</w>", "'", "l", "l</w>", "x</w>", "1</w>", "2</w>", "!", "?</w>")


def test_special_tokens_in_a_text_are_recognised_as_in_the_original(tiny):
    assert tiny.encode("<|startoftext|>x<|ENDOFTEXT|>") == [517, *ids("x</w>"), 518]


def test_every_byte_has_its_own_character(tiny):
    assert len({i for b in range(128) for i in tiny.encode("x" + chr(b))}) > 60
    assert tiny.decode(tiny.encode("日本 🙂 é")) == "日本 🙂 é"


def test_rows_are_cut_with_the_end_kept_and_padded(tiny):
    rows = tiny(["low", "", "l l l l l l l l l l"])
    assert rows.tolist() == [
        [517, *ids("low</w>"), 518, 0, 0, 0, 0, 0],
        [517, 518, 0, 0, 0, 0, 0, 0],
        [517, *ids("l</w>") * 6, 518],
    ]


@pytest.mark.parametrize("pad", ["pad", "eos"])
@pytest.mark.parametrize("kind", ["pieces", "merges"])
def test_parts_of_long_texts_are_random_tokens_or_a_run_between_begin_and_end(kind, pad, piece_model, merges):
    tokenizer = text.Tokenizer(piece_model if kind == "pieces" else merges, length=7, pad=pad).load()
    long = "a red thing low lower new"
    content = tokenizer.encode(long)
    assert len(content) > 8
    runs = [content[i : i + 5] for i in range(len(content) - 4)]
    drawn: dict[text.Part, set] = {"random": set(), "block": set(), "first": set()}
    for part, found in drawn.items():
        for seed in range(60):
            row = tokenizer.part(long, part, np.random.default_rng(seed)).tolist()
            assert (row[0], row[-1], len(row)) == (tokenizer.bos_id, tokenizer.eos_id, 7)
            rest = iter(content)
            assert all(token in rest for token in row[1:-1]), "in their order"
            found.add(tuple(row[1:-1]))
    assert drawn["first"] == {tuple(content[:5])}
    assert drawn["block"] == {tuple(run) for run in runs}
    assert len(drawn["random"]) > 20
    ends = {row[0] for row in drawn["random"]}, {row[-1] for row in drawn["random"]}
    assert content[0] in ends[0] and content[-1] in ends[1]
    with pytest.raises(ValueError, match="read-only"):
        tokenizer.part(long, "random", np.random.default_rng(0))[0] = 1


def test_a_text_that_fits_is_whole_and_nothing_is_drawn(tiny):
    for words in ("low", "l l l l l l"):
        rng = np.random.default_rng(0)
        assert tiny.part(words, "random", rng).tolist() == tiny.row(words).tolist()
        assert rng.integers(1000) == np.random.default_rng(0).integers(1000)


def test_padding_with_the_end_as_in_transformers(merges):
    row = text.Tokenizer(merges, length=5, pad="eos").load()(["low"])[0]
    assert row.tolist() == [517, *ids("low</w>"), 518, 518, 518]


def test_pieces_get_begin_and_end_where_the_model_defines_them(piece_model):
    tokenizer = text.Tokenizer(piece_model, length=6).load()
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (3, 1, 0)
    rows = tokenizer(["a red thing", "", "thing " * 50])
    content = tokenizer.encode("a red thing")
    assert rows[0].tolist() == ([3, *content][:5] + [1] + [0] * 6)[:6]
    assert rows[1].tolist() == [3, 1, 0, 0, 0, 0]
    assert rows[2, 0] == 3
    assert rows[2, -1] == 1
    assert tokenizer.decode(text.Tokenizer(piece_model, length=20).load()(["a red thing"])[0]) == "a red thing"


def test_lower_case_and_no_punctuation_on_request(piece_model):
    plain = text.Tokenizer(piece_model).load().encode("a red thing")
    assert text.Tokenizer(piece_model, case="lower").load().encode("A RED thing") == plain
    assert text.Tokenizer(piece_model, case="lower", punctuation="strip").load().encode(" A red, thing!! ") == plain
    assert text.Tokenizer(piece_model).load().encode("A RED thing") != plain


def test_a_model_without_pad_piece_says_what_to_choose(shared_data):
    path = str(shared_data / "tokenizers" / "test_model.model")
    with pytest.raises(errors.InputError, match=r'test_model\.model defines no pad piece; use "eos" or "zero"'):
        text.Tokenizer(path).load()
    assert text.Tokenizer(path, pad="eos").load().pad_id == 2
    assert text.Tokenizer(path, pad="zero").load().pad_id == 0


def test_half_a_surrogate_pair_does_not_stop_a_run(piece_model, tiny):
    broken = json.loads('"a \\ud83d red"')
    assert text.Tokenizer(piece_model).load()([broken]).shape == (1, 64)
    assert tiny([broken])[0, 0] == 517


def test_a_tokenizer_crosses_process_borders_and_rows_cannot_be_changed(tiny, piece_model):
    for tokenizer in (tiny, text.Tokenizer(piece_model).load()):
        copy = pickle.loads(pickle.dumps(tokenizer))
        np.testing.assert_array_equal(copy(["a low thing"]), tokenizer(["a low thing"]))
        with pytest.raises(ValueError, match="read-only"):
            tokenizer.row("a low thing")[0] = 1


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("a.model", b"not a model", "not a SentencePiece model"),
        ("a.txt", b"l o\nlo w\n", "no #version header"),
        ("a.txt", b"#version: 0.2\nl o w\n", "line 2 is not a pair"),
        ("a.txt.gz", b"not gzip", "cannot be read as merges"),
        ("a.json", b"{}", "not a file of the tokenizers library"),
        ("a.vocab", b"{}", "neither a SentencePiece model"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(errors.InputError, match=message):
        text.Tokenizer(str(tmp_path / name)).load()


def test_missing_paths_and_lengths_without_room_are_refused(tmp_path, merges):
    with pytest.raises(errors.InputError, match="no such file"):
        text.Tokenizer(str(tmp_path / "a.model")).load()
    with pytest.raises(errors.InputError, match="path is empty"):
        text.Tokenizer("").load()
    with pytest.raises(errors.InputError, match=r"tokenizer\.length 2"):
        text.Tokenizer(merges, length=2).load()


def test_ids_that_the_vocabulary_does_not_have_are_left_out_of_a_text(piece_model, merges):
    """A model may have more words than its tokenizer, and write one of them."""
    for path in (piece_model, merges):
        tokenizer = text.Tokenizer(path).load()
        ids = tokenizer.encode("a thing")
        assert tokenizer.decode([ids[0], tokenizer.vocab_size, *ids[1:], 10**6]) == tokenizer.decode(ids)
