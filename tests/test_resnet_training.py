"""A run with batch statistics from the command line: it goes on bit for bit, embeds with what it stored, and leaves the house."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import convert, inference, train
from vlm_jax.errors import InputError
from vlm_jax.models.convert import files, pretrained
from vlm_jax.training import checkpoint, sharding, tree
from vlm_jax.training import state as states

RECIPE = str(Path(__file__).parent / "resnet_recipe.py")


def flags(world, workdir, *more):
    data = ["--data.train", f"{world}/train-*.array_record", "--data.val", f"{world}/val-*.array_record"]
    return [RECIPE, *data, "--data.tokenizer.path", f"{world}/tokenizer.model", "--workdir", str(workdir), *more]


def weights(workdir):
    """Parameters and statistics of the last checkpoint."""
    config, folder, _ = configs.of_checkpoint(str(workdir))
    loaded, _ = checkpoint.load_weights(folder, None, states.weights_of(states.Model.of(config.system)), sharding.Mesh().make())
    return tree.flatten(jax.device_get(states.variables(loaded, "raw")))


def test_chunks_are_refused_before_anything_is_written(tiny_world, tmp_path):
    with pytest.raises(InputError, match="microbatches 2: the image tower normalises by statistics of the whole batch"):
        train.main(flags(tiny_world, tmp_path / "run", "--microbatches", "2"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_and_its_statistics_go_out_and_in(tiny_world, tmp_path):
    assert train.main(flags(tiny_world, tmp_path / "whole")) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "6")
    assert train.main(flags(tiny_world, tmp_path / "parts")) == 0
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    moved = [path for path in one if path.endswith(("/mean", "/variance"))]
    assert len(moved) == 38 and not any(np.array_equal(one[path], np.full_like(one[path], path.endswith("e"))) for path in moved)
    for path, x in one.items():
        np.testing.assert_array_equal(two[path], x, err_msg=path)

    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    model = inference.load(str(tmp_path / "whole"), weights="raw")
    alone, among = model.embed_images([picture]), model.embed_images([picture, picture // 2, 255 - picture])
    np.testing.assert_allclose(alone[0], among[0], atol=1e-5)  # stored statistics: an image's neighbours do not matter

    convert.main([str(tmp_path / "whole"), str(tmp_path / "out"), "--to", "open_clip", "--weights", "raw"])
    names = files.read(tmp_path / "out" / "open_clip_model.safetensors")
    np.testing.assert_array_equal(names["visual.layer1.0.bn2.running_var"], one["image/stage1/bottleneck1/conv2/norm/variance"])
    again = pretrained.load(tmp_path / "out")
    assert again.params.keys() == one.keys()
    for path, x in again.params.items():
        np.testing.assert_array_equal(x, one[path], err_msg=path)
