import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from tests import vocabulary_file
from tests.models import reference
from tests.models.convert.test_decoders import TINY, Golden, load
from vlm_jax import config as configs
from vlm_jax import convert, decoder, evaluate
from vlm_jax.data import text as texts
from vlm_jax.data import texts as streams
from vlm_jax.data import vocabulary
from vlm_jax.errors import InputError
from vlm_jax.models.convert import decoders, files, layout
from vlm_jax.systems import language_model
from vlm_jax.training import checkpoint, tree


def run_of(folder, tokenizer, **fields):
    """A run of a tiny language model with weights of its own; returns them by path."""
    system = language_model.LanguageModel(lm=dataclasses.replace(TINY, **fields))
    ours = {path: reference.fill(path, x.shape).astype(np.float32) for path, x in layout.parameters(system.lm).items()}
    folder.mkdir()
    data = streams.Texts(train="", val="", tokenizer=tokenizer)
    params = tree.unflatten({f"lm/{path}": jnp.asarray(x) for path, x in ours.items()})
    checkpoint.save_weights(folder, 3, {"params": params, "frozen": {}, "buffers": {}, "average": {}})
    tokenizer.keep(folder, data.stream)
    configs.save(folder / "config.json", configs.Config(system=system, data=data.kept(str(folder)), workdir=str(folder)))
    return ours


def test_a_language_model_goes_out_as_it_came_in(oracles, tmp_path, capsys):
    golden = Golden(oracles, "gpt2")
    (tmp_path / "in").mkdir()
    golden.write(tmp_path / "in", eos_token_id=7)
    (tmp_path / "in" / "tokenizer.json").write_text("{}")
    assert convert.main([str(tmp_path / "in"), str(tmp_path / "out"), "--to", "hf", "--part", "lm"]) == 0
    weights = files.read(tmp_path / "out" / "model.safetensors")
    assert weights.keys() == golden.weights.keys() - {"lm_head.weight"}
    assert all(np.array_equal(x, golden.weights[key]) for key, x in weights.items())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    named = {"model_type": "gpt2", "n_head": 4, "n_inner": 128, "eos_token_id": 7, "bos_token_id": 60}
    assert {key: config[key] for key in named} == named
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert "text-generation" in (tmp_path / "out" / "README.md").read_text()
    assert "a language model alone" in capsys.readouterr().out


def test_the_tokenizer_of_a_run_goes_along(tmp_path, capsys):
    """More rows than tokens stay, and are said."""
    (tmp_path / "words.model").write_bytes(vocabulary.train(["two cats and a red bird"] * 9, 60))
    tokenizer = texts.Tokenizer(str(tmp_path / "words.model"), 8, begin="</s>")
    loaded = tokenizer.load()
    ours = run_of(tmp_path / "run", tokenizer, vocab_size=loaded.vocab_size + 3)
    assert convert.main([str(tmp_path / "run"), str(tmp_path / "out"), "--to", "hf", "--part", "lm"]) == 0
    said = capsys.readouterr().out
    assert f"the tokenizer has {loaded.vocab_size} tokens, of the model's {loaded.vocab_size + 3} rows" in said and "no token" not in said
    made = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert made.encode("two red cats").ids == [1, *loaded.encode("two red cats")]
    config, params = load(tmp_path / "out")
    assert config.vocab_size == loaded.vocab_size + 3 and all(np.array_equal(params[path], x) for path, x in ours.items())
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [content[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")] == [1, 1, 0]
    named = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (named["bos_token"], named["eos_token"], named["pad_token"], named["model_max_length"]) == ("</s>", "</s>", "<pad>", 8)


def test_a_tokenizer_that_transformers_cannot_have_is_left_out_and_said(tmp_path):
    source = vocabulary_file.write(tmp_path / "gemma.json")
    size = texts.Tokenizer(source).load().vocab_size
    ids, notes = decoder.write_tokenizer(texts.Tokenizer(source, punctuation="strip"), tmp_path / "out", rows=size)
    assert ids["eos_token_id"] == 1 and "no tokenizer is written" in notes[0]
    _, notes = decoder.write_tokenizer(texts.Tokenizer(source), tmp_path / "out", rows=size + 1, added=("<image>",))
    assert "otherwise" in notes[-1] and not (tmp_path / "out").exists()
    assert decoder.write_tokenizer(texts.Tokenizer(""), tmp_path / "out", rows=1) == ({}, ("no tokenizer is written: there is none",))


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A GPT-2 with a vocabulary of bytes in its two files; returns the folder and what its weights are here."""
    monkeypatch.setenv("VLM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(TINY, vocab_size=270, length=32)
    made, content = decoders.write(config)
    ours = {path: reference.fill(path, x.shape).astype(np.float32) for path, x in made.like().items()}
    folder = tmp_path / "theirs"
    folder.mkdir()
    files.write_safetensors(folder / "model.safetensors", made.to_theirs(ours), format="pt")
    files.write_json(folder / "config.json", content)
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(["two cats and a red bird"] * 9, vocab_size=266, special_tokens=["<|endoftext|>"], show_progress=False)
    trained.save_model(str(folder))
    files.write_json(folder / "tokenizer_config.json", {"add_bos_token": True, "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    return folder, config, ours


def test_a_language_model_of_others_is_a_checkpoint_with_a_perplexity(theirs, tmp_path, capsys):
    folder, config, ours = theirs
    text = "two red birds and a cat"
    (tmp_path / "held_out.txt").write_text(text)
    data = ["--evaluators.perplexity.data", str(tmp_path / "held_out.txt"), "--evaluators.perplexity.examples", "0"]
    assert evaluate.main(["--checkpoint", f"hf:{folder}", *data]) == 0
    assert "--init-from 'lm/ <- hf:DIR' and --system.lm.vocab-size 270" in capsys.readouterr().out
    (file,) = (tmp_path / "evaluation").glob("*/evaluation.json")
    (record,) = json.loads(file.read_text())
    there = tokenizers.ByteLevelBPETokenizer.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    ids = np.array([[0, *there.encode(text).ids, 0]])
    model = reference.build(config, tree.unflatten({path: jnp.asarray(x) for path, x in ours.items()}))
    want = -float(model.log_likelihood(jnp.asarray(ids), jnp.ones(ids.shape, bool))[0]) / (ids.size - 1)
    np.testing.assert_allclose(record["metrics"]["token_perplexity"], np.exp(want), rtol=1e-4)

    assert convert.main([str(folder), str(tmp_path / "ours"), "--to", "vlm_jax"]) == 0
    assert convert.main([str(tmp_path / "ours"), str(tmp_path / "out"), "--to", "hf", "--part", "lm"]) == 0
    want, have = (files.read(place / "model.safetensors") for place in (folder, tmp_path / "out"))
    assert want.keys() == have.keys() and all(np.array_equal(x, have[key]) for key, x in want.items())
    made = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert made.encode(text).ids == ids[0, :-1].tolist()


def test_what_is_no_language_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(InputError, match="no file of weights"):
        decoder.export(str(tmp_path), tmp_path / "out")
    with pytest.raises(InputError, match="checkpoint hf:nowhere: no such file"):
        decoder.export("hf:nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="a language model alone is written for transformers"):
        convert.main([str(tmp_path), str(tmp_path / "out"), "--to", "open_clip", "--part", "lm"])
    assert not (tmp_path / "out").exists()
