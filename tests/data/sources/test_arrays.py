"""Arrays in .npz files: what is read, and what is refused."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.data import images, records, sources
from vlm_jax.data.sources import npz

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 7, 3), np.uint8)
LABELS = np.array([2, 0, 1, 1, 0, 2])
NAMES = np.array(["cat", "dog", "cow"])


def write(folder, name="a.npz", compress=False, **members) -> str:
    path = str(folder / name)
    (np.savez_compressed if compress else np.savez)(path, **members)
    return path


@pytest.mark.parametrize("compress", [False, True], ids=["stored", "deflated"])
def test_pixels_come_back_as_they_are(tmp_path, compress):
    source = sources.open_source(write(tmp_path, compress=compress, images=PIXELS, labels=LABELS, names=NAMES))
    assert len(source) == 6 and source.classes.titles == ("cat", "dog", "cow")
    for i in (5, 0, 3):
        example = source[i]
        np.testing.assert_array_equal(images.decode(example.pop("image")), PIXELS[i])
        assert example == {"key": str(i), "captions": [], "label": LABELS[i], "label_name": NAMES[LABELS[i]]}
        assert type(example["label"]) is int
    for outside in (6, -1):
        with pytest.raises(IndexError):
            source[outside]


@pytest.mark.parametrize("shape", [(6, 5, 7), (6, 5, 7, 1)])
def test_grey_pixels_have_three_equal_channels(tmp_path, shape):
    grey = PIXELS[..., 0].reshape(shape)
    source = sources.open_source(write(tmp_path, images=grey))
    decoded = images.decode(source[4]["image"])
    np.testing.assert_array_equal(decoded, np.repeat(grey[4].reshape(5, 7, 1), 3, 2))
    assert source.classes is None and source[4].keys() == {"key", "captions", "image"}


def test_encoded_images_captions_keys_and_several_labels(tmp_path, encode_image):
    files = [encode_image(pixels) for pixels in PIXELS]
    offsets = np.cumsum([0, *map(len, files)])
    columns = {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": offsets,
        "labels": np.eye(3, dtype=bool)[LABELS] | np.eye(3, dtype=bool)[0],
        "captions": np.array([["one", ""]] * 5 + [["one", "two"]]),
        "keys": np.array([f"k{i}" for i in range(6)]),
    }
    source = sources.open_source(write(tmp_path, **columns, names=NAMES))
    assert [source[i]["image"] for i in range(6)] == files
    assert [source[i]["labels"] for i in range(3)] == [[0, 2], [0], [0, 1]]
    assert (source[5]["captions"], source[0]["captions"], source[5]["key"]) == (["one", "two"], ["one"], "k5")
    assert sources.open_source(write(tmp_path, images=PIXELS, labels=NAMES[LABELS]))[0]["label"] == "cow"


def test_a_column_of_labels_as_keras_has_them_is_one_label_an_image(tmp_path):
    source = sources.open_source(write(tmp_path, images=PIXELS, labels=LABELS[:, None], names=NAMES))
    assert [source[i]["label"] for i in range(6)] == LABELS.tolist()


def test_files_follow_one_another_and_agree_on_names(tmp_path):
    write(tmp_path, "p-0.npz", images=PIXELS[:4], labels=LABELS[:4], names=NAMES)
    write(tmp_path, "p-1.npz", images=PIXELS[4:], labels=LABELS[4:], names=NAMES)
    source = sources.open_source(str(tmp_path / "p-{0..1}.npz"))
    assert [source[i]["label"] for i in range(6)] == LABELS.tolist()
    np.testing.assert_array_equal(images.decode(source[5]["image"]), PIXELS[5])
    assert source.where(5).endswith("p-1.npz: image 1")
    write(tmp_path, "p-1.npz", images=PIXELS[4:], labels=LABELS[4:], names=NAMES[::-1])
    with pytest.raises(errors.InputError, match="labels would mean other classes"):
        sources.open_source(str(tmp_path / "p-{0..1}.npz"))


@pytest.mark.parametrize("compress", [False, True], ids=["stored", "deflated"])
def test_another_process_reads_the_same(tmp_path, compress):
    source = sources.open_source(write(tmp_path, compress=compress, images=np.repeat(PIXELS, 300, 0), labels=np.repeat(LABELS, 300)))
    source[1]
    state = pickle.dumps(source)
    assert len(state) < 60_000, "the pixels stay in the file"
    copy = pickle.loads(state)
    assert copy[1700] == source[1700] and copy.fingerprint == source.fingerprint and copy.where(3) == source.where(3)


@pytest.mark.parametrize(
    "members,message",
    [
        ({"x_train": PIXELS}, r"a.npz: has \['x_train'\]; images, or jpeg .* and offsets are needed"),
        ({"images": PIXELS.transpose(0, 3, 1, 2).copy()}, r"channels come first, save images.transpose\(0, 2, 3, 1\)"),
        ({"images": PIXELS / 255}, r"images float64\[6, 5, 7, 3\]: must be uint8.*0 to 255"),
        ({"images": PIXELS.reshape(6, -1)}, "must be uint8"),
        ({"images": np.zeros((6, 5, 7, 4), np.uint8)}, "must be uint8"),
        ({"images": PIXELS[:0]}, "holds no images"),
        ({"images": np.zeros((6, 0, 7, 3), np.uint8)}, "an image has 1 to"),
        ({"images": np.asfortranarray(PIXELS)}, "ascontiguousarray"),
        ({"images": np.array([None] * 6)}, "nothing is unpickled"),
        ({"images": PIXELS, "labels": np.array([{}] * 6)}, "nothing is unpickled"),
        ({"images": PIXELS, "labels": LABELS[:5]}, r"labels int64\[5\]: must have one row for each of the 6"),
        ({"images": PIXELS, "labels": LABELS / 2}, "must be integers"),
        ({"images": PIXELS, "labels": LABELS, "names": NAMES[:2]}, "labels from 0 to 2: with 2 names they are 0 to 1"),
        ({"images": PIXELS, "labels": np.full((6, 3), 7)}, "they are 0 or 1"),
        ({"images": PIXELS, "labels": np.zeros((6, 2), int), "names": NAMES}, "3 names need 3 columns"),
        ({"images": PIXELS, "captions": LABELS}, "captions int64.*must be strings"),
        ({"images": PIXELS, "names": LABELS}, r"names int64\[6\]: must be strings"),
        ({"jpeg": PIXELS.ravel(), "offsets": np.array([0, 9, 5])}, "must not decrease"),
        ({"jpeg": PIXELS.ravel(), "offsets": np.array([0, 631])}, "end at 631 of 630 bytes"),
        ({"jpeg": PIXELS.ravel(), "offsets": np.array([2**63 + 1], np.uint64)}, "must not decrease, nor be negative"),
        ({"jpeg": PIXELS, "offsets": np.array([0, 5])}, "encoded images end to end"),
        ({"jpeg": PIXELS.ravel(), "offsets": np.array([0])}, "holds no images"),
    ],
)
def test_other_arrays_are_refused_by_name_and_shape(tmp_path, members, message):
    with pytest.raises(errors.InputError, match=message):
        sources.open_source(write(tmp_path, **members))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "LARGEST", 10**6)
    path = write(tmp_path, compress=True, images=np.zeros((100, 100, 100, 3), np.uint8))
    assert os.path.getsize(path) < 10_000
    read = []
    with monkeypatch.context() as patch, pytest.raises(errors.InputError, match=r"images brings .* to 3,000,128 bytes, more"):
        patch.setattr(zipfile.ZipFile, "read", lambda *a: read.append(a))
        patch.setattr(zipfile.ZipFile, "open", lambda *a: read.append(a))
        sources.open_source(path)
    assert not read
    path = write(tmp_path, images=PIXELS, labels=LABELS, names=np.array(["x" * 300_000]))
    with pytest.raises(errors.InputError, match="names brings what is held in memory to"):
        sources.open_source(path)


def npy(shape: str, values: bytes) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + values


@pytest.mark.parametrize(
    "members,message",
    [
        ([("images.npy", npy("(1000000000, 32, 32, 3)", b"xy"))], "2 bytes instead of 3072000000000"),
        ([("images.npy", npy("(1, 100000, 100000)", b""))], "instead of 10000000000"),
        ([("images.npy", npy("(1, 1, 1)", b"x")), ("images.npy", npy("(1, 1, 1)", b"y"))], "two members of one name"),
        ([("../images.npy", npy("(1, 1, 1)", b"x"))], r"has \['../images'\]"),
        ([("images.npy", pickle.dumps([1]))], "not a .npy"),
        ([("images", npy("(1, 1, 1)", b"x"))], "has no arrays"),
    ],
    ids=["size", "side", "twice", "climbs", "pickle", "other"],
)
def test_hostile_members_are_refused(tmp_path, members, message):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file, pytest.warns(UserWarning) if message.startswith("two") else open(os.devnull):
        for name, data in members:
            file.writestr(name, data)
    before = sorted(tmp_path.parent.iterdir())
    with pytest.raises(errors.InputError, match=message):
        sources.open_source(str(tmp_path / "a.npz"))
    assert sorted(tmp_path.parent.iterdir()) == before


@pytest.mark.parametrize("data", [b"", b"hello" * 100, b"PK\x03\x04" * 20], ids=["empty", "text", "start"])
def test_no_zip_at_all_is_refused(tmp_path, data):
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(errors.InputError, match=r"a.npz: File is not a zip file"):
        sources.open_source(str(tmp_path / "a.npz"))


def test_damage_anywhere_is_refused_or_read_as_other_pixels(tmp_path):
    """Random bytes are changed: an InputError, or examples of the known form."""
    rng, refused = np.random.default_rng(1), 0
    for compress in (False, True):
        whole = open(write(tmp_path, compress=compress, images=PIXELS, labels=LABELS, names=NAMES), "rb").read()
        for _ in range(150):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 4):
                data[place] = rng.integers(256)
            (tmp_path / "b.npz").write_bytes(data)
            try:
                source = sources.open_source(str(tmp_path / "b.npz"))
                assert all(images.decode(source[i]["image"]).ndim == 3 for i in range(len(source)))
            except errors.InputError:
                refused += 1
    assert 50 < refused < 300


def test_a_file_that_shrinks_under_a_run_is_noticed(tmp_path):
    path = write(tmp_path, images=PIXELS)
    source = sources.open_source(path)
    os.truncate(path, 400)
    with pytest.raises(records.RecordError, match=r"a.npz: image 5: image ends after \d+ of 105 bytes"):
        source[5]


def test_a_fingerprint_follows_the_data(tmp_path):
    a = sources.open_source(write(tmp_path, images=PIXELS)).fingerprint
    assert a == sources.open_source(write(tmp_path, images=PIXELS)).fingerprint
    assert a != sources.open_source(write(tmp_path, images=PIXELS[:5])).fingerprint


def test_cifar10_has_its_counts(shared_data):
    for name, count in (("test3k", 3000), ("train12k", 12_000)):
        source = sources.open_source(str(shared_data / "cifar10" / f"{name}.npz"))
        assert len(source) == count and len(source.classes.names) == 10
        assert images.decode(source[count - 1]["image"]).shape == (32, 32, 3)
        plain = np.load(io.BytesIO((shared_data / "cifar10" / f"{name}.npz").read_bytes()))
        assert [source[i]["label"] for i in range(0, count, 97)] == plain["labels"][::97].tolist()
        a, b = plain["offsets"][777:779]
        assert source[777]["image"] == plain["jpeg"][a:b].tobytes()
