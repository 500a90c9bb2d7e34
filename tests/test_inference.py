"""Embeddings for users: the same for every form of a picture, those of the evaluators, and clear words for what is none."""

import io
import re
import runpy
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from vlm_jax import inference, train
from vlm_jax.data import sources
from vlm_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
RECIPE = str(Path(__file__).parent / "tiny_recipe.py")


@pytest.fixture(scope="module")
def run(tiny_world, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    data = [
        *("--data.train", f"{tiny_world}/train-*.array_record", "--data.val", f"{tiny_world}/val-*.array_record"),
        *("--data.tokenizer.path", f"{tiny_world}/tokenizer.model", "--evaluators.held-out.classes", f"{tiny_world}/classes.json"),
        *("--evaluators.held-out.data", f"{tiny_world}/held_out-*.array_record", "--workdir", str(workdir)),
    ]
    assert train.main([RECIPE, *data, "--steps", "3", "--optimizer.warmup", "1", "--save-every", "0"]) == 0
    return workdir


@pytest.fixture(scope="module")
def model(run):
    return inference.load(run)


@pytest.fixture(scope="module")
def records(tiny_world):
    source = sources.open_source(f"{tiny_world}/val-*.array_record")
    return [source[i] for i in range(5)]


def test_every_form_of_a_picture_has_the_same_embedding(model, records, tmp_path):
    encoded = [record["image"] for record in records]
    want = model.embed_images(encoded)
    assert want.shape == (5, 16) and want.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(want, axis=1), 1, rtol=1e-5)
    for i, data in enumerate(encoded):
        (tmp_path / f"{i}.png").write_bytes(data)
    pillow = [PIL.Image.open(io.BytesIO(data)) for data in encoded]
    forms = [
        [str(tmp_path / f"{i}.png") for i in range(5)],
        [tmp_path / f"{i}.png" for i in range(5)],
        pillow,
        [np.asarray(image.convert("RGB")) for image in pillow],
    ]
    for form in forms:
        np.testing.assert_array_equal(model.embed_images(form), want)


def test_embeddings_are_those_of_the_evaluators_in_any_batch(model, run, records, tiny_world):
    source = sources.open_source(f"{tiny_world}/val-*.array_record")
    encoded, texts = [record["image"] for record in records], [record["captions"][0] for record in records]
    small = inference.load(run / "checkpoints" / "3", batch_size=8)
    assert small.step == 3
    for other in (model, small):
        np.testing.assert_allclose(other.embed_images(encoded), model.subject.embed_records(source, 5), atol=1e-6)
        np.testing.assert_allclose(other.embed_texts(texts), model.subject.embed_texts(texts), atol=1e-6)


def test_probabilities_are_a_softmax_over_the_texts(model, records):
    encoded, texts = [record["image"] for record in records], ["a red circle", "a blue star", "a green ring"]
    found = model.probabilities(encoded, texts)
    logits = model.scale * model.embed_images(encoded) @ model.embed_texts(texts).T
    np.testing.assert_allclose(found, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-5)
    assert model.scale == pytest.approx(10, rel=0.02)


def test_raw_and_averaged_weights_differ(run, model, records):
    encoded = [record["image"] for record in records]
    raw = inference.load(run, weights="raw").embed_images(encoded)
    assert np.abs(raw - model.embed_images(encoded)).max() > 1e-4


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (["nowhere.png"], "picture nowhere.png: .*No such file"),
        ([b"no image"], r"picture 0 \(bytes\): image of 8 bytes cannot be decoded"),
        ([np.zeros((4, 4))], r"picture 0 \(ndarray\): an array of float64 \[4, 4\]; give uint8 \[h, w, 3\]"),
        ([3], r"picture 0 \(int\): give a file, bytes"),
        ("photo.jpg", r"pictures 'photo\.jpg': give a list"),
        ([], "nothing to embed"),
    ],
)
def test_what_is_no_picture_is_named(model, pictures, message):
    with pytest.raises(InputError, match=message):
        model.embed_images(pictures)


def test_what_is_no_list_of_texts_is_named(model):
    for texts in ("a red circle", [3]):
        with pytest.raises(InputError, match=r"texts .*: give a list of strings"):
            model.embed_texts(texts)


def test_the_document_s_program_runs(run, records, tmp_path, monkeypatch, capsys):
    document = (ROOT / "docs" / "inference.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    assert programs
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(records[0]["image"])
    (tmp_path / "other.png").write_bytes(records[1]["image"])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(run)
    (tmp_path / "program.py").write_text("\n".join(programs))
    runpy.run_path("program.py")
    assert "a red circle" in capsys.readouterr().out
