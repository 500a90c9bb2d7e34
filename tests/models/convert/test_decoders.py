"""Language models in the layout of transformers compute what transformers computed, and go back bit for bit.

Tolerance 1e-4: float32 through two blocks, another order of sums.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import reference
from vlm_jax import image_tower
from vlm_jax.errors import InputError
from vlm_jax.models import generation, lm
from vlm_jax.models.convert import decoders, files, pretrained
from vlm_jax.training import tree

TINY = lm.Config(vocab_size=11, length=8, width=8, depth=2, mlp_dim=12, num_heads=2)


class Golden:
    def __init__(self, oracles, name):
        with np.load(oracles / f"golden_{name}.npz") as oracle:
            self.arrays = dict(oracle)
        self.config = {"model_type": name} | json.loads(str(self.arrays["config"]))
        self.weights = {key: np.asarray(x, np.float32) for key, x in reference.weights(self.arrays).items()}
        for first, *others in json.loads(str(self.arrays["tied"])):
            self.weights |= dict.fromkeys(others, self.weights[first])

    def write(self, folder, **more):
        files.write_safetensors(folder / "model.safetensors", self.weights, format="pt")
        (folder / "config.json").write_text(json.dumps(self.config | more))
        return folder


def load(folder):
    """The configuration of a directory, and its parameters by the paths of a language model."""
    found = pretrained.load(folder)
    assert isinstance(found.layout, decoders.Layout) and not found.missing
    return found.layout.config, {path.removeprefix("lm/"): x for path, x in found.params.items()}


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_a_golden_model_computes_what_transformers_computes(oracles, tmp_path, name):
    golden = Golden(oracles, name)
    config, params = load(golden.write(tmp_path))
    tokens = jnp.asarray(golden.arrays["in_input_ids"], jnp.int32)
    logits = jax.jit(reference.build(config, tree.unflatten({path: jnp.asarray(x) for path, x in params.items()})))(tokens)
    # What padding would predict is nobody's: it looks at other tokens there than here.
    counts = golden.arrays.get("in_attention_mask", np.ones(tokens.shape)).astype(bool)
    np.testing.assert_allclose(logits[counts], golden.arrays["out_logits"][counts], atol=1e-4)
    if "out_loss" in golden.arrays:
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], -1)
        np.testing.assert_allclose(-log_p.mean(), golden.arrays["out_loss"], atol=1e-4)
    found = decoders.parse(golden.config, golden.weights)
    back = found.to_theirs(params)
    tied = config.head == "tied"
    assert back.keys() == golden.weights.keys() - ({"lm_head.weight"} if tied else set())
    for key, x in back.items():
        np.testing.assert_array_equal(x, golden.weights[key], err_msg=key)
    made, content = decoders.write(config)
    assert made.config == config and made.table == found.table
    assert content["architectures"] == [{"gpt2": "GPT2LMHeadModel", "opt": "OPTForCausalLM", "llama": "LlamaForCausalLM"}[name]]


def test_trunks_and_old_files_are_read(oracles, tmp_path):
    """GPT2Model has no prefix, and GPT-2's first files have the causal masks as arrays."""
    golden = Golden(oracles, "gpt2")
    weights = {key.removeprefix("transformer."): x for key, x in golden.weights.items() if key != "lm_head.weight"}
    weights |= {f"h.{i}.attn.bias": np.tri(16, dtype=bool)[None, None] for i in range(2)} | {"h.0.attn.masked_bias": np.float32(-1e4)}
    whole = decoders.parse(golden.config, golden.weights).to_ours(golden.weights)
    bare = decoders.parse(golden.config, weights).to_ours(weights)
    assert whole.keys() == bare.keys() and all(np.array_equal(whole[path], bare[path]) for path in whole)


