"""Models of others where a checkpoint is read: evaluated, embedded with and started from, imported once, and again when a file changes."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from test_convert import foreign

from vlm_jax import config as configs
from vlm_jax import evaluate, imported, inference, train
from vlm_jax.errors import InputError
from vlm_jax.training import checkpoint, sharding, tree
from vlm_jax.training import state as states

RECIPE = str(Path(__file__).parent / "tiny_recipe.py")


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    foreign(tmp_path / "theirs")
    return tmp_path / "theirs"


def test_a_directory_is_imported_once_and_again_when_it_changes(theirs, tmp_path, capsys):
    first = imported.resolve(f"hf:{theirs}")
    assert Path(first).is_relative_to(tmp_path / "cache") and "importing hf:" in capsys.readouterr().out
    assert imported.resolve(f"hf:{theirs}") == first and not capsys.readouterr().out
    assert configs.of_checkpoint(first)[0].system.mean == (0.1, 0.2, 0.3)
    (Path(first) / "config.json").unlink()  # as if killed before the end
    assert imported.resolve(f"hf:{theirs}") == first and "importing" in capsys.readouterr().out
    (theirs / "config.json").write_text((theirs / "config.json").read_text() + "\n")
    assert imported.resolve(f"hf:{theirs}") != first
    assert imported.resolve("runs/mine") == "runs/mine" and imported.resolve("s3:x") == "s3:x"
    with pytest.raises(InputError, match="checkpoint hf:nowhere: no such file or directory"):
        imported.resolve("hf:nowhere")


def test_several_processes_are_told_to_convert_first(theirs, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match=r"several processes; convert it first: python -m vlm_jax\.convert hf:"):
        imported.resolve(f"hf:{theirs}")
    assert not (tmp_path / "cache").exists()


def test_it_is_evaluated_and_embedded_with(theirs, tmp_path, tiny_world):
    shards = str(tiny_world / "val-*.array_record")
    flags = ["--evaluators.retrieval.data", shards, "--evaluators.retrieval.limit", "8"]
    assert evaluate.main(["--checkpoint", f"hf:{theirs}", *flags]) == 0
    (folder,) = (tmp_path / "evaluation").iterdir()
    (record,) = json.loads((folder / "evaluation.json").read_text())
    assert record["metrics"]["image_retrieval_recall@5"] > 0 and (folder / "report.html").exists()
    model = inference.load(f"hf:{theirs}")
    want = inference.load(imported.resolve(f"hf:{theirs}"))
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    np.testing.assert_array_equal(model.embed_images([picture]), want.embed_images([picture]))
    assert model.embed_texts(["the cat"]).shape == (1, 24)


@pytest.mark.slow
def test_its_image_tower_is_started_from_and_locked(theirs, tmp_path, tiny_world):
    """LiT from a model of transformers."""
    tower = ("width=32", "depth=2", "mlp-dim=64", "num-heads=4", "pool=cls", "class-token=positioned", "patch-bias=none")
    tower += ("pre-norm=layer_norm", "activation=quick_gelu", "norm-epsilon=1e-5", "projection-dim=24")
    flags = [word for field in tower for word in (f"--system.image.{field.split('=')[0]}", field.split("=")[1])]
    data = ["--data.train", f"{tiny_world}/train-*.array_record", "--data.val", f"{tiny_world}/val-*.array_record"]
    data += ["--data.tokenizer.path", f"{tiny_world}/tokenizer.model", "--evaluators.held-out.classes", f"{tiny_world}/classes.json"]
    data += ["--evaluators.held-out.data", f"{tiny_world}/held_out-*.array_record", "--workdir", str(tmp_path / "lit")]
    locked = ["--system.frozen", "^image/", "--system.text.projection-dim", "24", "--init-from", f"image/ <- hf:{theirs}"]
    assert train.main([RECIPE, *data, *flags, *locked, "--steps", "2", "--optimizer.warmup", "1", "--save-every", "0"]) == 0
    config, workdir, _ = configs.of_checkpoint(str(tmp_path / "lit"))
    shapes = states.weights_of(states.Model.of(config.system))
    found = tree.flatten(jax.device_get(checkpoint.load_weights(workdir, None, shapes, sharding.Mesh().make())[0]["frozen"]))
    want = tree.flatten(imported.load(str(theirs)).variables)
    assert len(found) > 20
    for path, x in found.items():
        np.testing.assert_array_equal(x, want[path], err_msg=path)
