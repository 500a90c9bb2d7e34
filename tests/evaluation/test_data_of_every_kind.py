"""Evaluators read every kind of source, with the classes that it brings: the numbers are those of our own shards."""

import io
import tarfile

import numpy as np
import pytest

from vlm_jax.data import images
from vlm_jax.errors import InputError
from vlm_jax.evaluation import linear_probe, multi_label, retrieval, zero_shot

from .conftest import NAMES, example

TEMPLATES = ["a photo of a {c}", "picture of {c}", "{c}"]


@pytest.fixture(scope="module")
def examples(data):
    """In the order of the shards."""
    return sorted(map(example, range(27)), key=lambda e: (int(e["key"][1:]) % 2, int(e["key"][1:])))


@pytest.fixture(scope="module")
def wanted(make_subject, data, classes):
    return zero_shot.ZeroShot(data=data, classes=classes, examples=0)(make_subject())


@pytest.fixture(scope="module")
def wds(tmp_path_factory, examples):
    root = tmp_path_factory.mktemp("wds")
    (root / "test").mkdir()
    (root / "classnames.txt").write_text("\n".join(NAMES))
    (root / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES))
    (root / "test" / "nshards.txt").write_text("1")
    vectors = []
    for e in examples:
        out = io.BytesIO()
        np.save(out, np.eye(len(NAMES), dtype=np.int64)[e["label"]])
        vectors.append(out.getvalue())
    with tarfile.open(root / "test" / "0.tar", "w") as tar:
        for i, (e, vector) in enumerate(zip(examples, vectors, strict=True)):
            text = "\n".join(e["captions"]).encode()
            for kind, content in (("png", e["image"]), ("cls", str(e["label"]).encode()), ("txt", text), ("npy", vector)):
                info = tarfile.TarInfo(f"s{i:07d}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(root)


def test_a_folder_of_clip_benchmark_needs_nothing_else(make_subject, wds, wanted, data):
    found = zero_shot.ZeroShot(data=wds, examples=0)(make_subject())
    assert found.metrics == wanted.metrics and found.note == wanted.note
    assert multi_label.MultiLabel(data=wds, examples=0)(make_subject()).metrics["any_correct_acc1"] == wanted.metrics["acc1"]
    metrics = retrieval.Retrieval(data=wds, examples=0)(make_subject()).metrics
    assert metrics == retrieval.Retrieval(data=data, examples=0)(make_subject()).metrics


def test_arrays_bring_names_and_a_file_their_templates(make_subject, examples, wanted, classes, tmp_path):
    pixels = np.stack([images.decode(e["image"]) for e in examples])
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.array([e["label"] for e in examples]), names=np.array(NAMES))
    (tmp_path / "templates.txt").write_text("\n".join(TEMPLATES))
    path = str(tmp_path / "a.npz")
    for file in (str(tmp_path / "templates.txt"), classes):
        assert zero_shot.ZeroShot(data=path, classes=file, examples=0)(make_subject()).metrics == wanted.metrics
    probe = linear_probe.LinearProbe(data=path, train=path)
    assert probe(make_subject()).metrics["acc1"] > wanted.metrics["acc1"]


def test_the_folders_of_images_are_their_classes(make_subject, examples, wanted, classes, tmp_path):
    for i, e in enumerate(examples):
        (tmp_path / e["name"]).mkdir(exist_ok=True)
        (tmp_path / e["name"] / f"{i:02d}.png").write_bytes(e["image"])
    with pytest.raises(InputError, match="in another order than their labels; 'black' is 0 there"):
        zero_shot.ZeroShot(data=str(tmp_path), classes=classes)(make_subject())
    (tmp_path / "templates.txt").write_text("\n".join(TEMPLATES))
    found = zero_shot.ZeroShot(data=str(tmp_path), classes=str(tmp_path / "templates.txt"), examples=0)(make_subject())
    assert found.metrics["acc1"] == pytest.approx(wanted.metrics["acc1"])
    assert found.tables["confusion"].rows == tuple(sorted(NAMES))
