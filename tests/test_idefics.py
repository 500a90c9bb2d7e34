"""A directory of Idefics goes through the front doors: converted and back bit for bit, imported, started from."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from test_image_tower import config_of, initial_weights
from tokenizers import models, pre_tokenizers

from tests.models.convert.test_idefics import CONFIG
from vlm_jax import config as configs
from vlm_jax import convert, evaluate, image_tower, imported
from vlm_jax.errors import InputError
from vlm_jax.models.convert import files, idefics
from vlm_jax.systems import flamingo
from vlm_jax.training import tree

WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(37))]


@pytest.fixture
def theirs(oracles, tmp_path, monkeypatch):
    """The golden model with a vocabulary of words, and the two tokens of images after it."""
    monkeypatch.setenv("VLM_JAX_CACHE", str(tmp_path / "cache"))
    with np.load(oracles / "golden_idefics.npz") as oracle:
        weights = {key[2:]: np.asarray(oracle[key], np.float32) for key in oracle if key.startswith("w:")}
    folder = tmp_path / "theirs"
    folder.mkdir()
    files.write_safetensors(folder / "model.safetensors", weights, format="pt")
    files.write_json(folder / "config.json", CONFIG)
    files.write_json(folder / "preprocessor_config.json", {"image_size": 16, "image_mean": [0.1, 0.2, 0.3], "image_num_channels": 3})
    made = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([*WORDS[:3], *idefics.ADDED])
    made.save(str(folder / "tokenizer.json"))
    files.write_json(folder / "tokenizer_config.json", {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"})
    return folder


def test_it_is_converted_and_back_bit_for_bit(theirs, tmp_path, capsys):
    assert convert.main([str(theirs), str(tmp_path / "ours"), "--to", "vlm_jax"]) == 0
    assert "the image tower's last norm, which nothing takes, is left out" in capsys.readouterr().out
    assert convert.main([str(tmp_path / "ours"), str(tmp_path / "out"), "--to", "hf"]) == 0
    assert "no tokenizer" not in capsys.readouterr().out
    want, have = (files.read(folder / "model.safetensors") for folder in (theirs, tmp_path / "out"))
    assert want.keys() == have.keys()
    assert [key for key, x in want.items() if not np.array_equal(x, have[key]) and "post_layernorm" not in key] == []
    again, first = idefics.read(tmp_path / "out"), idefics.read(theirs)
    assert (again.config, again.preprocessing, again.begin_id, again.end_id) == (first.config, first.preprocessing, 1, 2)
    assert again.config.mean == (0.1, 0.2, 0.3)
    texts = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert [texts.token_to_id(name) for name in idefics.ADDED] == [40, 41]
    assert texts.encode("w0 w5 <image>").tokens == ["<s>", "w0", "w5", "<image>"]
    assert "IdeficsForVisionText2Text.from_pretrained" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InputError, match="open_clip has no Flamingo"):
        convert.main([str(tmp_path / "ours"), str(tmp_path / "no"), "--to", "open_clip"])
    assert not (tmp_path / "no").exists()


def test_it_is_imported_where_a_checkpoint_is_read(theirs):
    config, _, _ = configs.of_checkpoint(imported.resolve(f"hf:{theirs}"))
    system = config.system
    assert isinstance(system, flamingo.Flamingo) and (system.begin_id, system.end_id, system.image_id) == (1, 2, 41)
    assert system.mean == (0.1, 0.2, 0.3) and config.data.image.resize == "squash" and not config.evaluators
    loaded = config.data.tokenizer.load()
    assert (loaded.vocab_size, loaded.bos_id, loaded.eos_id, loaded.encode("w1 w2")) == (40, 1, 2, [4, 5])


def test_a_run_starts_from_all_of_it_or_from_a_part(theirs):
    system = flamingo.Flamingo(**vars(idefics.read(theirs).config))
    found, words = initial_weights(config_of(system, init_from=(f"hf:{theirs}",)))
    stored = tree.flatten(imported.load(str(theirs)).variables)
    assert found.keys() == stored.keys() and all(np.array_equal(x, stored[path]) for path, x in found.items())
    assert "freshly initialised" not in words and "prepared with mean 0.1 0.2 0.3" not in words
    found, words = initial_weights(config_of(system, init_from=(f"lm/ <- hf:{theirs}",)))
    assert np.array_equal(found["lm/head/kernel"], stored["lm/head/kernel"]) and not found["cross/blocks/mlp/up/kernel"].any()
    weights = image_tower.weights_of_others(f"hf:{theirs}")
    assert weights is not None and isinstance(weights.leaves["resampler/latents"], jnp.ndarray)
    assert json.loads((theirs / "config.json").read_text()) == CONFIG


@pytest.mark.slow
def test_it_is_asked_after_examples(theirs, tiny_world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = f'data="{tiny_world}/val-*.array_record", train="{tiny_world}/train-*.array_record", support=8, limit=4, shots=(0, 2)'
    (tmp_path / "suite.py").write_text(
        "from vlm_jax.evaluation import few_shot_captioning\n\n\n"
        f'def evaluators():\n    return {{"captions": few_shot_captioning.FewShotCaptioning({asked})}}\n'
    )
    assert evaluate.main(["--checkpoint", f"hf:{theirs}", "--suite", "suite.py"]) == 0
    (file,) = (tmp_path / "evaluation").glob("*/evaluation.json")
    (record,) = json.loads(file.read_text())
    assert {name.split("@")[1] for name in record["metrics"]} == {"0_shots", "2_shots"}
