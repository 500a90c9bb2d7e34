"""CoCa's decoder: what its tokens see, and a token at a time behind the cache. Parity with open_clip: test_coca_parity."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.errors import InputError
from vlm_jax.models import captioner

from . import reference

TINY = captioner.Config(
    vocab_size=12, length=7, width=16, depth=1, decoder_depth=2, mlp_dim=32, num_heads=2, context_width=8, projection_dim=8, loop="unroll"
)
TOKENS = jnp.array([[5, 6, 9, 2, 0, 0], [4, 11, 3, 2, 9, 7]])
IMAGE = jax.random.normal(jax.random.key(0), (2, 3, 8))


def test_a_token_at_a_time_behind_the_cache_gives_the_logits_of_the_whole_text():
    """Prompts of two lengths in one batch, whose rows are then exchanged and doubled, as for beams."""
    model = reference.filled(TINY)
    lengths = jnp.array([2, 3])

    @jax.jit
    def whole(tokens, context):
        return model.logits(model.decode(model.both(tokens)[1], context))

    @jax.jit
    def stepwise(tokens, context):
        logits, cache = model.start(context, tokens[:, :3], lengths, 3)
        found = [logits]
        cache = cache.take(jnp.zeros((2, 2), int))  # two copies of each row
        for i in range(2):
            following = jnp.take_along_axis(tokens, (lengths + i)[:, None], axis=1)[:, 0]
            logits, cache = model.step(cache, jnp.repeat(following, 2))
            found += [logits[::2], logits[1::2]]
        return jnp.stack(found)

    want, got = whole(TOKENS, IMAGE), stepwise(TOKENS, IMAGE)
    for row, length in enumerate(lengths):
        for k, place in enumerate([0, 1, 1, 2, 2]):
            np.testing.assert_allclose(got[k, row], want[row, length - 1 + place], atol=1e-5)


def test_the_image_changes_what_comes_next_and_not_the_embedding_of_the_text():
    model = reference.filled(TINY)

    @jax.jit
    def outputs(tokens, context):
        embedding, hidden = model.both(tokens)
        return embedding, model.decode(hidden, context)

    (embedding, decoded), (same, other) = outputs(TOKENS, IMAGE), outputs(TOKENS, 2 * IMAGE[::-1])
    np.testing.assert_array_equal(embedding, same)
    assert np.abs(decoded - other).max() > 1e-2


def test_what_does_not_fit_is_refused():
    model = reference.filled(TINY)
    with pytest.raises(InputError, match="8 tokens are longer than length 7"):
        model.both(jnp.ones((1, 8), int))
    with pytest.raises(InputError, match="9 tokens are longer than length 7"):
        model.start(IMAGE, TOKENS, jnp.array([1, 1]), 3)
    with pytest.raises(InputError, match="pad_id 12 is not in a vocabulary of 12"):
        dataclasses.replace(TINY, pad_id=12)
