"""Perplexity counts every token once, with what stands before it, and says what is reached without looking."""

import dataclasses
import math
import types

import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.data import packing, text, vocabulary
from vlm_jax.evaluation import base, perplexity

LENGTH = 8
WORDS = ["a red thing here", "there a blue thing and a green thing here and there everywhere", "a thing"]


class Compiled:
    """A model that knows how far a token is from the start of what it sees, and nothing else."""

    mesh = types.SimpleNamespace(shape={"data": 1, "fsdp": 1})

    def __init__(self):
        self.seen: list[np.ndarray] = []

    def embed(self, method, variables, rows):
        assert method == "next_tokens"
        self.seen += list(rows)
        places = np.arange(rows.shape[2], dtype=np.float32)
        return np.stack([-places * rows[:, 1], (rows[:, 0] % 2) * rows[:, 1]], -1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    path.write_bytes(vocabulary.train(WORDS * 9, 40))
    return text.Tokenizer(str(path), length=LENGTH, begin="</s>").load()


@pytest.fixture
def subject(tokenizer, monkeypatch):
    """What the evaluator asks of a subject, without a device."""
    monkeypatch.setattr(perplexity.sharding, "rows", lambda size, mesh: np.arange(size))
    return types.SimpleNamespace(tokenizer=tokenizer, batch_size=2, compiled=Compiled(), variables={}, transform=None)


@pytest.fixture
def evaluator(tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(WORDS))
    return perplexity.Perplexity(data=str(tmp_path / "lines.txt"), unit="line", examples=0)


def whole(tokenizer):
    form = packing.Form(tokenizer.config, images=0)
    return [[token for part in form.text_parts(words) for token in part] for words in WORDS]


@pytest.mark.parametrize("context", [1, 4, 7])
def test_every_token_is_counted_once_with_its_context(subject, evaluator, tokenizer, context):
    found = dataclasses.replace(evaluator, context=context)(subject)
    expected, counted = whole(tokenizer), []
    for tokens, targets in subject.compiled.seen:
        places = np.flatnonzero(targets)
        if len(places):
            counted += tokens[places].tolist()
            assert places[0] >= 1 and (places[0] >= context or places[0] == 1)
            assert "".join(map(chr, tokens[: places[-1] + 1])) in "\n".join("".join(map(chr, ids)) for ids in expected)
    assert sorted(counted) == sorted(token for ids in expected for token in ids[1:])
    assert f"{len(counted)} tokens of 3 texts, each with at least {context} tokens before it" in found.note


def test_the_numbers_are_those_of_their_definitions(subject, evaluator, tokenizer):
    found = dataclasses.replace(evaluator, context=7)(subject)
    places = [min(place, LENGTH - 1) for ids in whole(tokenizer) for place in range(1, len(ids))]
    targets = [token for ids in whole(tokenizer) for token in ids[1:]]
    nats, words, size = sum(places), sum(len(line.split()) for line in WORDS), sum(map(len, WORDS))
    assert found.metrics == pytest.approx(
        {
            "token_perplexity": math.exp(nats / len(places)),
            "word_perplexity": math.exp(nats / words),
            "bits_per_byte": nats / math.log(2) / size,
            "accuracy": np.mean(np.array(targets) % 2),
        }
    )
    counts = np.bincount(targets)
    entropy = -sum(n * math.log(n / len(targets)) for n in counts if n)
    assert found.blind["token_perplexity"] == pytest.approx(math.exp(entropy / len(targets)))
    assert found.blind["accuracy"] == pytest.approx(counts.max() / len(targets))
    assert found.chance["token_perplexity"] == pytest.approx(tokenizer.vocab_size)
    assert all(low <= found.metrics[name] <= high for name, (low, high) in found.intervals.items())
    assert "over other stretches of 8 tokens" in found.note


def test_many_texts_are_drawn_as_wholes(subject, evaluator, tmp_path):
    lines = [WORDS[i % 3] + " and a thing" * (i % 5) for i in range(40)]
    (tmp_path / "many.txt").write_text("\n".join(lines))
    found = dataclasses.replace(evaluator, data=str(tmp_path / "many.txt"))(subject)
    assert "Intervals are over other texts" in found.note
    assert found.intervals["bits_per_byte"][0] < found.metrics["bits_per_byte"] < found.intervals["bits_per_byte"][1]


def test_only_so_many_tokens_are_taken_with_the_words_that_they_are_of(subject, evaluator, tokenizer):
    found = dataclasses.replace(evaluator, tokens=10)(subject)
    ids = whole(tokenizer)
    count = len(ids[0]) - 1 + 10 - len(ids[0]) - 1
    assert found.note.startswith(f"{count} tokens of 2 texts")


def test_beginnings_are_shown_with_what_the_model_writes(subject, evaluator):
    asked = []

    def generate(read, total, decoding, **options):
        prompts = [prompt.tokens for prompt in read(list(range(total)))]
        asked.append((prompts, decoding, options))
        return [f"written {i}" for i in range(total)]

    subject.generate, subject.transform = generate, types.SimpleNamespace(size=1)
    found = dataclasses.replace(evaluator, examples=2)(subject)
    (prompts, decoding, options), *_ = asked
    assert {len(prompt) for prompt in prompts} == {options["length"]} == {2} and decoding.max_new_tokens == LENGTH - 2
    assert [example.answers[0].text for example in found.examples] == ["written 0", "written 1"]
    assert all(isinstance(example, base.Example) and example.expected.text for example in found.examples)


@pytest.mark.parametrize(
    ("change", "content", "message"),
    [
        ({"context": 8}, "a thing", "context 8: a row has 8 tokens; from 1 to 7 of them"),
        ({}, "\n", "has no text of two tokens"),
        ({}, "\udcff", "An evaluation leaves nothing out: mend this record"),
    ],
)
def test_what_cannot_work_is_refused(subject, evaluator, tmp_path, change, content, message):
    (tmp_path / "lines.txt").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(errors.InputError, match=message):
        dataclasses.replace(evaluator, **change)(subject)


def test_validation_data_are_read_as_the_run_reads_them():
    found = perplexity.Perplexity().on_validation(types.SimpleNamespace(val="pairs.csv", read="captions", unit="file"))
    assert (found.data, found.read) == ("pairs.csv", "captions")
    mixed = types.SimpleNamespace(val="a.txt", parts={"books": types.SimpleNamespace(read="documents", unit="line")})
    assert perplexity.Perplexity().on_validation(mixed).unit == "line"
    with pytest.raises(errors.InputError, match=r"data\.val is empty"):
        perplexity.Perplexity().on_validation(types.SimpleNamespace(val=""))
