"""CLIP_benchmark's folders of tars, made here as its converter makes them."""

import io
import pickle
import shutil

import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.data import images, records, sources


def npy(values) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(values))
    return out.getvalue()


@pytest.fixture
def folder(tmp_path, write_tar, encode_image, noise):
    """Two tars of 3 + 2 images of three classes, lossless webp."""
    root = tmp_path / "wds_colours"
    (root / "test").mkdir(parents=True)
    (root / "classnames.txt").write_text("red\ngreen cyan\nblue\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na {c}\n")
    (root / "test" / "nshards.txt").write_text("2\n")
    for shard, part in enumerate(([0, 1, 2], [3, 4])):
        members = [(f"s{i:07d}.{kind}", data) for i in part for kind, data in
                   (("cls", str(i % 3).encode()), ("webp", encode_image(noise(i, 6, 6), "WEBP", lossless=True)))]  # fmt: skip
        write_tar(root / "test" / f"{shard}.tar", members)
    return root


def test_a_folder_is_its_test_split_with_names_and_templates(folder, noise):
    source = sources.open_source(str(folder))
    assert len(source) == 5
    assert [(e["key"], e["label"], e["label_name"]) for e in map(source.__getitem__, range(5))][3:] == [
        ("s0000003", 0, "red"), ("s0000004", 1, "green cyan"),
    ]  # fmt: skip
    np.testing.assert_array_equal(images.decode(source[4]["image"]), noise(4, 6, 6))
    assert source.classes.prompts()[1] == ["a photo of a green cyan.", "a green cyan"]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[4] == source[4] and copy.classes == source.classes and copy.fingerprint == source.fingerprint


def test_other_splits_are_named(folder):
    shutil.copytree(folder / "test", folder / "train")
    assert len(sources.open_source(f"{folder}/train/")) == 5
    assert sources.open_source(f"{folder}/train").classes.titles == ("red", "green cyan", "blue")
    shutil.rmtree(folder / "test")
    with pytest.raises(errors.InputError, match=r"has no split test; name one, .*wds_colours/train"):
        sources.open_source(str(folder))


def test_captions_are_one_a_line_and_need_no_names(tmp_path, write_tar, encode_image, noise):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "nshards.txt").write_text("1")
    text = "a cat.\nit sleeps, \r\n\n a caf\u00e9\n".encode()
    write_tar(tmp_path / "test" / "0.tar", [("s0.jpg", encode_image(noise(0, 6, 6), "JPEG")), ("s0.txt", text)])
    source = sources.open_source(str(tmp_path))
    assert source[0]["captions"] == ["a cat.", "it sleeps,", "a caf\u00e9"] and source.classes is None


def test_a_vector_names_several_classes(folder, write_tar, encode_image, noise):
    image = encode_image(noise(0, 6, 6))
    vectors = {"a": npy([1, 0, 1]), "b": npy(np.zeros(3, np.float32)), "c": npy([[1]]), "d": b"\x80\x04"}
    members = [(f"{k}.{kind}", data) for k, vector in vectors.items() for kind, data in (("png", image), ("npy", vector))]
    write_tar(folder / "test" / "0.tar", members)
    source = sources.open_source(str(folder))
    assert [source[i]["labels"] for i in range(2)] == [[0, 2], []]
    with pytest.raises(records.RecordError, match=r"0.tar: c: npy int64\[1, 1\]: must be a vector"):
        source[2]
    with pytest.raises(records.RecordError, match=r"0.tar: d: not a .npy"):
        source[3]


@pytest.mark.parametrize("text", ["", "two", "-1", "0", "99999999999", "\u0662", "2\n2"])
def test_a_number_of_tars_that_is_none_is_refused(folder, text):
    (folder / "test" / "nshards.txt").write_text(text)
    with pytest.raises(errors.InputError, match=r"nshards\.txt: .* is no number of tars"):
        sources.open_source(str(folder))


def test_missing_tars_and_blank_names_are_refused(folder):
    (folder / "test" / "nshards.txt").write_text("4")
    with pytest.raises(errors.InputError, match=r"test/2.tar: does not exist \(2 of 4 tars"):
        sources.open_source(str(folder))
    (folder / "test" / "nshards.txt").write_text("2")
    (folder / "classnames.txt").write_text("red\n\nblue\n")
    with pytest.raises(errors.InputError, match=r"names\[1\]"):
        sources.open_source(str(folder))
