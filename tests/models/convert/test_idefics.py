"""Idefics' golden model, read by our table: its logits and visual tokens, and its weights back bit for bit.

Tolerance 1e-4: float32 through four blocks, two of cross-attention with open gates.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import reference
from vlm_jax.errors import InputError
from vlm_jax.models.convert import idefics
from vlm_jax.training import tree

CONFIG = {
    "model_type": "idefics", "vocab_size": 40, "additional_vocab_size": 2, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 4, "num_attention_heads": 4, "cross_layer_interval": 2, "use_resampler": True,
    "vision_config": {
        "embed_dim": 16, "image_size": 16, "patch_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    },
    "perceiver_config": {"resampler_n_latents": 3, "resampler_depth": 2, "resampler_n_heads": 2, "resampler_head_dim": 8},
}  # fmt: skip


def test_the_golden_model_computes_what_transformers_computes(oracles):
    with np.load(oracles / "golden_idefics.npz") as oracle:
        weights = {key[2:]: np.asarray(oracle[key], np.float32) for key in oracle if key.startswith("w:")}
        config = idefics.parse(CONFIG)
        params = idefics.to_ours(config, weights)
        model = reference.build(config, tree.unflatten(params))
        seen = oracle["in:image_attention_mask"]
        assert seen.sum(-1).max() == 1 and not seen[0, :2].any()
        index, tokens = jnp.asarray(seen @ [1, 2], jnp.int32), jnp.asarray(oracle["in:input_ids"], jnp.int32)
        images = jnp.asarray(oracle["in:pixel_values"], jnp.float32).transpose(0, 1, 3, 4, 2)

        @jax.jit
        def outputs(images, tokens, index):
            visual = model.visual(images)
            return visual, model.logits(model.hidden(visual, tokens, index=index))

        visual, logits = outputs(images, tokens, index)
        np.testing.assert_allclose(visual, oracle["out:image_hidden_states"], atol=1e-4)
        np.testing.assert_allclose(logits, oracle["out:logits"], atol=1e-4)
        back = idefics.to_theirs(params)
        assert back.keys() == {key for key in weights if "post_layernorm" not in key}
        for key, x in back.items():
            np.testing.assert_array_equal(x, weights[key], err_msg=key)
        assert (config.image_id, config.chunk_end_id) == (41, 40)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cross_layer_interval": 3}, "cross_layer_interval 3: does not divide the 4 blocks"),
        ({"use_resampler": False}, "use_resampler False is not supported"),
        ({"qk_layer_norms": True}, "qk_layer_norms True is not supported"),
        ({"model_type": "llama"}, "model_type 'llama' is not supported"),
    ],
)
def test_other_forms_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        idefics.parse(CONFIG | changed)
