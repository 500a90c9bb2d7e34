"""A vocabulary written as tokenizer.json reads texts as it did, whatever its algorithm, and begins them; it ends none."""

import io

import numpy as np
import pytest
import sentencepiece
import tokenizers

from tests import vocabulary_file
from vlm_jax.data import text, vocabulary
from vlm_jax.errors import InputError
from vlm_jax.models.convert import fast_tokenizer

WORDS = "a red circle on the blue square, two cats' 3 birds! naïve café 東京 stop".split()


def texts(count):
    """Sentences, and rows of letters, spaces and signs that the vocabulary may not have."""
    rng = np.random.default_rng(0)
    known = [" ".join(rng.choice(WORDS, rng.integers(1, 8))) for _ in range(count)]
    letters = list("ab eé½京\t\n.,'()/s 😀ﬁ\uff21012  ▁")
    return [*known, *("".join(rng.choice(letters, rng.integers(0, 24))) for _ in range(count)), "", "   "]


def llama_like():
    """Nothing is normalised, and spaces stay as many as they are."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts(200)[:200]), model_writer=made, model_type="bpe", vocab_size=400, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return made.getvalue()


@pytest.mark.parametrize("kind", ["bpe unknown", "bpe bytes", "unigram unknown", "unigram bytes", "llama", "lower"])
def test_a_sentencepiece_model_reads_texts_alike(tmp_path, kind):
    algorithm, *rare = kind.split()
    model = llama_like() if kind == "llama" else None
    if model is None:
        chosen = {"algorithm": algorithm, "rare": rare[0]} if rare else {}
        model = vocabulary.train(texts(200)[:200], 400, **chosen)  # pyright: ignore[reportArgumentType]
    (tmp_path / "words.model").write_bytes(model)
    case = "lower" if kind == "lower" else "keep"
    loaded = text.Tokenizer(str(tmp_path / "words.model"), 16, "zero", case).load()
    made = fast_tokenizer.of(tmp_path / "words.model", case=case, begin=loaded.eos_id)
    fast_tokenizer.write(tmp_path, made, begin=loaded.eos_id, end=loaded.eos_id, pad=loaded.pad_id, length=16)
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.get_vocab_size() == loaded.vocab_size
    for sentence in [*texts(500), "A RED Circle"]:
        ids = loaded.encode(sentence)
        assert again.encode(sentence, add_special_tokens=False).ids == ids, sentence
        assert again.encode(sentence).ids == [loaded.eos_id, *ids]
    for sentence in texts(5)[:5]:
        assert again.decode(again.encode(sentence).ids) == loaded.decode(loaded.encode(sentence))


def test_a_tokenizer_json_keeps_its_ids_without_its_own_ends_and_cuts(tmp_path):
    source = vocabulary_file.write(tmp_path / "gemma.json")
    loaded = text.Tokenizer(source, 16).load()
    made = fast_tokenizer.of(tmp_path / "gemma.json", case="keep", begin=None, added=("<image>",))
    for sentence in ("a photo of a dog with two cats and a bird", "naïve 東京", ""):
        assert made.encode(sentence).ids == loaded.encode(sentence)
    assert made.token_to_id("<image>") == loaded.vocab_size


def test_symbols_of_texts_are_refused(tmp_path):
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts(50)[:50]), model_writer=made, vocab_size=120, user_defined_symbols=["<n>"], hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    (tmp_path / "words.model").write_bytes(made.getvalue())
    with pytest.raises(InputError, match="its symbol '<n>' is a text's own"):
        fast_tokenizer.of(tmp_path / "words.model", case="keep", begin=None)
