import json

import numpy as np
import pytest

from tests.models.convert.test_decoders import Golden
from vlm_jax import convert, decoder
from vlm_jax.errors import InputError
from vlm_jax.models.convert import files


def test_a_language_model_goes_out_as_it_came_in(oracles, tmp_path, capsys):
    golden = Golden(oracles, "gpt2")
    (tmp_path / "in").mkdir()
    golden.write(tmp_path / "in")
    assert convert.main([str(tmp_path / "in"), str(tmp_path / "out"), "--to", "hf", "--part", "lm"]) == 0
    weights = files.read(tmp_path / "out" / "model.safetensors")
    assert weights.keys() == golden.weights.keys() - {"lm_head.weight"}
    assert all(np.array_equal(x, golden.weights[key]) for key, x in weights.items())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: config[key] for key in ("model_type", "n_head", "n_inner")} == {"model_type": "gpt2", "n_head": 4, "n_inner": 128}
    assert "text-generation" in (tmp_path / "out" / "README.md").read_text()
    assert "a language model alone" in capsys.readouterr().out


def test_what_is_no_language_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(InputError, match="neither a run of ours nor a directory with a language model"):
        decoder.export(str(tmp_path), tmp_path / "out")
    with pytest.raises(InputError, match="a language model alone is written for transformers"):
        convert.main([str(tmp_path), str(tmp_path / "out"), "--to", "open_clip", "--part", "lm"])
    assert not (tmp_path / "out").exists()
