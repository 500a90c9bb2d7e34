"""Captioning with a tiny model that writes the colour it sees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlm_jax.data import images, sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, caption_scores, captioning, shapes_grammar
from vlm_jax.models import generation
from vlm_jax.training import sharding

from .conftest import COLOURS, NAMES, WORDS

BEGIN, END = len(WORDS) + 1, len(WORDS) + 2


class Tokenizer:
    """Words to ids by their place in a list."""

    length, pad_id, bos_id, eos_id = 6, 0, BEGIN, END

    def encode(self, text):
        return [WORDS.index(word) + 1 for word in text.split()]

    def decode(self, ids):
        return " ".join(WORDS[i - 1] for i in ids if 0 < i <= len(WORDS))


class Writer(nnx.Module):
    """`a photo of COLOUR`, less what the prompt has of it."""

    def __init__(self):
        self.colours = nnx.Param(jnp.asarray(COLOURS, jnp.float32))

    def generate(self, image, tokens, lengths, decoding, *, end_id, pad_id, key):
        mean = image[:, 0].mean((1, 2))
        colour = jnp.argmin(jnp.square(mean[:, None] - self.colours[...]).sum(-1), axis=1) + 5
        text = jnp.concatenate([jnp.tile(jnp.array([1, 2, 4]), (len(mean), 1)), colour[:, None], jnp.full((len(mean), 1), end_id)], 1)
        text = jnp.pad(text[:, tokens.shape[1] - 1 :], ((0, 0), (0, decoding.max_new_tokens)))[:, : decoding.max_new_tokens]
        return generation.Generated(text, jnp.full(len(mean), 5), jnp.zeros(len(mean)))


@pytest.fixture
def make():
    def subject(batch_size=10, devices=1):
        graphdef, variables = nnx.split(Writer())
        compiled = base.Compiled(graphdef, sharding.Mesh().make(jax.devices()[:devices]))
        return base.Subject(compiled, nnx.to_pure_dict(variables), images.Transform(size=8), Tokenizer(), batch_size)

    return subject


def test_the_numbers_are_those_of_the_captions(make, data):
    found = captioning.Captioning(data=data, note="Said beside.")(make())
    source = sources.open_source(data)
    records = [source[i] for i in range(27)]
    pixels = np.stack([images.Transform(size=8)(record["image"]) for record in records])
    nearest = ((pixels.mean((1, 2))[:, None] - COLOURS) ** 2).sum(-1).argmin(1)
    captions = [f"a photo of {NAMES[i]}" for i in nearest]
    want = caption_scores.score(captions, [record["captions"] for record in records])
    assert found.metrics == want.values and next(iter(found.metrics)) == "cider_d" and found.intervals == want.intervals
    assert found.blind.keys() == want.values.keys() and found.blind["cider_d"] < found.metrics["cider_d"]
    assert found.note.endswith("Said beside.") and "blind: 'a photo of a red' of every image" in found.note
    assert len(found.examples) == 12
    for example in found.examples:
        assert example.query.image and example.answers[0].text in captions and example.expected.text


def test_of_scenes_what_is_right_comes_first(make, tiny_world):
    found = captioning.Captioning(data=f"{tiny_world}/val*.array_record", grammar="shapes", limit=8)(make())
    assert next(iter(found.metrics)) == "objects_accuracy" and set(shapes_grammar.NAMES) < set(found.metrics)
    assert found.metrics.keys() == found.intervals.keys() == found.blind.keys()
    assert {example.group for example in found.examples} <= {"wrong captions", "right captions"} and found.examples


def test_batches_devices_and_a_prompt_change_no_caption(make, data):
    source = sources.open_source(data)
    want = captioning.write(make(), source, 27, generation.Decoding())
    assert captioning.write(make(batch_size=8, devices=8), source, 27, generation.Decoding()) == want
    assert captioning.write(make(), source, 27, generation.Decoding(), "a photo") == want
    subject = make()
    for _ in range(2):
        captioning.write(subject, source, 27, generation.Decoding())
    assert subject.compiled.compilations == 1


def test_what_cannot_be_captioned_is_refused(make, make_subject, data):
    with pytest.raises(InputError, match="no room"):
        captioning.opening(make(), generation.Decoding(), "a photo of a red")
    with pytest.raises(InputError, match="has no scene"):
        captioning.Captioning(data=data, grammar="shapes")(make())
    with pytest.raises(InputError, match="writes no text"):
        silent = dataclasses.replace(make_subject(), tokenizer=Tokenizer())
        captioning.Captioning(data=data)(silent)
    with pytest.raises(InputError, match="no begin token"):
        subject = make()
        subject.tokenizer.bos_id = None
        captioning.Captioning(data=data)(subject)
