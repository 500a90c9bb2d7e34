"""Image towers alone: a run starts from one of others, says how its images were prepared, and its own goes out and comes back."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.models import golden
from vlm_jax import config as configs
from vlm_jax import convert, image_tower, imported, run
from vlm_jax.data import images, pipeline
from vlm_jax.data import text as tokenizers
from vlm_jax.errors import InputError
from vlm_jax.models import text, vit
from vlm_jax.models.convert import files, hugging_face, layout, pretrained
from vlm_jax.systems import clip, lit
from vlm_jax.training import state as states
from vlm_jax.training import tree

TOWER = vit.Config(
    image_size=32, patch_size=8, width=32, depth=2, mlp_dim=64, num_heads=4, pool="cls", class_token="positioned", activation="gelu",
    norm_epsilon=1e-12,
)  # fmt: skip
TEXT = text.Config(vocab_size=256, length=8, width=32, depth=1, mlp_dim=64, num_heads=4, projection_dim=32)


def theirs(folder: Path, **preprocessing) -> dict[str, np.ndarray]:
    """A directory of ViTForImageClassification, without the layer of the pooler; returns its arrays."""
    seen = layout.Preprocessing(**{"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize": "squash"} | preprocessing)
    made, contents = hugging_face.write(layout.Layout(family="image", image=TOWER, preprocessing=seen, table=()))
    weights = made.to_theirs({path: golden.reference.fill(path, x.shape).astype(np.float32) for path, x in made.like().items()})
    classifier = {"classifier.weight": np.ones((5, 32), np.float32), "classifier.bias": np.zeros(5, np.float32)}
    folder.mkdir()
    files.write_safetensors(folder / "model.safetensors", {f"vit.{name}": x for name, x in weights.items()} | classifier)
    for name, content in contents.items():
        files.write_json(folder / name, content)
    return weights


def config_of(system, **fields) -> configs.Config:
    data = pipeline.Pairs(train="", val="", tokenizer=tokenizers.Tokenizer("", 8), image=images.Transform(size=32, resize="squash"))
    return configs.Config(system=system, data=data, **fields)


def initial_weights(config):
    """What a run of this configuration starts with, by path, and what it says of that."""
    model = states.Model.of(config.system)
    flat = {path: np.zeros(x.shape, x.dtype) for path, x in tree.flatten(model.params).items()}
    params, frozen = tree.partition(tree.unflatten(flat), config.system.frozen)
    state = {"params": params, "frozen": frozen, "buffers": {}}
    place = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), state)

    class Started:
        """Of a run, what its initial weights need."""

        program = type("Program", (), {"shardings": place})
        mesh = None
        _stored = run.Run._stored

    started = Started()
    started.config, started.model = config, model
    new, words = run.Run._initial_weights(started, state)  # pyright: ignore[reportArgumentType]
    return tree.flatten(jax.device_get(tree.join(new["params"], new["frozen"]))), words


def test_a_locked_tower_of_transformers_is_started_from_and_the_classifier_left_there(tmp_path):
    weights = theirs(tmp_path / "vit")
    fields = {"image": TOWER, "text": TEXT}
    found, words = initial_weights(config_of(lit.Lit(**fields), init_from=(f"image/ <- hf:{tmp_path / 'vit'}",)))
    assert words.splitlines() == [
        f"{len([name for name in found if name.startswith('image/')])} parameters of image/ from hf:{tmp_path / 'vit'}",
        "freshly initialised: log_scale, text/blocks/attention/key/bias, text/blocks/attention/key/kernel, "
        "text/blocks/attention/out/bias and 18 more",
    ]
    np.testing.assert_array_equal(found["image/class_token"], weights["embeddings.cls_token"][0])
    assert not found["text/norm/scale"].any() and found["image/norm/scale"].any()


def test_a_projection_of_the_recipe_stays_fresh_and_other_preprocessing_is_said(tmp_path):
    theirs(tmp_path / "vit", resize="shortest")
    projected = vit.Config(**vars(TOWER) | {"projection_dim": 32})
    source = f"hf:{tmp_path / 'vit'}"
    config = config_of(clip.Clip(image=projected, text=TEXT), init_from=(f"image/ without image/projection/ <- {source}",))
    found, words = initial_weights(config)
    assert not found["image/projection/kernel"].any() and "freshly initialised: image/projection/kernel, log_scale" in words
    assert words.endswith(
        "are with mean 0.48145466 0.4578275 0.40821073, std 0.26862954 0.26130258 0.27577711, resize squash: set --system.mean 0.5 0.5 0.5 "
        "--system.std 0.5 0.5 0.5 --data.image.resize shortest, above all where the tower is frozen"
    )
    with pytest.raises(InputError, match=r"no image/projection/kernel; .* or leave some as they are: 'image/ without image/projection/ <-"):
        initial_weights(config_of(clip.Clip(image=projected, text=TEXT), init_from=(f"image/ <- {source}",)))
    with pytest.raises(InputError, match="checkpoint hf:nowhere: no such file or directory"):
        initial_weights(config_of(clip.Clip(image=projected, text=TEXT), init_from=("image/ <- hf:nowhere",)))


def test_a_tower_of_big_vision_without_a_table_of_positions_is_started_from(oracles, tmp_path):
    """Its file does not say the image size; the run does."""
    source = golden.Golden(oracles, "golden_bv_vit_gap")
    np.savez(tmp_path / "vit.npz", **source.weights)
    tower = pretrained.load(tmp_path / "vit.npz", image_size=32).layout.image
    words = dataclasses.replace(TEXT, projection_dim=tower.width)
    found, said = initial_weights(config_of(lit.Lit(image=tower, text=words), init_from=(f"image/ <- big_vision:{tmp_path}/vit.npz",)))
    assert "of image/ from big_vision:" in said and "prepared with interpolation bilinear, those of this run are with" in said
    np.testing.assert_array_equal(found["image/norm/scale"], source.weights["Transformer/encoder_norm/scale"])


def test_our_tower_goes_to_transformers_and_back_bit_for_bit(tmp_path, capsys):
    """Out of a checkpoint of both towers, without the projection to their common space."""
    projected = vit.Config(**vars(TOWER) | {"projection_dim": 32})
    system = clip.Clip(image=projected, text=TEXT, mean=(0.1, 0.2, 0.3))
    shapes = tree.flatten(states.Model.of(system).params)
    ours = {path: golden.reference.fill(path, x.shape).astype(np.float32) for path, x in shapes.items()}
    imported.save(imported.Source(config_of(system), tree.unflatten(ours), 7, (), None), tmp_path / "run")
    out = tmp_path / "out"
    assert convert.main([str(tmp_path / "run"), str(out), "--to", "hf", "--part", "image"]) == 0
    assert "left out, for which ViTModel has no place: image/projection" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["architectures"] == ["ViTModel"]
    assert "image-feature-extraction" in (out / "README.md").read_text()
    again = pretrained.load(out)
    assert again.layout.preprocessing.mean == (0.1, 0.2, 0.3) and again.layout.image == TOWER
    assert again.params.keys() == {path for path in ours if path.startswith("image/")} - {"image/projection/kernel"}
    for path, x in again.params.items():
        np.testing.assert_array_equal(x, ours[path], err_msg=path)
    found, _ = initial_weights(config_of(lit.Lit(image=TOWER, text=TEXT), init_from=(f"image/ <- hf:{out}",)))
    np.testing.assert_array_equal(found["image/blocks/mlp/up/kernel"], ours["image/blocks/mlp/up/kernel"])

    assert convert.main([f"hf:{out}", str(tmp_path / "twice"), "--to", "hf", "--part", "image"]) == 0
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (out / name).read_bytes(), name


def test_a_tower_alone_is_no_checkpoint_and_the_words_say_what_to_do(tmp_path):
    theirs(tmp_path / "vit")
    source = f"hf:{tmp_path / 'vit'}"
    for call in (lambda: convert.main([source, str(tmp_path / "ours"), "--to", "vlm_jax"]), lambda: imported.resolve(source)):
        with pytest.raises(InputError) as error:
            call()
        flag = "--system.image.norm-epsilon 1e-12"
        for words in ("an image tower alone", "--init-from 'image/ <- hf:DIR'", flag, "--part image --to hf"):
            assert words in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="to open_clip: an image tower alone is written for transformers"):
        convert.main([source, str(tmp_path / "ours"), "--to", "open_clip", "--part", "image"])
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(("change", "words"), [({"pool": "gap"}, "image.pool 'gap'"), ({"registers": 1}, "image.registers 1")])
def test_a_tower_that_vitmodel_cannot_hold_is_refused(tmp_path, change, words):
    system = clip.Clip(image=vit.Config(**vars(TOWER) | change), text=TEXT)
    source = imported.Source(config_of(system), tree.unflatten({}), 0, (), None)
    model = layout.Layout(
        family="image", image=system.image, preprocessing=imported.preprocessing_of(source.config), table=()
    )
    with pytest.raises(InputError, match=words):
        hugging_face.write(model)
    assert image_tower.weights_of_others("runs/mine") is None
