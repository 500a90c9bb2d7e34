"""CIFAR's binary files."""

import pickle

import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.data import images, records, sources


def write(path, labels, pixels) -> str:
    """Labels uint8 [n, 1 or 2] and pixels uint8 [n, 32, 32, 3] as the files have them: planes of colours."""
    rows = np.concatenate([labels, pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)], axis=1)
    path.write_bytes(rows.astype(np.uint8).tobytes())
    return str(path)


@pytest.fixture
def pixels(noise):
    return np.stack([noise(i, 32, 32) for i in range(5)])


def test_cifar10_has_its_pixels_labels_and_names(tmp_path, pixels):
    for name, part in (("data_batch_1", slice(3)), ("data_batch_2", slice(3, 5))):
        write(tmp_path / f"{name}.bin", np.arange(5)[part, None], pixels[part])
    (tmp_path / "batches.meta.txt").write_text("\n".join([f"class {i}" for i in range(10)]) + "\n\n")
    source = sources.open_source(f"{tmp_path}/data_batch_{{1,2}}.bin")
    assert len(source) == 5 and source.classes is not None and len(source.classes.names) == 10
    for i in range(5):
        np.testing.assert_array_equal(images.decode(source[i]["image"]), pixels[i])
        assert (source[i]["label"], source[i]["label_name"]) == (i, f"class {i}")
    assert pickle.loads(pickle.dumps(source))[4] == source[4] and source.where(4) == f"{tmp_path}/data_batch_2.bin: image 1"


def test_cifar100_has_both_labels_and_a_foreign_one_is_a_bad_record(tmp_path, pixels):
    source = sources.open_source(write(tmp_path / "test.bin", np.array([[19, 99], [0, 100], [1, 2], [1, 2], [1, 2]]), pixels))
    assert (source[0]["label"], source[0]["coarse_label"], source.classes) == (99, 19, None)
    with pytest.raises(records.RecordError, match=r"test\.bin: image 1: label 100 of 100 classes"):
        source[1]


@pytest.mark.parametrize("size", [0, 3072, 3074 * 3 + 1])
def test_files_of_another_size_are_refused(tmp_path, size):
    (tmp_path / "model.bin").write_bytes(bytes(size))
    with pytest.raises(errors.InputError, match=rf"model\.bin: {size} bytes are no records of CIFAR-10 \(3073 each\) nor of CIFAR-100"):
        sources.open_source(str(tmp_path / "model.bin"))
