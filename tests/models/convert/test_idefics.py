"""Idefics' golden model, read by our table: its logits and visual tokens, and its weights back bit for bit.

Tolerance 1e-4: float32 through four blocks, two of cross-attention with open gates.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import reference
from vlm_jax.errors import InputError
from vlm_jax.layers import gated_cross_attention
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
        found = idefics.parse(CONFIG)
        config, params = found.config, found.to_ours(weights)
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
        made, contents = idefics.write(found)
        assert (made.config, made.preprocessing, made.begin_id, made.end_id) == (config, found.preprocessing, 1, 2)
        back = made.to_theirs(params)
        assert back.keys() == weights.keys() and not back.pop("model.vision_model.post_layernorm.bias").any()
        assert (back.pop("model.vision_model.post_layernorm.weight") == 1).all()
        for key, x in back.items():
            np.testing.assert_array_equal(x, weights[key], err_msg=key)
        assert (config.image_id, config.chunk_end_id) == (41, 40)
        written = contents["config.json"]
        assert all(written[name] == CONFIG[name] for name in CONFIG if not name.endswith("_config"))
        assert all(written[name].items() >= CONFIG[name].items() for name in ("vision_config", "perceiver_config"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cross_layer_interval": 3}, "cross_layer_interval 3: does not divide the 4 blocks"),
        ({"use_resampler": False}, "use_resampler False is not supported"),
        ({"model_type": "llama"}, "model_type 'llama' is not supported"),
        ({"alpha_type": "vector"}, "alpha_type 'vector' is not supported"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2}}, "rope_parameters.rope_type 'linear' is not supported"),
        ({"head_dim": 4}, "head_dim 4 is not supported, only 8"),
        ({"additional_vocab_size": 1}, "additional_vocab_size 1 is not supported, only 2"),
        ({"eos_token_id": "</s>"}, "eos_token_id '</s>': the number of a token"),
        ({"vision_config": CONFIG["vision_config"] | {"hidden_size": 8}}, "hidden_size 8 and embed_dim 16 are two names of one field"),
    ],
)
def test_other_forms_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        idefics.parse(CONFIG | changed)


def test_what_the_files_say_besides_sizes_is_read():
    more = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "bos_token_id": None, "eos_token_id": [3, 2]}
    vision = {"hidden_size" if name == "embed_dim" else name: value for name, value in CONFIG["vision_config"].items()}
    found = idefics.parse(CONFIG | more | {"vision_config": vision}, {"image_size": 16, "image_mean": [0.1] * 3, "image_std": [0.2] * 3})
    assert found.config.lm.rope_theta == 5e5 and (found.begin_id, found.end_id) == (None, 3) and found.config.image.width == 16
    assert (found.config.mean, found.config.std, found.preprocessing.resize) == ((0.1,) * 3, (0.2,) * 3, "squash")
    made, contents = idefics.write(found)
    assert made.config == found.config and contents["config.json"]["bos_token_id"] is None
    with pytest.raises(InputError, match="images of 24 pixels, and image_size 16"):
        idefics.parse(CONFIG, {"image_size": 24})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda config: {"added": "image_first"}, "added 'image_first': Idefics.* has no place for it, only for 'end_first'"),
        (lambda config: {"image_tokens": "patches"}, "image_tokens 'patches'"),
        (lambda config: {"seen": "all_previous"}, "seen 'all_previous'"),
        (lambda config: {"offset": 1}, "offset 1"),
        (lambda config: {"every": 3}, "cross_layer_interval 3: does not divide"),
        (lambda config: {"lm": dataclasses.replace(config.lm, head="tied")}, r"lm\.head 'tied'"),
        (lambda config: {"lm": dataclasses.replace(config.lm, num_kv_heads=2)}, r"lm\.num_kv_heads 2"),
        (lambda config: {"lm": dataclasses.replace(config.lm, activation="squared_relu")}, r"lm\.activation 'squared_relu': transformers"),
        (lambda config: {"image": dataclasses.replace(config.image, registers=2)}, r"image\.registers 2"),
        (lambda config: {"resampler": dataclasses.replace(config.resampler, frames=2)}, r"resampler\.frames 2"),
        (lambda config: {"cross": dataclasses.replace(config.cross, qk_norm="layer_norm")}, r"cross\.qk_norm 'layer_norm'"),
        (lambda config: {"cross": gated_cross_attention.Config(num_heads=4, head_dim=8, mlp_dim=48)}, r"cross\.norm 'layer_norm'"),
    ],
)
def test_a_flamingo_of_another_form_is_not_written(changed, message):
    found = idefics.parse(CONFIG)
    with pytest.raises(InputError, match=message):
        idefics.write(dataclasses.replace(found, config=dataclasses.replace(found.config, **changed(found.config))))


@pytest.mark.parametrize("parts", [("cross",), ("resampler",), ("cross", "resampler")])
def test_norms_of_queries_and_keys_go_in_and_out(parts):
    perceiver = CONFIG["perceiver_config"] | {"qk_layer_norms_perceiver": "resampler" in parts}
    found = idefics.parse(CONFIG | {"qk_layer_norms": "cross" in parts, "perceiver_config": perceiver})
    ours = {path: reference.fill(path, x.shape).astype(np.float32) for path, x in found.like().items()}
    assert {path.split("/")[0] for path in ours if "query_norm" in path} == set(parts)
    made, _ = idefics.write(found)
    theirs = made.to_theirs(ours)
    assert ("model.gated_cross_attn_layers.1.cross_attn.k_layer_norm.weight" in theirs) == ("cross" in parts)
    assert ("model.perceiver_resampler.blocks.0.0.q_layer_norm.bias" in theirs) == ("resampler" in parts)
    again = made.to_ours(theirs)
    assert again.keys() == ours.keys() and all(np.array_equal(x, ours[path]) for path, x in again.items())
