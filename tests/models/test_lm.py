import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import reference
from vlm_jax.errors import InputError
from vlm_jax.layers import initializers
from vlm_jax.models import lm

GPT = lm.Config(vocab_size=11, length=12, width=16, depth=2, mlp_dim=24, num_heads=4, position_offset=2, activation="relu")
LLAMA = dataclasses.replace(
    GPT,
    position_offset=0,
    activation="silu",
    num_kv_heads=2,
    norm="rms_norm",
    position="rotary",
    mlp="gated",
    bias="none",
    head="untied",
)
TOKENS = np.random.RandomState(0).randint(0, 11, (3, 8)).astype(np.int32)
LENGTHS = np.array([3, 5, 8], np.int32)
NEW = np.array([[1, 9], [4, 4], [0, 7]], np.int32)


@pytest.fixture(scope="module", params=[GPT, LLAMA], ids=["gpt", "llama"])
def outputs(request):
    """All that a model gives, in one program: each prompt with its new tokens, whole and behind a cache."""
    model = reference.filled(request.param)
    tokens = np.zeros((3, 10), np.int32)
    for row, (text, length, new) in enumerate(zip(TOKENS, LENGTHS, NEW, strict=True)):
        tokens[row, : length + 2] = [*text[:length], *new]
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 2, 0, 0]] * 3)

    @jax.jit
    def run(model, tokens, prompts, lengths, new, segments):
        first, cache = model.start(prompts, lengths, 2)
        second, cache = model.step(cache, new[:, 0])
        third, _ = model.step(cache, new[:, 1])
        low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
        low_first, low_cache = low.start(prompts, lengths, 1)
        full = model(jnp.concatenate([tokens, jnp.roll(tokens, -3, 1)]))
        return {
            "full": full[:3],
            "from the third": full[3:],
            "cached": jnp.stack([first, second, third], 1),
            "packed": model(tokens, segments=segments),
            "likelihood": model.log_likelihood(tokens, jnp.broadcast_to(jnp.arange(10) >= 4, (3, 10))),
            "low": jnp.stack([low_first, low.step(low_cache, new[:, 0])[0]], 1),
            "low keys": low_cache.seen.key,
        }

    return jax.device_get(run(model, tokens, TOKENS, LENGTHS, NEW, segments)) | {"tokens": tokens}


def test_behind_a_cache_prompts_of_unequal_length_have_the_logits_that_they_have_alone(outputs):
    expected = np.stack([outputs["full"][row, n - 1 : n + 2] for row, n in enumerate(LENGTHS)])
    np.testing.assert_allclose(outputs["cached"], expected, atol=1e-5)


def test_a_text_packed_after_another_is_read_as_if_alone_and_positions_count_from_its_start(outputs):
    np.testing.assert_allclose(outputs["packed"][:, :3], outputs["full"][:, :3], atol=1e-5)
    np.testing.assert_allclose(outputs["packed"][:, 3:8], outputs["from the third"][:, :5], atol=1e-5)
    assert np.isfinite(outputs["packed"]).all()


def test_log_likelihood_is_the_sum_over_the_targets(outputs):
    log_p = jax.nn.log_softmax(outputs["full"][:, 3:-1])
    expected = np.take_along_axis(np.asarray(log_p), outputs["tokens"][:, 4:, None], -1).sum((1, 2))
    np.testing.assert_allclose(outputs["likelihood"], expected, atol=1e-4)


def test_in_bfloat16_the_cache_is_too_and_logits_are_float32_and_close(outputs):
    assert outputs["low keys"].dtype == jnp.bfloat16 and outputs["low"].dtype == np.float32
    np.testing.assert_allclose(outputs["low"], outputs["cached"][:, :2], atol=0.1)  # eight bits of mantissa through two blocks


def test_parameters_have_these_paths_and_published_sizes_their_number():
    def shapes(config):
        state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0)))))
        leaves = jax.tree_util.tree_leaves_with_path(state)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}

    assert shapes(LLAMA) == {
        "token_embed/embedding": (11, 16),
        "blocks/attention_norm/scale": (2, 16),
        "blocks/attention/query/kernel": (2, 16, 16),
        "blocks/attention/key/kernel": (2, 16, 8),
        "blocks/attention/value/kernel": (2, 16, 8),
        "blocks/attention/out/kernel": (2, 16, 16),
        "blocks/mlp_norm/scale": (2, 16),
        "blocks/mlp/up/kernel": (2, 16, 24),
        "blocks/mlp/gate/kernel": (2, 16, 24),
        "blocks/mlp/down/kernel": (2, 24, 16),
        "norm/scale": (16,),
        "head/kernel": (16, 11),
    }
    assert shapes(GPT)["positions"] == (14, 16) and "head/kernel" not in shapes(GPT)
    published = {
        lm.gpt2("small"): 124_439_808,
        lm.opt("125M"): 125_239_296,
        lm.llama("3-8B"): 8_030_261_248,
    }
    for config, count in published.items():
        assert sum(int(np.prod(shape)) for shape in shapes(config).values()) == count


def test_fresh_weights_are_narrower_where_a_block_writes_to_the_residual_stream():
    init, key = initializers.gpt2(depth=8), jax.random.key(0)
    for kind, deviation in ((init.up, 0.02), (init.embedding, 0.02), (init.down, 0.02 / 4), (init.out, 0.02 / 4)):
        assert abs(float(kind(key, (64, 256), jnp.float32).std()) / deviation - 1) < 0.05


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"vocab_size": 0}, "vocab_size 0"),
        ({"num_heads": 3}, "num_heads 3 does not divide width 16"),
        ({"num_kv_heads": 3}, "num_kv_heads 3 does not divide num_heads 4"),
        ({"position": "rotary", "position_offset": 0, "num_heads": 16}, "pairs of channels, and a head has 1"),
        ({"position": "rotary"}, "position_offset 2"),
        ({"rope_theta": 0.0}, "rope_theta 0.0"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(GPT, **fields)


def test_texts_beyond_the_length_are_refused_with_what_is_to_come():
    model = nnx.eval_shape(lambda: GPT.build(rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match="13 tokens are longer than length 12"):
        model(jnp.zeros((1, 13), jnp.int32))
    with pytest.raises(InputError, match="8 tokens, with 5 to come, are longer than length 12"):
        model.start(jnp.asarray(TOKENS), jnp.asarray(LENGTHS), 5)
    with pytest.raises(InputError, match="size '8B'"):
        lm.llama("8B")
