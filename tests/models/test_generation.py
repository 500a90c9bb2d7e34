import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding

from tests.models import reference
from vlm_jax.errors import InputError
from vlm_jax.models import generation, lm

P = jax.P
END, PAD, MOST, BEAMS = 10, 0, 10, 3
MODEL = reference.filled(
    lm.Config(
        vocab_size=12,
        length=16,
        width=16,
        depth=2,
        mlp_dim=24,
        num_heads=4,
        num_kv_heads=2,
        position="rotary",
        norm="rms_norm",
        mlp="gated",
        bias="none",
        activation="silu",
        head="untied",
    )
)
PROMPTS = np.random.RandomState(3).randint(2, 12, (8, 6)).astype(np.int32)
LENGTHS = np.array([1, 6, 3, 2, 5, 4, 6, 1], np.int32)
FORWARD = jax.jit(MODEL.__call__)


def log_probabilities(texts):
    """Of what follows each text, read from its beginning: in batches of one shape, that the model is compiled once."""
    made = []
    for at in range(0, len(texts), 24):
        some = texts[at : at + 24]
        tokens = np.zeros((24, 16), np.int32)
        for row, text in zip(tokens, some, strict=False):
            row[: len(text)] = text
        logits = np.asarray(FORWARD(tokens), np.float64)[np.arange(len(some)), [len(text) - 1 for text in some]]
        made.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    return np.concatenate(made)


def search(beams, shortest=0, penalty=1.0):
    """Beam search as it is described, without a cache and to the very end; of one beam, without a penalty: greedy."""
    prompts = [PROMPTS[row, :length].tolist() for row, length in enumerate(LENGTHS)]
    followed = [[(0.0, [])] for _ in prompts]
    best = [(-np.inf, 0.0, []) for _ in prompts]
    for place in range(MOST):
        known = [(row, *text) for row, texts in enumerate(followed) for text in texts]
        gains = log_probabilities([prompts[row] + text for row, _, text in known])
        gains[:, END] -= np.inf if place + 1 < shortest else 0
        for row in range(len(prompts)):
            mine = [(ll + gain, text, token) for (r, ll, text), own in zip(known, gains, strict=True) if r == row
                    for token, gain in enumerate(own)]  # fmt: skip
            mine = sorted(mine, key=lambda x: -x[0])[: 2 * beams]
            ended = [(ll, [*text, token]) for ll, text, token in mine[:beams] if token == END]
            followed[row] = [(ll, [*text, token]) for ll, text, token in mine if token != END][:beams]
            for ll, text in ended + (followed[row] if place + 1 == MOST else []):
                best[row] = max(best[row], (ll / len(text) ** penalty, ll, text))
    return [(text, ll) for _, ll, text in best]


def generate(decoding, jit=jax.jit):
    graphdef, weights = nnx.split(MODEL)

    @jit
    def run(weights, prompts, lengths, key):
        model = nnx.merge(graphdef, weights)
        logits, cache = model.start(prompts, lengths, decoding.max_new_tokens - 1)
        return generation.generate(model.step, cache, logits, decoding, end_id=END, pad_id=PAD, key=key)

    return jax.device_get(run(weights, PROMPTS, LENGTHS, jax.random.key(5)))


@pytest.fixture(scope="module")
def beam_search():
    return generate(generation.Decoding(strategy="beam", max_new_tokens=MOST, beams=BEAMS))


def check(generated, expected):
    """Texts and their log likelihoods; what follows is padding."""
    for row, (text, log_likelihood) in enumerate(expected):
        assert generated.tokens[row].tolist() == text + [PAD] * (MOST - len(text))
        assert generated.lengths[row] == len(text)
        np.testing.assert_allclose(generated.log_likelihood[row], log_likelihood, atol=1e-4)


def test_greedy_with_a_cache_gives_the_tokens_of_reading_all_again():
    expected = search(1, shortest=3, penalty=0.0)
    assert len({len(text) for text, _ in expected}) > 2, "texts of unequal length are meant"
    check(generate(generation.Decoding(max_new_tokens=MOST, min_new_tokens=3)), expected)


def test_beam_search_with_a_cache_gives_the_texts_of_reading_all_again(beam_search):
    check(beam_search, search(BEAMS))


@pytest.mark.slow
def test_sampling_with_a_cache_draws_what_it_draws_from_reading_all_again():
    decoding = generation.Decoding(strategy="sample", max_new_tokens=MOST, temperature=1.5, top_k=6, top_p=0.9)
    made = generate(decoding)
    texts = [PROMPTS[row, :length].tolist() for row, length in enumerate(LENGTHS)]
    worth = np.zeros(8)
    for place in range(MOST):
        found = log_probabilities(texts)
        drawn_from = generation.truncate(jnp.asarray(found / 1.5, jnp.float32), 6, 0.9)
        for row, text in enumerate(texts):
            if text[-1] != END or not place:
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), place), row)
                text.append(int(jax.random.categorical(key, drawn_from[row])))
                worth[row] += found[row, text[-1]]
    check(made, [(text[length:], ll) for text, length, ll in zip(texts, LENGTHS, worth, strict=True)])


