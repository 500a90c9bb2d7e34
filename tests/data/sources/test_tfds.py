"""TensorFlow Datasets without TensorFlow: a builder writes a data set into a folder of the test."""

import io
import json
import os
import pickle
import shutil
import sys

import numpy as np
import pytest
from etils import epath

from vlm_jax import errors
from vlm_jax.data import images, records, sources
from vlm_jax.data.sources import tfds as tfds_source

NAMES = ["cat", "dog", "cow"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, encode_image, noise):
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")

    class TinyPairs(tfds.core.GeneratorBasedBuilder):
        pkg_dir_path = epath.Path(folder)
        VERSION = tfds.core.Version("1.2.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=NAMES),
                "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=NAMES)),
                "captions": tfds.features.Sequence({"text": tfds.features.Text(), "id": np.int64}),
                "id": np.int64,
                "file_name": tfds.features.Text(),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(3), "test": self._generate_examples(8)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {
                    "image": io.BytesIO(encode_image(noise(i, 6, 5))),
                    "label": NAMES[i % 3],
                    "labels": [NAMES[i % 3], "cow"],
                    "captions": [{"text": f"a thing {i}", "id": 1}, {"text": "caf\u00e9", "id": 2}],
                    "id": i,
                    "file_name": f"{i}.png",
                }

    TinyPairs(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def source(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    return sources.open_source("tfds:tiny_pairs/test")


def test_features_become_the_fields_of_examples(source, noise):
    assert len(source) == 8 and source.classes.titles == tuple(NAMES)
    found = sorted((source[i] for i in range(8)), key=lambda e: e["id"])
    for i, example in enumerate(found):
        np.testing.assert_array_equal(images.decode(example["image"]), noise(i, 6, 5))
        assert example["captions"] == [f"a thing {i}", "caf\u00e9"]
        assert (example["label"], example["label_name"], example["labels"]) == (i % 3, NAMES[i % 3], [i % 3, 2])
        assert (example["id"], example["file_name"]) == (i, f"{i}.png")
    assert [source[i]["key"] for i in range(8)] == [str(i) for i in range(8)]
    assert "tensorflow" not in sys.modules or not getattr(sys.modules["tensorflow"], "__file__", None)
    for outside in (8, -1):
        with pytest.raises(IndexError):
            source[outside]


def test_versions_folders_and_parts_of_splits_have_names(source, data_dir):
    whole = [source[i]["id"] for i in range(8)]
    for pattern in ("tfds:tiny_pairs:1.2.0/test[2:5]", f"tfds:{data_dir}/tiny_pairs/1.2.0/test[2:5]"):
        part = sources.open_source(pattern)
        assert [part[i]["id"] for i in range(len(part))] == whole[2:5]
        assert part.fingerprint != source.fingerprint
    assert len(sources.open_source("tfds:tiny_pairs/train+test")) == 11


def test_another_process_reads_the_same(source):
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[5] == source[5] and copy.fingerprint == source.fingerprint and copy.where(5) == source.where(5)


@pytest.mark.parametrize(
    "pattern,message",
    [
        ("tfds:tiny_pairs", "name a data set and its split, tfds:cifar10/test"),
        ("tfds:tiny_pairs/", "name a data set and its split"),
        ("tfds:/test", "name a data set"),
        ("tfds:../../etc/test", "is no data set's name and no folder"),
        ("tfds:tiny_pairs/val", "cannot be opened .*val"),
        ("tfds:tiny_pairs:9.9.9/test", "has the versions 1.2.0, not 9.9.9"),
        ("tfds:cifar10/test", "not prepared in .*`tfds build cifar10 --file_format=array_record`, or set TFDS_DATA_DIR"),
        ("tfds:tiny_pairs/test[5:5]", "holds no records|cannot be opened"),
    ],
)
def test_what_is_not_there_is_refused_with_the_way_to_it(source, pattern, message):
    with pytest.raises(errors.InputError, match=message):
        sources.open_source(pattern)


@pytest.fixture
def changed(source, data_dir, tmp_path, monkeypatch):
    """A copy whose descriptions are changed: (file name, change of its JSON) -> pattern."""

    def change(name, function) -> str:
        shutil.copytree(data_dir / "tiny_pairs", tmp_path / "tiny_pairs", dirs_exist_ok=True)
        path = tmp_path / "tiny_pairs" / "1.2.0" / name
        content = json.loads(path.read_text())
        function(content)
        path.write_text(json.dumps(content))
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        return "tfds:tiny_pairs/test"

    return change


def test_records_of_tensorflow_are_refused_with_the_conversion(changed):
    pattern = changed("dataset_info.json", lambda info: info.update(fileFormat="tfrecord"))
    with pytest.raises(errors.InputError, match=r"`tfds convert_format --dataset_version_dir=.*1\.2\.0 --out_file_format=array_record"):
        sources.open_source(pattern)


def test_a_description_imports_nothing_from_elsewhere(changed, tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))

    def strange(features):
        features["featuresDict"]["features"]["id"]["pythonClassName"] = "stranger.Feature"

    pattern = changed("features.json", strange)
    with pytest.raises(errors.InputError, match=r"wants the program 'stranger.Feature', which is not imported"):
        sources.open_source(pattern)
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr(tfds_source, "_check", lambda *_: None)
    with pytest.raises(errors.InputError):
        sources.open_source(pattern)
    assert (tmp_path / "ran").exists(), "it would have"


def test_data_without_an_image_are_refused(changed):
    pattern = changed("features.json", lambda f: f["featuresDict"]["features"].pop("image"))
    with pytest.raises(errors.InputError, match="has no image, only captions, "):
        sources.open_source(pattern)


def test_missing_and_damaged_files_are_named(changed, tmp_path):
    pattern = changed("features.json", lambda f: None)
    (shard,) = [path for path in (tmp_path / "tiny_pairs" / "1.2.0").iterdir() if "test.array_record" in path.name]
    opened = sources.open_source(pattern)
    data = bytearray(shard.read_bytes())
    data[200:260] = os.urandom(60)
    shard.write_bytes(data)
    with pytest.raises(records.RecordError, match=r"1\.2\.0: test record \d: damaged"):
        [opened[i] for i in range(8)]
    shard.unlink()
    with pytest.raises(errors.InputError, match=r"does not exist|cannot be opened"):
        sources.open_source(pattern)
    (tmp_path / "tiny_pairs" / "1.2.0" / "features.json").write_text("{")
    with pytest.raises(errors.InputError, match=r"features\.json: cannot be read"):
        sources.open_source(pattern)
