"""Learning in context over a model that only records what it is asked: which examples it sees, with which images, and how answers count."""

import dataclasses
import functools
import io
import json
import types

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from vlm_jax.data import images, records, vocabulary
from vlm_jax.data import text as text_lib
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, few_shot_captioning, few_shot_classification, vqa
from vlm_jax.layers import gated_cross_attention
from vlm_jax.models import generation, lm, resampler, vit
from vlm_jax.systems import flamingo
from vlm_jax.training import sharding

COLOURS = {"red": (200, 0, 0), "blue": (0, 0, 200), "green": (0, 160, 0)}
NAMES = tuple(COLOURS)
LATENTS, WIDTH = 2, 3


def record(i, shade):
    name = NAMES[i % 3]
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), COLOURS[name], np.uint8) + np.uint8(shade)).save(file, "PNG")
    asked = {"question": "what colour is this?", "answers": [name] * 7 + ["grey"] * 3}
    return {"key": str(i), "image": file.getvalue(), "captions": [f"a {name} square"], "label": i % 3, **asked}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Nine examples, and four queries of which the last one has the image of example 4."""
    folder = tmp_path_factory.mktemp("in_context")
    (folder / "classes.json").write_text(json.dumps({"names": NAMES, "templates": ["a {}"]}))
    texts = [f"Output: a {name} square Question: what colour is this? Answer: {name} grey" for name in NAMES] * 9
    (folder / "tokenizer.model").write_bytes(vocabulary.train(texts, 90))
    train = records.write(str(folder / "train"), [record(i, i) for i in range(9)], 1)
    val = records.write(str(folder / "val"), [*(record(i, 20 + i) for i in range(3)), record(4, 4)], 1)
    return {"train": train[0], "data": val[0], "classes": str(folder / "classes.json"), "tokenizer": str(folder / "tokenizer.model")}


@functools.cache
def abstract(vocab_size, length):
    """A model without arrays."""
    config = flamingo.Flamingo(
        image=vit.Config(image_size=8, patch_size=4, width=8, depth=1, mlp_dim=8, num_heads=1),
        lm=lm.Config(vocab_size=vocab_size, length=length, width=8, depth=1, mlp_dim=8, num_heads=1),
        resampler=resampler.Config(width=WIDTH, latents=LATENTS, depth=1, num_heads=1, head_dim=2, mlp_dim=4),
        cross=gated_cross_attention.Config(num_heads=1, head_dim=2, mlp_dim=4),
    )
    return config, *nnx.split(nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0))))


class Recorder:
    """A subject whose model answers `answer`, or finds likeliest what has most of its tokens."""

    def __init__(self, data, answer="red", length=256):
        self.tokenizer = text_lib.Tokenizer(data["tokenizer"], length=length).load()
        self.transform, self.batch_size = images.Transform(size=8), 8
        self.config, graphdef, self.variables = abstract(self.tokenizer.vocab_size, length)
        self.compiled = types.SimpleNamespace(
            graphdef=graphdef, mesh=sharding.Mesh().make(), generate=self.generate, log_likelihood=self.log_likelihood
        )
        self.answer, self.batches = self.tokenizer.encode(answer), []

    def embed_records(self, source, count, label, method="embed_image"):
        first = 1 if "support" in label else 101
        if method == "visual_tokens":
            return np.repeat(np.arange(first, first + count, dtype=np.float32)[:, None], LATENTS * WIDTH, axis=1)
        colours = np.array([COLOURS[source[i]["captions"][0].split()[1]] for i in range(count)], float)
        return colours / np.linalg.norm(colours, axis=1, keepdims=True)

    def generate(self, variables, batch, decoding, *, end_id, pad_id, key):
        self.batches.append(batch)
        row = [*self.answer, end_id, 5, 6]
        return types.SimpleNamespace(tokens=np.tile(np.array(row, np.int32), (len(batch["tokens"]), 1)))

    def log_likelihood(self, variables, batch):
        self.batches.append(batch)
        wanted = np.isin(batch["tokens"], self.answer) & batch["targets"]
        return wanted.sum(1) - 0.1 * batch["targets"].sum(1)


def given(data, *fields):
    return {name: data[name] for name in ("train", "data", *fields)}


def seen(batch, row):
    """The numbers of the images of a row: of examples from 1, of queries from 101."""
    return [int(x) for x in batch["images"][row, :, 0, 0] if x]


def test_answers_are_cut_at_the_end_of_the_chunk_and_count_as_people_s(data):
    subject = Recorder(data)
    found = vqa.Vqa(**given(data), shots=(0, 2), examples=2)(subject)
    assert found.metrics == pytest.approx({"accuracy@0_shots": 0.25, "accuracy@2_shots": 0.25})  # one of four queries is red
    lines = found.figures["shots"].lines
    assert lines["accuracy"] == [(0.0, 0.25), (2.0, 0.25)] and lines["blind"] == [(0.0, 0.25), (2.0, 0.25)]  # red to all
    none, two = subject.batches
    assert [seen(none, row) for row in range(4)] == [[101], [102], [103], [104]]
    assert all(len(seen(two, row)) == 3 and seen(two, row)[-1] == 101 + row for row in range(4))
    assert (none["tokens"] == subject.config.image_id).sum() == 4 and (two["tokens"] == subject.config.image_id).sum() == 12
    example = found.examples[-1]
    texts, pictures = zip(*((entry.text, entry.image) for entry in example.context), strict=True)
    assert len(set(pictures)) == 2 and all(pictures) and all(text.startswith("Question: what colour is this? Answer: ") for text in texts)
    assert [entry.image for entry in found.examples[0].context] == [b"", b""]  # with 0 shots, the texts of two
    assert example.group == "2 shots" and example.query.image and example.expected.text == "blue"
    assert example.query.text.count("<image>Question: what colour is this? Answer:") == 3 and example.query.text.count("<EOC>") == 2
    assert example.answers[0].text == "red"


@pytest.mark.parametrize(("choice", "drawn"), [("random", "once"), ("random", "for_each"), ("similar", "once")])
def test_no_query_sees_its_own_image_among_the_examples(data, choice, drawn):
    subject = Recorder(data)
    vqa.Vqa(**given(data), shots=(8,), choice=choice, drawn=drawn, draws=1 if choice == "similar" else 3)(subject)
    for batch in subject.batches:
        shown = [seen(batch, row)[:-1] for row in range(4)]
        assert all(len(set(one)) == 8 for one in shown)
        assert 5 not in shown[3]  # example 4 has its image
    if choice == "similar":
        assert all(one[-3:] and {(i - 1) % 3 for i in one[-2:]} == {row % 3 if row < 3 else 1} for row, one in enumerate(shown))


def test_random_examples_are_shared_or_drawn_for_each_and_differ_between_draws(data):
    drawn = {}
    for kind in ("once", "for_each"):
        subject = Recorder(data)
        found = vqa.Vqa(**given(data), shots=(3,), drawn=kind, draws=2)(subject)
        drawn[kind] = [[tuple(seen(batch, row)[:-1]) for row in range(3)] for batch in subject.batches]
        assert "accuracy@3_shots_deviation" in found.metrics
    assert all(len(set(rows)) == 1 for rows in drawn["once"]) and drawn["once"][0] != drawn["once"][1]
    assert len(set(drawn["for_each"][0])) > 1


def test_the_likeliest_name_is_the_class_and_orders_are_averaged(data):
    subject = Recorder(data, answer="blue")
    task = few_shot_classification.FewShotClassification(**given(data, "classes"), shots=(2,), orders=3)
    found = task(subject)
    assert found.metrics == {"acc1@2_shots": 0.5} and found.chance == {"acc1@2_shots": pytest.approx(1 / 3)}
    assert len(subject.batches) == 3 * 2  # orders, and 4 queries x 3 names in batches of 8
    targets = subject.batches[0]["targets"]
    answer = subject.tokenizer.encode("Output: red")[len(subject.tokenizer.encode("Output:")) :]
    assert subject.batches[0]["tokens"][0][targets[0]].tolist() == [*answer, subject.config.chunk_end_id]
    first, second = (seen(subject.batches[i], 0)[:-1] for i in (0, 4))
    assert sorted(first) == sorted(second)


def test_captions_are_scored_by_consensus(data):
    found = few_shot_captioning.FewShotCaptioning(**given(data), shots=(1,))(Recorder(data, answer="a red square"))
    assert found.metrics["cider_d@1_shots"] > 1 and found.metrics["rouge_l@1_shots"] > 0.5
    assert found.intervals.keys() == found.metrics.keys()
    low, high = found.intervals["cider_d@1_shots"]
    assert low < found.metrics["cider_d@1_shots"] < high
    with pytest.raises(InputError, match="has no scene; set grammar to 'none'"):
        few_shot_captioning.FewShotCaptioning(**given(data), grammar="shapes")(Recorder(data))


def test_what_cannot_be_asked_is_refused(data):
    with pytest.raises(InputError, match=r"shots \(4, 2\): must be ascending"):
        vqa.Vqa(shots=(4, 2))
    with pytest.raises(InputError, match="draws 2: at least 1, and 1 with choice 'similar'"):
        vqa.Vqa(choice="similar", draws=2)
    with pytest.raises(InputError, match="must end with"):
        vqa.Vqa(prompt="Question: {question}")
    with pytest.raises(InputError, match="train '': name shards"):
        vqa.Vqa(data=data["data"])(Recorder(data))
    with pytest.raises(InputError, match="shots 12: only 9 examples"):
        vqa.Vqa(**given(data), shots=(12,))(Recorder(data))
    subject = Recorder(data)
    subject.compiled.graphdef, subject.variables = nnx.split(nnx.eval_shape(lambda: subject.config.lm.build(rngs=nnx.Rngs(0))))
    with pytest.raises(InputError, match="needs a model that takes several images"):
        vqa.Vqa(**given(data))(subject)
    assert dataclasses.replace(vqa.Vqa(), shots=(0,)).shots == (0,)


def test_a_prompt_without_room_is_shown_as_the_model_got_it(data):
    subject = Recorder(data, length=64)
    found = vqa.Vqa(**given(data), shots=(8,), examples=4)(subject)
    assert "Left out for want of room, on average: " in found.note and " at 8 shots (prompts of 64 tokens)" in found.note
    (batch,) = subject.batches
    for row, example in enumerate(found.examples):
        assert 0 < len(example.context) == len(seen(batch, row)) - 1 < 8
        assert example.query.text.count("<EOC>") == len(example.context)


def test_an_answer_ends_where_a_new_question_begins():
    assert vqa.cut("two Question: how many") == "two"
    assert vqa.cut("red\nblue") == "red"


@pytest.mark.slow
def test_a_real_model_writes_and_weighs_over_several_devices(data):
    config = abstract(text_lib.Tokenizer(data["tokenizer"], length=64).load().vocab_size, 64)[0]
    graphdef, variables = nnx.split(config.build(rngs=nnx.Rngs(0)))
    subject = base.Subject(
        compiled=base.Compiled(graphdef, sharding.Mesh().make()),
        variables=nnx.to_pure_dict(variables),
        transform=images.Transform(size=8),
        tokenizer=text_lib.Tokenizer(data["tokenizer"], length=64).load(),
        batch_size=8,
    )
    greedy = generation.Decoding(max_new_tokens=3)
    written = vqa.Vqa(**given(data), shots=(1,), decoding=greedy)(subject)
    assert 0 <= written.metrics["accuracy@1_shots"] <= 1 and len(written.examples) == 4
    weighed = few_shot_classification.FewShotClassification(**given(data, "classes"), shots=(1,), choice="similar")(subject)
    assert 0 <= weighed.metrics["acc1@1_shots"] <= 1