def test_fields_and_arrays_under_their_other_names_are_read(oracles):
    """transformers takes GPT-2's num_attention_heads for n_head; a file may hold the head and not the tied table, or fairseq's version."""
    golden = Golden(oracles, "gpt2")
    named = {key: x for key, x in golden.config.items() if key != "n_head"} | {"num_attention_heads": golden.config["n_head"] // 2}
    assert decoders.parse(named, {}).config.num_heads == golden.config["n_head"] // 2
    golden = Golden(oracles, "opt")
    found = decoders.parse(golden.config, golden.weights)
    headed = {key: x for key, x in golden.weights.items() if "embed_tokens" not in key} | {"model.decoder.version": np.ones(1)}
    want, have = found.to_ours(golden.weights), found.to_ours(headed)
    assert want.keys() == have.keys() and all(np.array_equal(want[path], have[path]) for path in want)


@pytest.mark.parametrize(("more", "theta"), [({}, 1e4), ({"rope_theta": 5e5}, 5e5), ({"rope_parameters": {"rope_theta": 7e3}}, 7e3)])
def test_the_base_of_the_rotary_frequencies_is_read_from_either_place(more, theta):
    config = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "rope_scaling": None}
    assert decoders.parse(config | more, {}).config.rope_theta == theta


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True is not supported"),
        ("gpt2", {"activation_function": "swish"}, "activation_function 'swish' is not supported"),
        ("gpt2", {"n_head": 5}, "num_heads 5 does not divide width 32"),
        ("gpt2", {"n_inner": 64}, r"c_fc.weight has shape \(32, 128\), the configuration means \(32, 64\)"),
        ("gpt2", {"hidden_size": 64}, "hidden_size 64 and n_embd 32 are two names of one field"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention True is not supported"),
        ("gpt2", {"layer_norm_epsilon": "small"}, "layer_norm_epsilon 'small': a number above 0 is needed"),
        ("gpt2", {"n_layer": float("nan")}, "n_layer nan: a whole number above 0 is needed"),
        ("opt", {"activation_function": ["relu"]}, r"activation_function \['relu'\] is not supported"),
        ("opt", {"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4} is not supported"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before False is not supported"),
        ("opt", {"word_embed_proj_dim": 20}, "word_embed_proj_dim 20 is not supported, only 40"),
        ("opt", {"tie_word_embeddings": False, "num_hidden_layers": 3}, "missing model.decoder.layers.2"),
        ("llama", {"attention_bias": True}, "attention_bias True is not supported"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.type 'linear' is not supported"),
        ("llama", {"rope_parameters": {"rope_theta": -1}}, "rope_parameters.rope_theta -1: a number above 0"),
        ("llama", {"rope_parameters": "yarn"}, "rope_parameters: not a JSON object"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor 0.5 is not supported"),
        ("llama", {"sliding_window": 4096}, "sliding_window 4096 is not supported"),
        ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "only 'full_attention' is supported"),
        ("llama", {"mlp_bias": True}, "mlp_bias True is not supported"),
        ("llama", {"head_dim": 16}, "head_dim 16 is not supported, only 8"),
        ("llama", {"rope_scaling": {"rope_type": "yarn"}}, "rope_type 'yarn' is not supported"),
        ("llama", {"tie_word_embeddings": True}, "lm_head.weight is not model.embed_tokens.weight"),
        ("llama", {"num_hidden_layers": 1}, "unknown model.layers.1.input_layernorm.weight"),
    ],
)
def test_what_ours_does_not_have_is_refused_by_name(oracles, tmp_path, name, more, said):
    with pytest.raises(InputError, match=said):
        load(Golden(oracles, name).write(tmp_path, **more))


def test_other_models_are_not_taken_for_language_models(tmp_path):
    assert files.model_type(tmp_path) is None
    (tmp_path / "config.json").write_text("[]")
    assert files.model_type(tmp_path) is None
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert files.model_type(tmp_path) == "vit"
    with pytest.raises(InputError, match="model_type 'vit' is not supported; gpt2, opt, llama are"):
        decoders.parse({"model_type": "vit"}, {})


def test_a_run_starts_from_one_with_the_flags_that_its_notes_say(oracles, tmp_path):
    golden = Golden(oracles, "llama")
    golden.write(tmp_path)
    found = image_tower.weights_of_others(f"hf:{tmp_path}")
    _, params = load(tmp_path)
    assert found.leaves.keys() == {f"lm/{path}" for path in params} and found.preprocessing is None
    (said,) = pretrained.load(tmp_path).layout.notes
    assert "--init-from 'lm/ <- hf:DIR' and --system.lm.vocab-size 64" in said and "--system.lm.num-kv-heads 2" in said
    with pytest.raises(InputError, match="it has no ViT as image tower"):
        image_tower.export(f"hf:{tmp_path}", tmp_path / "out")


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        ({"head": "untied", "activation": "gelu"}, "gpt2", None),
        ({"position_offset": 2, "activation": "silu"}, "opt", None),
        ({"position": "rotary", "norm": "rms_norm", "mlp": "gated", "bias": "none", "rope_theta": 5e5}, "llama", None),
        ({"norm": "rms_norm"}, "gpt2", "lm.norm 'rms_norm': GPT2LMHeadModel has no place for it, only for 'layer_norm'"),
        ({"num_kv_heads": 1}, "gpt2", "lm.num_kv_heads 1"),
        ({"position_offset": 2, "norm_epsilon": 1e-6}, "opt", "lm.norm_epsilon 1e-06"),
        ({"position_offset": 1}, "opt", "lm.position_offset 1"),
        ({"position": "rotary"}, "llama", "LlamaForCausalLM has no place"),
        ({"activation": "squared_relu"}, "gpt2", "lm.activation 'squared_relu': transformers has no name"),
    ],
)
def test_a_model_of_ours_is_written_where_a_class_holds_it(fields, kind, said):
    config = dataclasses.replace(TINY, **fields)
    if said:
        with pytest.raises(InputError, match=said):
            decoders.write(config)
        return
    made, content = decoders.write(config)
    assert content["model_type"] == kind
    back = dataclasses.replace(made.config, num_kv_heads=config.num_kv_heads)
    assert back == config


