import pickle

import msgpack
import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.data import records, sources


def test_a_record_comes_back_with_its_types():
    record = {
        "image": b"\x00\xff", "captions": ["a", "日本"], "label": 3, "share": 0.25, "none": None,
        "scene": {"boxes": [[1, 2], [3, 4]], "mask": np.arange(6, dtype=np.int16).reshape(2, 3)},
    }  # fmt: skip
    back = records.decode(records.encode(record))
    mask = back["scene"].pop("mask")
    np.testing.assert_array_equal(mask, record["scene"].pop("mask"))
    assert mask.dtype == np.int16
    assert back == record


def test_numpy_numbers_become_numbers():
    assert records.decode(records.encode({"label": np.int64(7), "on": np.bool_(True)})) == {"label": 7, "on": True}


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array(["a"]), np.array([None])])
def test_what_the_format_does_not_hold_is_refused(value):
    with pytest.raises(TypeError, match="a record holds"):
        records.encode({"value": value})


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", pickle.dumps({"a": 1}), msgpack.packb([1]), msgpack.packb({1: 2}), records.encode({"a": 1}) + b"x"]
)
def test_other_bytes_are_no_record(data):
    with pytest.raises(records.RecordError, match=r"records\.write"):
        records.decode(data)


def test_an_array_that_says_it_holds_objects_is_refused():
    header = msgpack.packb(["|O", [1]])
    with pytest.raises(records.RecordError, match="array of type object"):
        records.decode(msgpack.packb({"a": msgpack.ExtType(records.ARRAY, header + bytes(8))}))


def test_shards_are_written_round_robin_and_named_with_their_count(tmp_path):
    paths = records.write(str(tmp_path / "deep" / "set"), ({"key": f"k{i}"} for i in range(7)), 3)
    assert [p.rsplit("/", 1)[1] for p in paths] == [f"set-0000{i}-of-00003.array_record" for i in range(3)]
    assert [[e["key"] for e in sources.ArrayRecord([p])] for p in paths] == [["k0", "k3", "k6"], ["k1", "k4"], ["k2", "k5"]]
    assert len(list((tmp_path / "deep").iterdir())) == 3


def test_a_failed_run_leaves_nothing(tmp_path):
    def failing():
        yield {"key": "a"}
        raise RuntimeError("renderer broke")

    with pytest.raises(RuntimeError, match="renderer broke"):
        records.write(str(tmp_path / "set"), failing(), 1)
    assert list(tmp_path.iterdir()) == []


def test_an_older_data_set_stays_when_its_rewriting_fails(tmp_path):
    paths = records.write(str(tmp_path / "set"), [{"key": "old"}], 1)
    with pytest.raises(errors.InputError, match="0 records for 1 shards"):
        records.write(str(tmp_path / "set"), [], 1)
    assert sources.ArrayRecord(paths)[0]["key"] == "old"


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.InputError, match="cannot write there"):
        records.write(str(tmp_path / "file" / "set"), [{"key": "a"}], 1)
