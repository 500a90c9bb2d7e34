"""Weights of others that are damaged, dangerous or contradict themselves: one line from both commands that read them, and no trace."""

import json

import numpy as np
import pytest
from test_convert import foreign

from vlm_jax import convert, evaluate
from vlm_jax.errors import InputError


class Marker:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self):
        return open, ("ran", "w")


def truncated(folder):
    foreign(folder / "theirs")
    file = folder / "theirs" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return "hf:theirs", "theirs/model.safetensors: not a whole safetensors file .*; download it again"


def pickled(folder):
    np.savez(folder / "model.npz", a=np.array([Marker()], dtype=object))
    return "big_vision:model.npz", "model.npz: a.npy holds pickled objects, which can run code; refused"


def contradicting(folder):
    foreign(folder / "theirs")
    config = json.loads((folder / "theirs" / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 64
    (folder / "theirs" / "config.json").write_text(json.dumps(config))
    return "hf:theirs", r"class_embedding has shape \(32,\), the configuration means \(64,\)"


def missing(folder):
    return "hf:nowhere", "checkpoint hf:nowhere: no such file or directory"


def no_merges(folder):
    foreign(folder / "theirs")
    (folder / "theirs" / "merges.txt").write_bytes(b"\xff\xfe")
    return "hf:theirs", r"tokenizer .*theirs/merges.txt: no merges of byte pairs"


@pytest.mark.parametrize("breaks", [truncated, pickled, contradicting, missing, no_merges])
def test_bad_weights_are_one_line_and_leave_nothing(tmp_path, monkeypatch, breaks):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLM_JAX_CACHE", str(tmp_path / "cache"))
    source, words = breaks(tmp_path)
    commands = [
        (evaluate.main, ["--checkpoint", source, "--evaluators.retrieval.data", "none"]),
        (convert.main, [source, "out", "--to", "vlm_jax"]),
    ]
    if breaks is not no_merges:  # which an image tower does not need
        commands.append((convert.main, [source, "out", "--to", "hf", "--part", "image"]))
    for run, arguments in commands:
        with pytest.raises(InputError, match=words) as error:
            run(arguments)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() and not (tmp_path / "ran").exists()