@pytest.mark.slow
def test_a_batch_over_eight_devices_gives_the_same_texts_and_no_row_leaves_its_device(beam_search):
    mesh = jax.make_mesh((4, 2, 1), ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)
    split, whole = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P())
    programs = []

    def jit(run):
        places = (whole, split, split, whole)

        def call(*arguments):
            arguments = [jax.device_put(x, place) for x, place in zip(arguments, places, strict=True)]
            compiled = jax.jit(run, in_shardings=places, out_shardings=split).lower(*arguments).compile()
            programs.append(compiled.as_text())
            return compiled(*arguments)

        return call

    with jax.set_mesh(mesh):
        spread = generate(generation.Decoding(strategy="beam", max_new_tokens=MOST, beams=BEAMS), jit)
    np.testing.assert_array_equal(spread.tokens, beam_search.tokens)
    np.testing.assert_allclose(spread.log_likelihood, beam_search.log_likelihood, atol=1e-5)
    # The devices agree on whether to go on, and exchange nothing else.
    assert "all-reduce" in programs[0]
    assert not any(word in programs[0] for word in ("all-gather", "all-to-all", "collective-permute"))


class Chain(NamedTuple):
    """A model whose next token depends on the last one and the place alone."""

    place: jax.Array
    table: jax.Array

    def step(self, last):
        return self.table[self.place + 1, last], self._replace(place=self.place + 1)

    def take(self, numbers):
        return self


@pytest.mark.parametrize("penalty", [0.0, 1.0, -1.0])
def test_wide_beams_find_the_best_of_all_texts(penalty):
    """All texts of up to 4 of 5 tokens, scored by hand, with so many beams that none is lost."""
    most, v, end = 4, 5, 3
    decoding = generation.Decoding(strategy="beam", max_new_tokens=most, beams=80, length_penalty=penalty)

    @jax.jit
    def run(table):
        cache = Chain(jnp.int32(0), table)
        return generation.generate(Chain.step, cache, table[0, :1], decoding, end_id=end, pad_id=0)

    for table in jax.nn.log_softmax(jnp.asarray(np.random.RandomState(0).normal(size=(5, most, v, v)), jnp.float32)):
        log_p = np.asarray(table)
        best = (-np.inf, ())
        for length in range(1, most + 1):
            for text in itertools.product(range(v), repeat=length):
                if end not in text[:-1] and (text[-1] == end or length == most):
                    ll = sum(log_p[place, last, token] for place, (last, token) in enumerate(itertools.pairwise((0, *text))))
                    best = max(best, (ll / length**penalty, text))
        found = run(table)
        assert found.tokens[0, : found.lengths[0]].tolist() == list(best[1])
        np.testing.assert_allclose(found.log_likelihood[0] / found.lengths[0] ** penalty, best[0], atol=1e-4)


def test_sampling_draws_from_the_likeliest_tokens_as_often_as_they_are_likely():
    logits = jnp.log(jnp.array([[0.05, 0.4, 0.25, 0.2, 0.1]]))
    kept = {
        (2, 1.0): [1, 2],
        (0, 0.6): [1, 2],
        (0, 0.66): [1, 2, 3],
        (3, 0.75): [1, 2],  # of the share of the first three, 0.85
        (0, 1e-6): [1],
        (9, 1.0): [0, 1, 2, 3, 4],
    }
    for (top_k, top_p), tokens in kept.items():
        assert np.flatnonzero(np.isfinite(generation.truncate(logits, top_k, top_p)[0])).tolist() == tokens
    many = jnp.repeat(logits, 4000, axis=0)
    decoding = generation.Decoding(strategy="sample", max_new_tokens=1, temperature=0.5, top_k=2)
    drawn = generation.generate(lambda c, t: (many, c), (), many, decoding, end_id=0, pad_id=0, key=jax.random.key(0))
    share = float((drawn.tokens == 1).mean())
    assert abs(share - 0.4**2 / (0.4**2 + 0.25**2)) < 0.03  # four standard deviations
    np.testing.assert_allclose(drawn.log_likelihood, np.asarray(logits[0])[drawn.tokens[:, 0]], atol=1e-5)


def test_the_loop_stops_when_all_rows_have_ended():
    """A model that ends every text at its third token and counts how often it is asked."""

    asked = []

    def step(count, last):
        jax.debug.callback(lambda count: asked.append(int(count)), count)
        return jax.nn.one_hot(jnp.where(count < 1, 2, 3) + jnp.zeros_like(last), 5), count + 1

    logits = jax.nn.one_hot(jnp.array([2, 2]), 5)
    made = generation.generate(step, jnp.int32(0), logits, generation.Decoding(), end_id=3, pad_id=4)
    jax.effects_barrier()
    assert made.tokens[:, :4].tolist() == [[2, 2, 3, 4]] * 2 and sorted(asked) == [0, 1]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"min_new_tokens": 40}, "min_new_tokens 40"),
        ({"temperature": 0.0}, "strategy 'greedy'"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"beams": 0}, "beams 0"),
    ],
)
def test_a_decoding_that_cannot_be_is_refused(fields, said):
    with pytest.raises(InputError, match=said):
        generation.Decoding(**fields)


def test_a_call_that_cannot_be_is_refused():
    logits = jnp.zeros((1, 5))
    for decoding, end in ((generation.Decoding(strategy="sample"), 1), (generation.Decoding(), 5)):
        with pytest.raises(InputError, match="key" if end == 1 else "end_id 5"):
            generation.generate(lambda c, t: (logits, c), (), logits, decoding, end_id=end, pad_id=0)
