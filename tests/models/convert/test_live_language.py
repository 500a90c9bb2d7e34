"""Language models and Idefics of transformers compute the same here, and ours there, where `from_pretrained` loads what we write."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import reference
from tests.models.convert.test_decoders import Golden, load
from tests.models.convert.test_idefics import CONFIG
from tests.models.convert.test_live_parity import compare, torch  # noqa: F401  (a fixture)
from vlm_jax import decoder
from vlm_jax.data import text as texts
from vlm_jax.data import vocabulary
from vlm_jax.models import generation, lm
from vlm_jax.models.convert import decoders, files, idefics, layout, pretrained, vocabularies
from vlm_jax.training import tree

GPT2 = lm.Config(vocab_size=70, length=24, width=32, depth=3, mlp_dim=48, num_heads=4)
LLAMA = lm.Config(
    vocab_size=70, length=24, width=32, depth=2, mlp_dim=48, num_heads=4, num_kv_heads=2, norm="rms_norm", position="rotary",
    rope_theta=5e3, mlp="gated", activation="silu", bias="none", head="untied",
)  # fmt: skip
MODELS = {
    "gpt2": GPT2,
    "gpt2 untied": dataclasses.replace(GPT2, head="untied", activation="gelu", norm_epsilon=1e-3),
    "opt": dataclasses.replace(GPT2, position_offset=2, activation="relu"),
    "opt untied": dataclasses.replace(GPT2, position_offset=2, activation="gelu", head="untied"),
    "llama": LLAMA,
    "llama tied": dataclasses.replace(LLAMA, head="tied", num_kv_heads=0, activation="gelu_tanh"),
}
TOKENS = np.random.default_rng(0).integers(0, 70, (4, 20))

pytestmark = pytest.mark.slow


def weights_of(config):
    return {path: reference.fill(path, x.shape).astype(np.float32) for path, x in layout.parameters(config).items()}


def built(config, weights):
    return reference.build(config, tree.unflatten({path: jnp.asarray(x) for path, x in weights.items()}))


def written(folder, made, content, weights):
    folder.mkdir(exist_ok=True)
    files.write_safetensors(folder / "model.safetensors", made.to_theirs(weights), format="pt")
    files.write_json(folder / "config.json", content)
    return folder


def loaded(folder):
    """What transformers makes of a directory, with no array missing, left over or of another shape."""
    import transformers

    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"] and not report["mismatched_keys"], report
    return model.eval()


def theirs(torch, model, tokens=TOKENS):  # noqa: F811
    with torch.no_grad():
        return {"logits": model(torch.tensor(tokens)).logits.numpy()}


def ours(config, weights):
    return {"logits": np.asarray(jax.jit(built(config, weights))(jnp.asarray(TOKENS, jnp.int32)))}


@pytest.mark.parametrize("name", MODELS)
def test_a_language_model_of_ours_computes_the_same_there(torch, tmp_path, name):  # noqa: F811
    config, weights = MODELS[name], weights_of(MODELS[name])
    made, content = decoders.write(config)
    model = loaded(written(tmp_path / name.split()[0], made, content, weights))
    assert type(model).__name__ == content["architectures"][0]
    compare(theirs(torch, model), ours(config, weights))


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_a_language_model_of_transformers_computes_the_same_here_and_goes_back_bit_for_bit(torch, tmp_path, name):  # noqa: F811
    import transformers

    torch.manual_seed(0)
    content = decoders.write(MODELS[name])[1]
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**content))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.eval().save_pretrained(tmp_path / "theirs")
    config, weights = load(tmp_path / "theirs")
    compare(ours(config, weights), theirs(torch, model))
    count, notes = decoder.export(str(tmp_path / "theirs"), tmp_path / "out")
    want, have = (files.read(tmp_path / folder / "model.safetensors") for folder in ("theirs", "out"))
    assert count == sum(x.size for x in want.values()) and not notes
    assert want.keys() == have.keys() and all(np.array_equal(x, have[key]) for key, x in want.items())
    compare(theirs(torch, loaded(tmp_path / "out")), theirs(torch, model))


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_the_tokenizer_beside_a_model_reads_texts_alike_and_the_model_continues_them_alike(torch, tmp_path, name):  # noqa: F811
    import transformers

    sentences = ["two cats and a red bird", "a blue square beside a red circle", "Naïve  café!\n", ""]
    (tmp_path / "words.model").write_bytes(vocabulary.train(sentences * 5, 70, rare="unknown"))
    tokenizer = texts.Tokenizer(str(tmp_path / "words.model"), 24, begin="</s>")
    own = tokenizer.load()
    config = dataclasses.replace(MODELS[name], vocab_size=own.vocab_size + 2)
    weights = weights_of(config)
    made, content = decoders.write(config)
    (tmp_path / "out").mkdir()
    ids, _ = decoder.write_tokenizer(tokenizer, tmp_path / "out", rows=config.vocab_size)
    model = loaded(written(tmp_path / "out", made, content | ids, weights))
    there = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for sentence in sentences:
        assert there(sentence)["input_ids"] == [own.bos_id, *own.encode(sentence)]
        assert there.decode(there(sentence)["input_ids"], skip_special_tokens=True) == own.decode(own.encode(sentence))
    assert (there.bos_token_id, there.eos_token_id, there.pad_token_id) == (own.bos_id, own.eos_id, own.pad_id)
    prompt = jnp.asarray([there(sentences[0])["input_ids"]], jnp.int32)
    mine, decoding = built(config, weights), generation.Decoding(max_new_tokens=8)

    @jax.jit
    def run(prompt):
        logits, cache = mine.start(prompt, jnp.array([prompt.shape[1]]), 8)
        return generation.generate(mine.step, cache, logits, decoding, end_id=own.eos_id, pad_id=own.pad_id).tokens

    with torch.no_grad():
        whole = model.generate(torch.tensor(np.asarray(prompt)), max_new_tokens=8, do_sample=False)
    have = run(prompt)[0].tolist()
    assert whole[0, prompt.shape[1] :].tolist() == [token for i, token in enumerate(have) if own.eos_id not in have[:i]]


def test_byte_pairs_of_gpt2_are_read_as_transformers_reads_them(torch, tmp_path):  # noqa: F811
    import tokenizers
    import transformers

    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(["two cats and a red bird"] * 9, vocab_size=290, special_tokens=["<|endoftext|>"], show_progress=False)
    trained.save_model(str(tmp_path))
    found = vocabularies.read(tmp_path, "language")
    (tmp_path / "kept.json").write_bytes(found.content)
    own = texts.Tokenizer(str(tmp_path / "kept.json"), 24, found.pad, begin=found.begin, end=found.end).load()
    files.write_json(tmp_path / "config.json", {"model_type": "gpt2"})
    there = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for sentence in ("two  cats,\nnaïve 東京 🙂", " a red bird", ""):
        assert there(sentence)["input_ids"] == own.encode(sentence)
    assert (own.bos_id, own.eos_id) == (None, there.eos_token_id)


def test_goldens_are_what_transformers_still_computes(torch, oracles, tmp_path):  # noqa: F811
    golden = Golden(oracles, "llama")
    (tmp_path / "llama").mkdir()
    tokens = golden.arrays["in_input_ids"]
    compare(theirs(torch, loaded(golden.write(tmp_path / "llama")), tokens), {"logits": golden.arrays["out_logits"]})


def idefics_logits(torch, model, given):  # noqa: F811
    with torch.no_grad():
        found = model(
            input_ids=torch.tensor(given["input_ids"]),
            pixel_values=torch.tensor(given["pixel_values"], dtype=torch.float32),
            image_attention_mask=torch.tensor(given["image_attention_mask"]),
        )
    return found.logits.numpy()


def flamingo_logits(config, weights, given):
    mine = built(config, weights)
    index = jnp.asarray(given["image_attention_mask"] @ [1, 2], jnp.int32)
    images = jnp.asarray(given["pixel_values"], jnp.float32).transpose(0, 1, 3, 4, 2)
    tokens = jnp.asarray(given["input_ids"], jnp.int32)
    return np.asarray(jax.jit(lambda images: mine.logits(mine.hidden(mine.visual(images), tokens, index=index)))(images))


def test_an_idefics_with_norms_of_queries_and_keys_computes_the_same_here_and_goes_back(torch, oracles, tmp_path):  # noqa: F811
    import transformers

    torch.manual_seed(0)
    norms = {"qk_layer_norms": True, "alpha_initializer": "ones", "rms_norm_eps": 1e-3}
    norms["perceiver_config"] = CONFIG["perceiver_config"] | {"qk_layer_norms_perceiver": True}
    model = transformers.IdeficsForVisionText2Text(transformers.IdeficsConfig(**CONFIG | norms)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "theirs")
    with np.load(oracles / "golden_idefics.npz") as oracle:
        given = {key[3:]: oracle[key] for key in oracle if key.startswith("in:")}
    found = pretrained.load(tmp_path / "theirs")
    compare({"logits": flamingo_logits(found.layout.config, found.params, given)}, {"logits": idefics_logits(torch, model, given)})
    made, contents = idefics.write(found.layout)
    want, have = files.read(tmp_path / "theirs" / "model.safetensors"), made.to_theirs(found.params)
    assert want.keys() == have.keys()
    assert [key for key, x in want.items() if not np.array_equal(x, have[key]) and "post_layernorm" not in key] == []
    assert contents["config.json"]["qk_layer_norms"] and contents["config.json"]["perceiver_config"]["qk_layer_norms_perceiver"]


@pytest.mark.parametrize("theta", [10_000.0, 500.0])
def test_a_flamingo_of_ours_computes_the_same_as_idefics(torch, oracles, tmp_path, theta):  # noqa: F811
    import transformers

    with np.load(oracles / "golden_idefics.npz") as oracle:
        stored = {key[2:]: np.asarray(oracle[key], np.float32) for key in oracle if key.startswith("w:")}
        given = {key[3:]: oracle[key] for key in oracle if key.startswith("in:")}
        want = oracle["out:logits"]
    found = idefics.parse(CONFIG | {"rope_parameters": {"rope_type": "default", "rope_theta": theta}})
    weights = found.to_ours(stored)
    made, contents = idefics.write(found)
    folder = written(tmp_path / "idefics", made, contents["config.json"], weights)
    files.write_json(folder / "preprocessor_config.json", contents["preprocessor_config.json"])
    model, report = transformers.IdeficsForVisionText2Text.from_pretrained(folder, output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"] and not report["mismatched_keys"], report
    have = idefics_logits(torch, model.eval(), given)
    compare({"logits": have}, {"logits": flamingo_logits(found.config, weights, given)})
    assert (np.abs(have - want).max() < 1e-4) == (theta == 10_000.0)
