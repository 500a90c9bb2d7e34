"""Whole models in and out through the command: weights, preprocessing and tokenizer, evaluated and exported again."""

import json

import numpy as np
import pytest

from tests import vocabulary_file
from tests.models import golden
from vlm_jax import config as configs
from vlm_jax import convert, evaluate, imported
from vlm_jax.data import images, pipeline
from vlm_jax.data import text as tokenizers
from vlm_jax.errors import InputError
from vlm_jax.models import text, vit
from vlm_jax.models.convert import files, hugging_face, open_clip, pretrained, vocabularies
from vlm_jax.systems import clip, siglip
from vlm_jax.training import tree

IMAGE = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 4}
TEXT = {"length": 8, "width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 4}
MERGES = ["a t</w>", "c at</w>", "d o", "do g</w>", "t h", "th e</w>"]


def foreign(folder, family="clip"):
    """A directory as transformers writes it, with a vocabulary of six merges."""
    source = layout(family)
    made, contents = hugging_face.write(source)
    weights = made.to_theirs({path: golden.reference.fill(path, x.shape).astype(np.float32) for path, x in made.like().items()})
    folder.mkdir()
    files.write_safetensors(folder / "model.safetensors", weights, format="pt")
    for name, content in contents.items():
        files.write_json(folder / name, content)
    if family == "clip":
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    return weights


def layout(family):
    common = {"activation": "quick_gelu", "norm_epsilon": 1e-5, "projection_dim": 24}
    if family == "clip":
        image = vit.Config(**IMAGE, **common, pool="cls", class_token="positioned", patch_bias="none", pre_norm="layer_norm")
        words = text.Config(**TEXT, **common, vocab_size=520, attention="causal", pool="eos", eos_id=519)
        system = clip.Clip(image=image, text=words, mean=(0.1, 0.2, 0.3))
    else:
        image = vit.Config(**IMAGE, pool="map")
        words = text.Config(**TEXT, vocab_size=1000, projection_dim=32, projection_bias="learned")
        system = siglip.Siglip(image=image, text=words)
    resize = "shortest" if family == "clip" else "squash"
    stream = pipeline.Pairs(train="", val="", tokenizer=tokenizers.Tokenizer("", 8), image=images.Transform(size=32, resize=resize))
    return convert.layout_of(configs.Config(system=system, data=stream))


def run(*arguments):
    return convert.main([str(argument) for argument in arguments])


def test_a_model_of_transformers_is_evaluated_and_goes_back_bit_for_bit(tmp_path, tiny_world):
    weights = foreign(tmp_path / "theirs")
    run(tmp_path / "theirs", tmp_path / "ours", "--to", "vlm_jax")
    config, _, _ = configs.of_checkpoint(str(tmp_path / "ours"))
    assert config.system.mean == (0.1, 0.2, 0.3) and config.system.text.eos_id == 519
    assert config.data.tokenizer.pad == "eos" and config.data.kept(str(tmp_path / "ours")).tokenizer.load().vocab_size == 520
    shards = str(tiny_world / "val-*.array_record")
    evaluate.main(["--checkpoint", str(tmp_path / "ours"), "--evaluators.retrieval.data", shards, "--evaluators.retrieval.limit", "8"])
    assert json.loads((tmp_path / "ours" / "evaluation.json").read_text())[0]["metrics"]["image_retrieval_recall@5"] > 0

    run(tmp_path / "ours", tmp_path / "again", "--to", "hf")
    back = files.read(tmp_path / "again" / "model.safetensors")
    assert back.keys() == weights.keys()
    for key, x in weights.items():
        np.testing.assert_array_equal(back[key], x, err_msg=key)
    for name in ("config.json", "preprocessor_config.json", "merges.txt"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "theirs" / name).read_text(), name
    assert json.loads((tmp_path / "again" / "vocab.json").read_text())["dog</w>"] == 515
    card = (tmp_path / "again" / "README.md").read_text()
    assert "library_name: transformers" in card and "image_retrieval_recall@5" in card and "## Limits" in card


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_model_goes_to_open_clip_and_back(tmp_path, family):
    foreign(tmp_path / "theirs", family)
    run(tmp_path / "theirs", tmp_path / "open", "--to", "open_clip")
    first, second = pretrained.load(tmp_path / "theirs"), pretrained.load(tmp_path / "open")
    assert second.layout.preprocessing == first.layout.preprocessing
    assert first.params.keys() == second.params.keys()
    for path, x in first.params.items():
        np.testing.assert_array_equal(second.params[path], x, err_msg=path)


def test_the_open_clip_layout_is_that_of_the_golden(oracles, tmp_path):
    """Names and shapes of a model of open_clip, exported from what was imported of it."""
    source = golden.Golden(oracles, "golden_clip_openai_keys_quickgelu")
    run(source.open_clip(tmp_path / "clip", quick_gelu=True), tmp_path / "again", "--to", "open_clip")
    back = files.read(tmp_path / "again" / "open_clip_model.safetensors")
    assert {key: list(x.shape) for key, x in back.items()} == json.loads(str(source.oracle["keys"]))
    written = json.loads((tmp_path / "again" / open_clip.NAME).read_text())["model_cfg"]
    assert written["quick_gelu"] is True
    for tower in ("vision_cfg", "text_cfg"):
        assert source.config[tower].items() <= written[tower].items()


def test_a_vocabulary_that_does_not_fit_the_tower_is_refused(tmp_path):
    foreign(tmp_path / "theirs")
    (tmp_path / "theirs" / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES[:-1], ""]))
    with pytest.raises(InputError, match="its end token is 518, the text tower takes the text at 519"):
        run(tmp_path / "theirs", tmp_path / "ours", "--to", "vlm_jax")
    (tmp_path / "theirs" / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, "t o", ""]))
    with pytest.raises(InputError, match="521 tokens, the model has 520"):
        run(tmp_path / "theirs", tmp_path / "more", "--to", "vlm_jax")


