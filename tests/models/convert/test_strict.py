"""Nothing is loaded that does not fit: names, shapes, dtypes, and configurations that contradict the weights."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from tests.models.golden import Golden
from vlm_jax.errors import InputError
from vlm_jax.models.convert import files, hugging_face, open_clip, pretrained

BLOCK = "vision_model.encoder.layers.1.mlp.fc1.weight"


@pytest.fixture
def clip(oracles):
    return Golden(oracles, "golden_clip")


def refused(folder, words, **options):
    with pytest.raises(InputError, match=words) as error:
        pretrained.load(folder, **options)
    assert "\n" not in str(error.value)


def test_an_unknown_name_is_refused_unless_allowed(clip, tmp_path):
    clip.weights["adapter.weight"] = np.zeros(3, np.float32)
    folder = clip.hugging_face(tmp_path / "clip", "clip")
    refused(folder, "unknown adapter.weight")
    refused(folder, "unknown adapter.weight", allow=("adapter",))
    assert not pretrained.load(folder, allow=("adapter.*",)).missing


def test_a_missing_name_is_refused_unless_allowed(clip, tmp_path):
    del clip.weights["logit_scale"], clip.weights[BLOCK]
    folder = clip.hugging_face(tmp_path / "clip", "clip")
    refused(folder, f"missing {BLOCK}, logit_scale")
    refused(folder, f"missing {BLOCK}", allow=("logit_scale",))
    found = pretrained.load(folder, allow=("logit_scale", ".*fc1.*"))
    assert found.missing == ("image/blocks/mlp/up/kernel", "log_scale")


def test_another_shape_is_refused_with_its_name(clip, tmp_path):
    clip.weights[BLOCK] = clip.weights[BLOCK].T
    refused(clip.hugging_face(tmp_path / "clip", "clip"), rf"{BLOCK} has shape \(48, 96\), the configuration means \(96, 48\)")


def test_half_precision_widens_and_double_is_refused(clip, tmp_path):
    exact = clip.weights[BLOCK].astype(ml_dtypes.bfloat16)
    clip.weights[BLOCK] = exact
    found = pretrained.load(clip.hugging_face(tmp_path / "clip", "clip"))
    np.testing.assert_array_equal(found.params["image/blocks/mlp/up/kernel"][1], exact.T.astype(np.float32))
    assert found.dtypes == ("bfloat16", "float32")
    clip.weights[BLOCK] = exact.astype(np.float64)
    folder = clip.hugging_face(tmp_path / "clip", "clip")
    refused(folder, f"{BLOCK} is float64 and would become float32")
    assert pretrained.load(folder, allow=(BLOCK,)).params["image/blocks/mlp/up/kernel"].dtype == np.float32


@pytest.mark.parametrize(
    ("tower", "field", "value", "words"),
    [
        ("vision_config", "hidden_size", 64, "has shape"),
        ("vision_config", "num_hidden_layers", 3, "missing vision_model.encoder.layers.2"),
        ("vision_config", "num_hidden_layers", 1, "unknown vision_model.encoder.layers.1"),
        ("vision_config", "image_size", 64, "position_embedding.weight has shape"),
        ("vision_config", "image_size", 7, "patch_size 8 does not divide image_size 7"),
        ("vision_config", "num_channels", 1, "num_channels 1 is not supported"),
        ("vision_config", "hidden_act", "gelu_10", "hidden_act 'gelu_10' is not supported"),
        ("vision_config", "hidden_size", "wide", "hidden_size 'wide': a whole number"),
        ("text_config", "vocab_size", 99, "token_embedding.weight has shape"),
        ("text_config", "eos_token_id", 64, "eos_id 64 is not in a vocabulary of 64"),
    ],
)
def test_a_configuration_that_contradicts_the_weights_is_refused(clip, tmp_path, tower, field, value, words):
    clip.config[tower][field] = value
    refused(clip.hugging_face(tmp_path / "clip", "clip"), words)


def test_the_sign_of_transformers_for_the_largest_id_is_understood(clip, tmp_path):
    clip.config["text_config"]["eos_token_id"] = 2
    found = pretrained.load(clip.hugging_face(tmp_path / "clip", "clip")).layout
    assert found.text.pool == "argmax" and "largest id" in found.notes[0]


def test_weights_without_a_configuration_are_refused(clip, tmp_path):
    files.write_safetensors(tmp_path / "model.safetensors", clip.weights)
    refused(tmp_path, "the weights do not tell heads, activation and preprocessing")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "not JSON")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    refused(tmp_path, "model_type 'bert' is not supported")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"size": 32, "crop_size": 16, "do_center_crop": True}, "images of 16 pixels, and image_size 32"),
        ({"size": {"shortest_edge": 32}}, "not square"),
        ({"size": 40}, "images of 40 pixels"),
        ({"size": {"longest_edge": 32}}, "is not supported"),
        ({"size": 32, "crop_size": 32, "do_center_crop": True, "resample": 0}, "resample 0"),
        ({"size": 32, "do_normalize": False}, "do_normalize False"),
    ],
)
def test_preprocessing_that_cannot_be_done_is_refused(clip, tmp_path, content, words):
    folder = clip.hugging_face(tmp_path / "clip", "clip")
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    refused(folder, words)


def test_preprocessing_is_read(clip, tmp_path):
    folder = clip.hugging_face(tmp_path / "clip", "clip")
    content = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(content | {"image_mean": [0.1, 0.2, 0.3]}))
    seen = pretrained.load(folder).layout.preprocessing
    assert (seen.size, seen.resize, seen.resize_to, seen.interpolation) == (32, "shortest", 36, "bilinear")
    assert seen.mean == (0.1, 0.2, 0.3) and seen.std == (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.parametrize(
    ("written", "fill"), [({}, (0, 0, 0)), ({"fill_color": 127}, (127,) * 3), ({"fill_color": [1, 2, 3]}, (1, 2, 3))]
)
def test_padding_of_open_clip_is_read_and_written(oracles, tmp_path, written, fill):
    folder = Golden(oracles, "golden_clip_openai_keys_gelu").open_clip(tmp_path / "clip")
    content = json.loads((folder / "open_clip_config.json").read_text())
    content["preprocess_cfg"] |= {"resize_mode": "longest"} | written
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    found = pretrained.load(folder).layout
    assert found.preprocessing.resize == "longest" and found.preprocessing.fill == fill
    out = open_clip.write(found)[1]["open_clip_config.json"]["preprocess_cfg"]
    assert (out["resize_mode"], out["fill_color"]) == ("longest", written.get("fill_color", 0))
    with pytest.raises(InputError, match="longest: CLIPImageProcessor does not pad"):
        hugging_face.write(found)
    content["preprocess_cfg"]["fill_color"] = "red"
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    refused(folder, "fill_color 'red'")


@pytest.mark.parametrize("field", ["attentional_pool", "no_ln_pre", "something_new"])
def test_a_field_of_open_clip_that_changes_the_model_is_refused(oracles, tmp_path, field):
    golden = Golden(oracles, "golden_clip_openai_keys_gelu")
    golden.config["vision_cfg"][field] = True
    refused(golden.open_clip(tmp_path / "clip"), field)


@pytest.mark.parametrize("module", [hugging_face, open_clip])
@pytest.mark.parametrize(
    ("tower", "changes"),
    [("image", {"pool": "gap"}), ("image", {"registers": 2}), ("image", {"positions": "sincos2d", "class_token": "unpositioned"}),
     ("text", {"pool": "mean"}), ("image", {"qk_norm": "rms_norm"})],
)  # fmt: skip
def test_what_the_other_codebase_cannot_build_is_not_exported(clip, tmp_path, module, tower, changes):
    found = pretrained.load(clip.hugging_face(tmp_path / "clip", "clip")).layout
    text = dataclasses.replace(found.text, eos_id=63)
    found = dataclasses.replace(found, text=text)
    module.write(found)
    other = dataclasses.replace(found, **{tower: dataclasses.replace(getattr(found, tower), **changes)})
    with pytest.raises(InputError, match=rf"{tower}\.({'|'.join(changes)})|pool_type"):
        module.write(other)
    stem = dataclasses.replace(found.image, stem_depth=1, stem_channels=32)
    module.write(dataclasses.replace(found, image=stem))  # of a stem that it does not have
