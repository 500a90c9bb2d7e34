"""Random models of transformers, saved by `save_pretrained`, compute the same here, and ours load there by `from_pretrained`."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.golden import towers
from vlm_jax import convert
from vlm_jax.models.convert import files, pretrained

SIZES = {
    "narrow": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "deep": {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 5, "num_attention_heads": 3},
}
INPUTS = 16
RELATIVE = 1e-5
VOCABULARY, LENGTH, END = 600, 12, 599

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def torch():
    """PyTorch with transformers, and both of the versions that the numbers are for."""
    found = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0")
    pytest.importorskip("transformers", reason="needs transformers: pip install vlm_jax[hf]")
    return found


def text_config(size, **more):
    return SIZES[size] | {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH} | more


def vision_config(size, **more):
    return SIZES[size] | {"image_size": 32, "patch_size": 8} | more


def model_of(torch, kind, size, activation, seed=0):
    """A random model whose every parameter matters: torch leaves biases zero and norms one."""
    import transformers

    torch.manual_seed(seed)
    activation = {"hidden_act": activation}
    if kind == "clip":
        end = {"eos_token_id": END, "bos_token_id": END - 1, "pad_token_id": END}
        config = transformers.CLIPConfig(
            text_config=text_config(size, **activation, **end), vision_config=vision_config(size, **activation), projection_dim=24
        )
        model = transformers.CLIPModel(config)
    elif kind == "siglip":
        config = transformers.SiglipConfig(
            text_config=text_config(size, **activation, projection_size=SIZES[size]["hidden_size"]),
            vision_config=vision_config(size, **activation),
        )
        model = transformers.SiglipModel(config)
    else:
        model = transformers.ViTModel(transformers.ViTConfig(**vision_config(size, **activation)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def inputs():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, END - 1, (INPUTS, LENGTH))
    tokens[np.arange(INPUTS), rng.integers(1, LENGTH, INPUTS)] = END
    return rng.standard_normal((INPUTS, 3, 32, 32)).astype(np.float32), tokens


def theirs(torch, model, kind):
    pixels, tokens = inputs()
    with torch.no_grad():
        if kind == "vit":
            found = model(torch.tensor(pixels))
            return {"pooled": found.pooler_output.numpy(), "encoded": found.last_hidden_state.numpy()}
        found = model(pixel_values=torch.tensor(pixels), input_ids=torch.tensor(tokens))
        return {name: getattr(found, name).numpy() for name in ("image_embeds", "text_embeds", "logits_per_image")}


def ours(found, kind):
    pixels, tokens = inputs()
    image, words, scalars = towers(found)
    pixels = jnp.asarray(pixels).transpose(0, 2, 3, 1)
    if kind == "vit":
        return jax.jit(lambda x: {"pooled": image(x), "encoded": image.encode(x)})(pixels)
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    images, texts = jax.jit(lambda x, y: (unit(image(x)), unit(words(y))))(pixels, jnp.asarray(tokens, jnp.int32))
    logits = np.exp(scalars["log_scale"]) * images @ texts.T + scalars.get("bias", 0.0)
    return {"image_embeds": images, "text_embeds": texts, "logits_per_image": logits}


def compare(have, expected):
    """Relative to the largest value of each output."""
    assert have.keys() == expected.keys()
    differences = {name: float(np.abs(have[name] - x).max() / np.abs(x).max()) for name, x in expected.items()}
    assert max(differences.values()) < RELATIVE, differences


CASES = [
    ("clip", "narrow", "quick_gelu"),
    ("clip", "deep", "gelu"),
    ("siglip", "narrow", "gelu_pytorch_tanh"),
    ("siglip", "deep", "gelu"),
    ("vit", "narrow", "gelu"),
    ("vit", "deep", "quick_gelu"),
]


@pytest.mark.parametrize(("kind", "size", "activation"), CASES)
def test_imported_and_exported_models_compute_the_same(torch, tmp_path, kind, size, activation):
    import transformers

    model = model_of(torch, kind, size, activation)
    model.save_pretrained(tmp_path / "theirs")
    expected = theirs(torch, model, kind)
    found = pretrained.load(tmp_path / "theirs")
    compare(ours(found, kind), expected)

    made, contents = convert.WRITERS["hf"](found.layout)
    weights = made.to_theirs(found.params)
    written = files.read(tmp_path / "theirs" / "model.safetensors")
    assert weights.keys() == written.keys()
    for key, x in written.items():
        np.testing.assert_array_equal(weights[key], x, err_msg=key)
    (tmp_path / "ours").mkdir()
    files.write_safetensors(tmp_path / "ours" / "model.safetensors", weights, format="pt")
    for name, content in contents.items():
        files.write_json(tmp_path / "ours" / name, content)
    again, report = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    compare(theirs(torch, again.eval(), kind), expected)
    assert isinstance(transformers.AutoModel.from_pretrained(tmp_path / "ours"), type(model))


def test_siglip2_at_its_own_grid(torch, tmp_path):
    import transformers

    torch.manual_seed(0)
    config = transformers.Siglip2Config(
        text_config=text_config("narrow", projection_size=32),
        vision_config=SIZES["narrow"] | {"num_patches": 16, "patch_size": 8},
    )
    model = transformers.Siglip2Model(config).eval()
    model.save_pretrained(tmp_path / "theirs")
    pixels, tokens = inputs()
    patches = pixels.transpose(0, 2, 3, 1).reshape(INPUTS, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(INPUTS, 16, 192)
    with torch.no_grad():
        found = model(
            pixel_values=torch.tensor(patches),
            pixel_attention_mask=torch.ones(INPUTS, 16, dtype=torch.long),
            spatial_shapes=torch.full((INPUTS, 2), 4),
            input_ids=torch.tensor(tokens),
        )
    expected = {name: getattr(found, name).numpy() for name in ("image_embeds", "text_embeds", "logits_per_image")}
    compare(ours(pretrained.load(tmp_path / "theirs"), "siglip"), expected)


def test_the_exported_tokenizer_gives_the_same_ids(torch, tmp_path, shared_data):
    import transformers

    from vlm_jax.data import text as tokenizers
    from vlm_jax.models.convert import vocabularies

    source = shared_data / "tokenizers" / "bpe_simple_vocab_16e6.txt.gz"
    loaded = tokenizers.Tokenizer(str(source), 77, "eos").load()
    vocabularies.write_merges(tmp_path, source, size=loaded.vocab_size, pad=loaded.pad_id, length=77)
    files.write_json(tmp_path / "config.json", {"model_type": "clip"})
    texts = ["a photo of a dog.", "Two Cats; 3 birds!", "naïve café — 東京", "  much   space "]
    there = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rows = there(texts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    np.testing.assert_array_equal(loaded(texts), rows)
    found = vocabularies.read(tmp_path, "clip")
    assert found is not None and found.pad == "eos"


def test_the_exported_tokenizer_of_siglip_gives_the_same_ids(torch, tmp_path, shared_data):
    import transformers

    from vlm_jax.data import text as tokenizers
    from vlm_jax.models.convert import vocabularies

    source = shared_data / "tokenizers" / "t5_base.spm.model"
    vocabularies.write_sentencepiece(tmp_path, source, pad="eos", length=16)
    files.write_json(tmp_path / "config.json", {"model_type": "siglip"})
    found = vocabularies.read(tmp_path, "siglip")
    assert found is not None and (found.pad, found.case, found.punctuation) == ("eos", "lower", "strip")
    loaded = tokenizers.Tokenizer(str(source), 16, found.pad, found.case, found.punctuation).load()
    texts = ["A photo of a dog.", "two cats; 3 birds!", "a very long text " * 6]
    there = transformers.AutoTokenizer.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded(texts), there(texts, padding="max_length", max_length=16, truncation=True)["input_ids"])


def test_the_tokenizer_of_siglip2_gives_the_same_ids_both_ways(torch, tmp_path):
    import json

    import transformers

    from tests import vocabulary_file
    from vlm_jax.data import text as tokenizers
    from vlm_jax.models.convert import vocabularies

    model = json.loads(Path(vocabulary_file.write(tmp_path / "gemma.json")).read_text(encoding="utf-8"))["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    there = transformers.Siglip2Tokenizer(model["vocab"], merges, add_bos_token=False, add_eos_token=True, padding_side="right")
    there.save_pretrained(tmp_path / "theirs")
    files.write_json(tmp_path / "theirs" / "config.json", {"model_type": "siglip"})
    texts = ["A photo of a Dog.", "naïve 東京; two cats", "", "a red circle on a blue square " * 3]
    expected = there(texts, padding="max_length", max_length=16, truncation=True)["input_ids"]
    found = vocabularies.read(tmp_path / "theirs", "siglip")
    assert found is not None and found.suffix == ".json"
    (tmp_path / "kept.json").write_bytes(found.content)
    loaded = tokenizers.Tokenizer(
        str(tmp_path / "kept.json"), 16, found.pad, found.case, found.punctuation, found.begin, found.end
    ).load()
    np.testing.assert_array_equal(loaded(texts), expected)
    (tmp_path / "again").mkdir()
    vocabularies.write_tokenizer_json(tmp_path / "again", tmp_path / "kept.json", end=loaded.eos_id, pad=loaded.pad_id, length=16)
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(back(texts, padding="max_length", max_length=16, truncation=True)["input_ids"], expected)


def test_weights_only_pickles_are_read(torch, tmp_path):
    tensors = {"a": torch.randn(3), "b": torch.randn(2, 3).to(torch.bfloat16), "c": torch.randn(4, 3).T}
    torch.save({"state_dict": {f"module.{name}": x for name, x in tensors.items()}}, tmp_path / "model.pt")
    found = files.read(tmp_path / "model.pt")
    assert {name: str(x.dtype) for name, x in found.items()} == {"a": "float32", "b": "bfloat16", "c": "float32"}
    for name, x in tensors.items():
        np.testing.assert_array_equal(found[name].astype(np.float32), x.float().numpy())
    torch.save({"a": Surprise()}, tmp_path / "bad.pt")
    with pytest.raises(files.InputError, match="weights-only reader refuses it"):
        files.read(tmp_path / "bad.pt")


class Surprise:
    """Something that is no tensor."""