def test_what_is_allowed_to_be_missing_is_initialised_and_said(tmp_path, capsys):
    weights = foreign(tmp_path / "theirs")
    del weights["visual_projection.weight"]
    files.write_safetensors(tmp_path / "theirs" / "model.safetensors", weights)
    with pytest.raises(InputError, match=r"missing visual_projection.weight"):
        run(tmp_path / "theirs", tmp_path / "no", "--to", "open_clip")
    run(tmp_path / "theirs", tmp_path / "yes", "--to", "hf", "--allow", "visual_projection.*")
    assert "freshly initialised, as allowed: image/projection/kernel" in capsys.readouterr().out
    assert files.read(tmp_path / "yes" / "model.safetensors")["visual_projection.weight"].std() > 0.01


@pytest.mark.parametrize(
    ("source", "words"), [("nowhere", "no such file or directory"), ("empty", "no file of weights"), ("theirs", "is not empty")]
)
def test_wrong_paths_are_one_line(tmp_path, source, words):
    foreign(tmp_path / "theirs")
    (tmp_path / "empty").mkdir()
    target = "theirs" if source == "theirs" else "target"
    with pytest.raises(InputError, match=words):
        run(tmp_path / source, tmp_path / target, "--to", "hf")
    assert not (tmp_path / "target").exists()


def test_an_imported_model_is_loaded_in_python(tmp_path):
    foreign(tmp_path / "theirs", "siglip")
    found = imported.load(str(tmp_path / "theirs"))
    assert isinstance(found.config.system, siglip.Siglip)
    assert tree.flatten(found.variables)["bias"].shape == ()
    assert any("no vocabulary" in note for note in found.notes)


def test_a_tokenizer_that_transformers_lacks_is_left_out_and_said(tmp_path, shared_data, capsys):
    """This vocabulary begins texts with a token."""
    foreign(tmp_path / "theirs", "siglip")
    vocabulary = shared_data / "tokenizers" / "test_model.model"
    run(tmp_path / "theirs", tmp_path / "ours", "--to", "vlm_jax", "--tokenizer", vocabulary)
    run(tmp_path / "ours", tmp_path / "again", "--to", "hf")
    assert "no tokenizer is written" in capsys.readouterr().out
    assert "no tokenizer is written" in (tmp_path / "again" / "README.md").read_text()
    assert not (tmp_path / "again" / "spiece.model").exists()
    (tmp_path / "theirs" / "spiece.model").write_bytes(vocabulary.read_bytes())
    found = imported.load(str(tmp_path / "theirs")).vocabulary
    assert found is not None and found.begin == "none"  # SigLIP's texts do not


def test_the_tokenizer_of_siglip2_goes_in_and_out(tmp_path, capsys):
    """Gemma's has a begin token, which SigLIP 2 leaves out, and SigLIP 2 lower-cases texts."""
    foreign(tmp_path / "theirs", "siglip")
    vocabulary_file.write(tmp_path / "theirs" / "tokenizer.json")
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    files.write_json(tmp_path / "theirs" / "tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer", **names})
    run(tmp_path / "theirs", tmp_path / "ours", "--to", "vlm_jax")
    config, _, _ = configs.of_checkpoint(str(tmp_path / "ours"))
    loaded = config.data.kept(str(tmp_path / "ours")).tokenizer.load()
    row = loaded(["A Dog."])[0].tolist()
    assert row == [*loaded.encode("a dog."), 1, *[0] * (7 - len(loaded.encode("a dog.")))]
    run(tmp_path / "ours", tmp_path / "again", "--to", "hf")
    assert "no tokenizer" not in capsys.readouterr().out
    for name in ("theirs", "again"):
        assert vocabularies.read(tmp_path / name, "siglip") == vocabularies.read(tmp_path / "again", "siglip")
    cleaning = {"model_cfg": {"text_cfg": {"tokenizer_kwargs": {"clean": "canonicalize"}}}}
    files.write_json(tmp_path / "theirs" / "open_clip_config.json", cleaning)
    found = vocabularies.read(tmp_path / "theirs", "siglip")
    assert found is not None and (found.case, found.punctuation) == ("lower", "strip")  # as open_clip prepares SigLIP 2's texts


def test_a_modified_resnet_with_its_statistics_goes_in_and_out(oracles, tmp_path):
    source = golden.Golden(oracles, "golden_clip_resnet")
    run(source.open_clip(tmp_path / "clip", quick_gelu=True), tmp_path / "ours", "--to", "vlm_jax")
    run(tmp_path / "ours", tmp_path / "again", "--to", "open_clip")
    back = files.read(tmp_path / "again" / "open_clip_model.safetensors")
    for key, x in source.weights.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(back[key], x, err_msg=key)
    with pytest.raises(InputError, match="transformers has no class for CLIP's modified ResNets"):
        run(tmp_path / "ours", tmp_path / "hf", "--to", "hf")
