"""Readers of weights: every format and dtype as written, and one clear line for what is damaged or dangerous."""

import json
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from vlm_jax.errors import InputError
from vlm_jax.models.convert import files

WEIGHTS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.float16([1.5, 65504, 6e-8]),
    "brain": np.array([1.5, 3e38, 1e-38], ml_dtypes.bfloat16),
    "scalar": np.full((), 3.0, np.float32),
}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape
        np.testing.assert_array_equal(found[name], x)


def test_safetensors_keep_every_dtype(tmp_path):
    files.write_safetensors(tmp_path / "model.safetensors", WEIGHTS, format="pt")
    same(files.read(files.locate(tmp_path)), WEIGHTS)


def sharded(folder, **changes):
    parts = {"model-1.safetensors": ("a", "half"), "model-2.safetensors": ("brain", "scalar")}
    for file, names in parts.items():
        files.write_safetensors(folder / file, {name: WEIGHTS[name] for name in names})
    places = {name: file for file, names in parts.items() for name in names} | changes
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def test_shards_are_read_through_their_index(tmp_path):
    same(files.read(files.locate(sharded(tmp_path))), WEIGHTS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"a": "model-2.safetensors"}, "disagree on a"),
        ({"more": "model-3.safetensors"}, "model-3.safetensors: no such file"),
        ({"a": "../model-1.safetensors"}, "not a file beside it"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        files.read(files.locate(sharded(tmp_path, **changes)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_keeps_every_dtype(tmp_path, save):
    save(tmp_path / "model.npz", **WEIGHTS)
    same(files.read(tmp_path / "model.npz"), WEIGHTS)


@pytest.mark.parametrize("cut", [1, 100, 340])
def test_a_truncated_safetensors_is_one_line(tmp_path, cut):
    path = tmp_path / "model.safetensors"
    files.write_safetensors(path, WEIGHTS)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InputError, match=r"not a whole safetensors file .* download it again") as error:
        files.read(path)
    assert "\n" not in str(error.value)


def test_a_truncated_npz_is_one_line(tmp_path):
    path = tmp_path / "model.npz"
    np.savez(path, **WEIGHTS)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"not a whole npz file .* download it again"):
        files.read(path)


class Marker:
    """Leaves a trace when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_in_an_npz_is_refused_and_not_run(tmp_path):
    path = tmp_path / "model.npz"
    np.savez(path, a=np.array([Marker(tmp_path / "ran")], dtype=object))
    with pytest.raises(InputError, match="pickled objects, which can run code; refused"):
        files.read(path)
    assert not (tmp_path / "ran").exists()


def test_a_small_npz_that_unpacks_to_a_large_one_is_refused(tmp_path):
    path = tmp_path / "model.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**25,)})
        for _ in range(128):
            file.write(bytes(2**20))
    with pytest.raises(InputError, match="bytes that unpack to 134,217,"):
        files.read(path)


def test_an_npz_whose_header_lies_about_its_size_is_refused(tmp_path):
    path = tmp_path / "model.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("a.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)})
    with pytest.raises(InputError, match="has another size"):
        files.read(path)


def test_pickles_of_pytorch_need_pytorch(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match="torch is not installed; take the safetensors file"):
        files.read(files.locate(tmp_path))


def test_an_archive_of_torchscript_is_refused_with_the_conversion(tmp_path):
    path = tmp_path / "RN50.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("RN50/data.pkl", "RN50/constants.pkl", "RN50/code/__torch__/multimodal/model.py"):
            archive.writestr(name, b"\x80\x02}q\x00.")
    with pytest.raises(InputError, match=r"TorchScript archive, .*jit\.load\('RN50\.pt', 'cpu'\)\.state_dict\(\)") as error:
        files.read(path)
    assert "\n" not in str(error.value)


def test_a_path_without_weights_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file or directory"):
        files.locate(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no file of weights"):
        files.locate(tmp_path)
    for name in ("a.npz", "b.npz"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"several files of weights \(a.npz, b.npz\)"):
        files.locate(tmp_path)
