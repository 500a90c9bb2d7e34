"""Parquet files and saved data sets."""

import json
import pickle

import pyarrow as pa
import pytest

from vlm_jax import errors
from vlm_jax.data import records, sources
from vlm_jax.data.sources import columnar

IMAGES = [b"picture %d" % i for i in range(10)]


def test_columns_of_other_names_are_fields_and_labels_get_their_names(tmp_path, write_parquet):
    features = {"image": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    table = {
        "kind": [0, 1] * 5, "image": [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(IMAGES)],
        "caption": [["one", " ", "two"]] * 10, "score": [0.5] * 10, "none": [None] * 10,
    }  # fmt: skip
    source = sources.open_source(write_parquet(tmp_path / "a.parquet", table, features))
    assert source.classes is not None and source.classes.titles == ("cat", "dog")
    assert source[7] == {
        "key": "7.png", "image": IMAGES[7], "captions": ["one", "two"], "label": 1, "label_name": "dog", "score": 0.5, "none": None,
    }  # fmt: skip


def test_what_img2dataset_writes_as_parquet_is_read(tmp_path, write_parquet):
    told = {"key": [f"{i:09d}" for i in range(10)], "jpg": IMAGES, "caption": ["x"] * 10, "status": ["success"] * 10, "url": ["u"] * 10}
    found = sources.open_source(write_parquet(tmp_path / "00000.parquet", told))[9]
    assert (found["key"], found["image"], found["captions"], found["status"]) == ("000000009", IMAGES[9], ["x"], "success")


def test_rows_come_from_anywhere_and_few_groups_are_kept(tmp_path, write_parquet, monkeypatch, caplog):
    for name, part in (("a", IMAGES[:7]), ("b", IMAGES[7:])):
        write_parquet(tmp_path / f"{name}.parquet", {"image": part, "text": ["t"] * len(part)}, rows=2)
    monkeypatch.setattr(columnar, "KEPT", 10)
    source = sources.open_source(str(tmp_path / "*.parquet"))
    assert "6 row groups of 0 MB: in shuffled order each example reads a whole one; to train, data/to_array_record.py" in caplog.text
    order = [3, 9, 0, 6, 7, 3, 2, 8]
    assert [source[i]["image"] for i in order] == [IMAGES[i] for i in order]
    assert len(source._loaded) == 2 and source.where(8) == f"{tmp_path}/b.parquet: row 1"
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 10 and copy[9] == source[9] and copy.fingerprint == source.fingerprint
    for outside in (-1, 10):
        with pytest.raises(IndexError):
            source[outside]


def test_a_sequence_of_rows_reads_each_group_once(tmp_path, write_parquet, monkeypatch):
    source = sources.open_source(write_parquet(tmp_path / "a.parquet", {"image": IMAGES}, rows=3))
    read, load = [], source._load
    monkeypatch.setattr(source, "_load", lambda shard, group: read.append(group) or load(shard, group))
    assert [source[i]["image"] for i in range(10)] == IMAGES and read == [0, 1, 2, 3]


def test_rows_without_an_image_or_with_other_captions_are_bad_records(tmp_path, write_parquet):
    table = {"image": [b"i", None, b"i"], "captions": [["one"], ["two"], [None]]}
    source = sources.open_source(write_parquet(tmp_path / "a.parquet", table))
    assert source[0]["captions"] == ["one"]
    for place, message in ((1, "has no image"), (2, "are no text")):
        with pytest.raises(records.RecordError, match=rf"a\.parquet: row {place}: .*{message}"):
            source[place]


def test_flipped_bytes_are_bad_records_or_noticed_at_once(tmp_path, write_parquet):
    whole = open(write_parquet(tmp_path / "a.parquet", {"image": IMAGES}), "rb").read()
    outcomes = set()
    for place in range(4, len(whole), 29):
        data = bytearray(whole)
        data[place] ^= 255
        (tmp_path / "b.parquet").write_bytes(data)
        try:
            source = sources.open_source(str(tmp_path / "b.parquet"))
            for i in range(len(source)):
                try:
                    outcomes.add(type(source[i]["image"]))
                except records.RecordError:
                    outcomes.add("bad record")
        except errors.InputError:
            outcomes.add("refused")
    assert outcomes <= {bytes, "bad record", "refused"} and "refused" in outcomes


@pytest.mark.parametrize(
    "table,options,message",
    [
        ({"URL": ["http://x"], "TEXT": ["x"]}, "", "--input_format parquet --url_col URL --caption_col TEXT"),
        ({"picture": [b"i"]}, "", r"name it, '.*a\.parquet#image=COLUMN'\. It has picture"),
        ({"image": [b"i"]}, "#caption=alt", "has no column 'alt'; it has image"),
        ({"image": [[1, 2]]}, "", "column 'image' is of type list<.*>; an image is its encoded bytes"),
        ({"image": pa.array([], pa.binary())}, "", "holds no rows"),
    ],
    ids=range(5),
)
def test_other_tables_are_refused(tmp_path, write_parquet, table, options, message):
    with pytest.raises(errors.InputError, match=message):
        sources.open_source(write_parquet(tmp_path / "a.parquet", table) + options)


def test_what_is_no_whole_file_or_another_table_is_refused(tmp_path, write_parquet):
    whole = open(write_parquet(tmp_path / "a.parquet", {"image": IMAGES}), "rb").read()
    for data in (b"", b"PAR1", whole[: len(whole) // 2]):
        (tmp_path / "b.parquet").write_bytes(data)
        with pytest.raises(errors.InputError, match=r"b\.parquet: not whole, or of another form .*; copy it again") as error:
            sources.open_source(str(tmp_path / "b.parquet"))
        assert "\n" not in str(error.value)
    write_parquet(tmp_path / "b.parquet", {"img": IMAGES})
    with pytest.raises(errors.InputError, match="has other columns than"):
        sources.open_source(str(tmp_path / "*.parquet"))


def test_a_saved_data_set_is_mapped_and_its_splits_are_named(tmp_path, write_saved):
    write_saved(tmp_path / "both" / "train", {"image": IMAGES, "text": ["t"] * 10})
    source = sources.open_source(str(tmp_path / "both" / "train"))
    assert [source[i]["image"] for i in (9, 0, 5)] == [IMAGES[i] for i in (9, 0, 5)] and pickle.loads(pickle.dumps(source))[3] == source[3]
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(errors.InputError, match=r"has the splits train; name one, .*/both/train"):
        sources.open_source(str(tmp_path / "both"))
    state = tmp_path / "both" / "train" / "state.json"
    for content in ("{", "{}", json.dumps({"_data_files": [{"filename": "../x.arrow"}]}), json.dumps({"_data_files": []})):
        state.write_text(content)
        with pytest.raises(errors.InputError, match=r"state\.json: not as `datasets` saves it"):
            sources.open_source(str(tmp_path / "both" / "train"))


def test_parquet_may_lie_in_a_store(tmp_path, write_parquet):
    import fsspec

    store = fsspec.filesystem("memory")
    with store.open("/set/a.parquet", "wb") as file, open(write_parquet(tmp_path / "a.parquet", {"image": IMAGES}), "rb") as local:
        file.write(local.read())
    source = sources.open_source("memory://set/a.parquet")
    assert [source[i]["image"] for i in (8, 1)] == [IMAGES[8], IMAGES[1]]
    store.store.clear()
