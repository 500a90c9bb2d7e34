"""Fast binding: episodes that tell what they should and nothing else, asked of models that see, that do not, and that only count words."""

import collections
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data import records, vocabulary
from vlm_jax.errors import InputError
from vlm_jax.evaluation import fast_binding
from vlm_jax.evaluation import few_shot_prompts as prompts

from .test_in_context import Recorder

WORDS = ("dax", "wug", "blicket", "fep")
SHAPES, GROUNDS = ("circle", "star", "ring"), ("white", "black")
COUNT = 60


def record(i):
    """Of a class by i % 3 and by i // 3 % 2; the last one has the image of the first."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), i % (COUNT - 1), np.uint8)).save(file, "PNG")
    scene = {"objects": [{"shape": SHAPES[i % 3]}], "ground": GROUNDS[i // 3 % 2]}
    return {"key": str(i), "image": file.getvalue(), "captions": ["a thing"], "label": i % 3, "scene": scene}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fast_binding")
    (folder / "tokenizer.model").write_bytes(vocabulary.train([f"Output: {word}" for word in WORDS] * 9, 60))
    found = records.write(str(folder / "images"), [record(i) for i in range(COUNT)], 1)
    return {"data": found[0], "tokenizer": str(folder / "tokenizer.model")}


@pytest.fixture(scope="module")
def task(data):
    return fast_binding.FastBinding(
        data=data["data"], labels=("scene.objects.0.shape", "scene.ground"), words=WORDS, shots=(0, 1, 2, 8), episodes=120
    )


class Learner(Recorder):
    """Finds the word likeliest that stood with images like the last one, and not with others; `kinds` are the labels that it sees."""

    def __init__(self, data, kinds=(lambda i: i % 3, lambda i: i // 3 % 2)):
        super().__init__(data)
        self.kinds = kinds

    def embed_records(self, source, count, label, method="embed_image"):
        return np.repeat(np.arange(count, dtype=np.float32)[:, None], 6, axis=1)

    def log_likelihood(self, variables, batch):
        self.batches.append(batch)
        found = np.zeros(len(batch["tokens"]))
        for row, (tokens, targets) in enumerate(zip(batch["tokens"], batch["targets"], strict=True)):
            if not targets.any():
                continue
            chunks = np.split(tokens, np.flatnonzero(tokens == self.config.image_id))[1:]
            numbers = batch["images"][row, : len(chunks), 0, 0].astype(int)
            said = self.tokenizer.decode([i for i in tokens[targets] if i < self.tokenizer.vocab_size])
            texts = [self.tokenizer.decode([i for i in chunk if i < self.tokenizer.vocab_size]) for chunk in chunks[:-1]]
            for kind in self.kinds:
                groups = collections.defaultdict(set)
                for text, number in zip(texts, numbers, strict=False):
                    groups[kind(number)].add(text.removeprefix("Output:").strip())
                if all(len(words) == 1 for words in groups.values()) and len(set(map(tuple, groups.values()))) == len(groups):
                    own = groups.get(kind(numbers[-1]))
                    found[row] += (said in own) if own else (said not in set.union(set(), *groups.values()))
        return found


def test_who_sees_learns_the_words_and_who_does_not_is_at_chance(data, task):
    sees = dataclasses.replace(task, labels=("scene.ground",))(Learner(data, (lambda i: i // 3 % 2,)))
    assert sees.metrics["acc1@1_shots"] == sees.metrics["acc1@2_shots"] == sees.metrics["acc1@8_shots"] == 1
    assert sees.chance.keys() == sees.metrics.keys() and set(sees.chance.values()) == {0.5}
    subject = Learner(data, ())
    blind = task(subject)
    for name in ("acc1@0_shots", "acc1@1_shots", "acc1@8_shots", "acc1_shuffled@8_shots"):
        low, high = blind.intervals[name]
        assert low <= 0.5 <= high and low < blind.metrics[name] < high
    both = task(Learner(data))
    assert both.metrics["acc1_shape@8_shots"] > 0.95 and both.metrics["acc1_ground@8_shots"] > 0.95
    lines = both.figures["shots"].lines
    assert [x for x, _ in lines["words of the images"]] == [0, 1, 2, 8] and {y for _, y in lines["chance"]} == {0.5}
    shown = both.examples[-1]
    assert shown.group == "8 shots" and shown.query.image and shown.query.text.count("<image>Output: ") == 8
    assert shown.expected.text in WORDS and shown.answers[0].text in WORDS


def test_the_control_says_nothing_of_the_words(data, task):
    """The best guess from the examples that the control shows is right as often as any."""
    task = dataclasses.replace(task, labels=("scene.ground",), episodes=600)
    found = task(Learner(data, (lambda i: i // 3 % 2,)))
    for shots in (1, 2, 8):
        low, high = found.intervals[f"acc1_shuffled@{shots}_shots"]
        assert low <= 0.5 <= high and high - low < 0.1
    assert found.metrics["acc1@1_shots"] == 1


def test_episodes_follow_from_their_seed_and_show_each_word_as_often_and_never_the_query(data, task):
    source, count = fast_binding.base.open_records(task.data, 0)
    episodes = task.drawn(source, count)
    assert episodes == task.drawn(source, count) != dataclasses.replace(task, seed=1).drawn(source, count)
    prints = [prompts.fingerprint(source[i]["image"]) for i in range(count)]
    orders = set()
    for number, episode in enumerate(episodes):
        assert episode.kind == ("shape", "ground")[number % 2] and len(set(episode.words)) == 2
        records = [episode.query[0], *(i for i, _ in episode.examples)]
        assert len({prints[i] for i in records}) == len(records) == 9
        of_class = (lambda i: i % 3) if episode.kind == "shape" else (lambda i: i // 3 % 2)
        classes = {of_class(i): c for i, c in (*episode.examples, episode.query)}
        assert len(classes) == 2 and all(classes[of_class(i)] == c for i, c in (*episode.examples, episode.query))
        for shots in (2, 4, 8):
            assert collections.Counter(c for _, c in episode.examples[:shots]) == {0: shots // 2, 1: shots // 2}
        orders.add(tuple(c for _, c in episode.examples))
    assert len(orders) > 10
    assert 0.4 < np.mean([episode.query[1] for episode in episodes]) < 0.6


def test_without_examples_two_texts_are_shown(data, task):
    (episode, *_) = task.drawn(*fast_binding.base.open_records(task.data, 0))
    first, second = (episode.words[c] for _, c in episode.examples[:2])
    assert str(episode.prompt("Output: {answer}", 0)) == f"Output: {first}<EOC>Output: {second}<EOC><image>Output:"
    assert episode.prompt("Output: {answer}", 2).images == [episode.examples[0][0], episode.examples[1][0], episode.query[0]]
    two = episode.prompt("Output: {answer}", 2, shuffled=True)
    assert [chunk.text for chunk in two.examples] == [f"Output: {episode.words[i]}" for i in episode.shuffled[:2]]


def test_what_cannot_be_asked_is_refused(data, task):
    for fields, message in (
        ({"ways": 5}, r"ways 5: from 2 to the number of words, which are 4"),
        ({"words": ("dax", "dax")}, r"which are 1 different ones"),
        ({"shots": (4, 2)}, r"shots \(4, 2\): must be ascending"),
        ({"episodes": 0}, r"episodes 0"),
        ({"prompt": "Output:"}, r"must end with"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(task, **fields)
    for fields, message in (
        ({"labels": ("scene.object",)}, r"labels 'scene\.object': record '0' of .* has no such field, it has \['captions'"),
        ({"labels": ("label",), "shots": (40,)}, r"ways 2: only 0 classes of label have the 21 images .* that 40 examples"),
        ({"ways": 3, "labels": ("scene.ground",)}, r"ways 3: only 2 classes of scene\.ground"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(task, **fields)(Learner(data))