def test_the_trained_llama_tells_its_story(shared_data):
    """260 thousand parameters, of llama2.c; its first and last logits and greedy continuation by another implementation."""
    expected = json.loads((shared_data / "weights" / "stories260K_expected.json").read_text())
    config, theirs = llama2_c(shared_data / "weights" / "stories260K.bin")
    params = decoders.parse(config, theirs).to_ours(theirs)
    ours = decoders.parse(config, theirs).config
    model = reference.build(ours, tree.unflatten({path: jnp.asarray(x) for path, x in params.items()}))
    story = jnp.asarray(expected["greedy_tokens"], jnp.int32)[None]

    @jax.jit
    def run(story):
        logits, cache = model.start(story[:, :1], jnp.array([1]), 199)
        decoding = generation.Decoding(max_new_tokens=200)
        return model(story)[0], generation.generate(model.step, cache, logits, decoding, end_id=2, pad_id=0)

    logits, made = run(story)
    np.testing.assert_allclose(logits[0], expected["logits_row0"], atol=1e-4)
    np.testing.assert_allclose(logits[-1], expected["logits_last_row"], atol=1e-4)
    assert made.tokens[0].tolist() == expected["greedy_tokens"][1:]
    assert abs(-float(made.log_likelihood[0]) / 200 - expected["nll_of_greedy"]) < 1e-4


def llama2_c(path):
    """The file as config.json and arrays of transformers; queries and keys pair neighbouring channels there, halves here."""
    data = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = np.frombuffer(data, "<i4", 7)
    shapes = {
        "tok": (vocab, dim), "input_layernorm": (layers, dim), "self_attn.q_proj": (layers, dim, dim),
        "self_attn.k_proj": (layers, kv_heads * dim // heads, dim), "self_attn.v_proj": (layers, kv_heads * dim // heads, dim),
        "self_attn.o_proj": (layers, dim, dim), "post_attention_layernorm": (layers, dim), "mlp.gate_proj": (layers, hidden, dim),
        "mlp.down_proj": (layers, dim, hidden), "mlp.up_proj": (layers, hidden, dim), "norm": (dim,),
    }  # fmt: skip
    arrays, at = {}, 28
    for name, shape in shapes.items():
        arrays[name] = np.frombuffer(data, "<f4", int(np.prod(shape)), at).reshape(shape)
        at += 4 * arrays[name].size
    for name in ("self_attn.q_proj", "self_attn.k_proj"):
        x = arrays[name].reshape(layers, -1, dim // heads // 2, 2, dim)
        arrays[name] = x.swapaxes(2, 3).reshape(arrays[name].shape)
    weights = {"model.embed_tokens.weight": arrays.pop("tok"), "model.norm.weight": arrays.pop("norm")}
    weights |= {f"model.layers.{i}.{name}.weight": x[i] for name, x in arrays.items() for i in range(layers)}
    config = {
        "model_type": "llama", "hidden_size": dim, "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocab, "max_position_embeddings": length, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }  # fmt: skip
    return {key: value.item() if isinstance(value, np.integer) else value for key, value in config.items()}, weights
