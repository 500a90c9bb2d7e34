import json
import os
import pickle
import shutil

import pytest

from vlm_jax import errors
from vlm_jax.data import records, sources


@pytest.fixture
def files(tmp_path):
    for name in ("t-00008.tar", "t-00009.tar", "t-00010.tar", "u-9.tar", "u-10.tar", "[1].tar"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    "pattern,names",
    [
        ("t-{00008..00010}.tar", ["t-00008.tar", "t-00009.tar", "t-00010.tar"]),
        ("u-{9..10}.tar", ["u-9.tar", "u-10.tar"]),
        ("{u-10,t-00009}.tar", ["u-10.tar", "t-00009.tar"]),
        ("t-000{08..09}.tar::D/u-9.tar", ["t-00008.tar", "t-00009.tar", "u-9.tar"]),
        ("t-{0,0}00{1,2}0.tar", None),
        ("t-*.tar", ["t-00008.tar", "t-00009.tar", "t-00010.tar"]),
        ("u-[0-9].tar", ["u-9.tar"]),
        ("[1].tar", ["[1].tar"]),
        ("{t,u}-?.tar", None),
    ],
)
def test_patterns_name_files_in_order(files, pattern, names):
    pattern = f"{files}/" + pattern.replace("D/", f"{files}/")
    if names is None:
        with pytest.raises(errors.InputError):
            sources.expand(pattern)
    else:
        assert sources.expand(pattern) == [f"{files}/{name}" for name in names]


@pytest.mark.parametrize(
    "pattern,message",
    [
        ("", "a pattern is empty"),
        ("D/u-9.tar::", "a pattern is empty"),
        ("D/t-{00008..00012}.tar", r"train .*/t-00011\.tar \(and 1 more of 5\): does not exist"),
        ("D/u-{10..9}.tar", r"the range \{10\.\.9\} is empty; count upwards, \{9\.\.10\}"),
        ("D/u-{}.tar", r"\{\} is neither a range"),
        ("D/u-{9}.tar", r"\{9\} is neither a range"),
        ("D/u-{9..tar", r"a \{ without its \}"),
        ("D/u-9}.tar", r"a \} without its \{"),
        ("D/u-{a,{b,c}}.tar", "braces cannot be nested"),
        ("D/v-*.tar", r"v-\*\.tar: matches no file"),
        ("D", "is a folder, not a shard"),
        ("D/u-9.tar::D/u-{9..10}.tar", r"u-9\.tar: named twice"),
    ],
)
def test_patterns_that_cannot_be_met_name_the_value(files, pattern, message):
    with pytest.raises(errors.InputError, match=message):
        sources.expand(pattern.replace("D", str(files)), "train")


def test_the_home_folder_is_known(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    assert sources.expand("~/u-9.tar") == [f"{files}/u-9.tar"]


@pytest.mark.parametrize(
    "name,message",
    [
        ("a.tgz", r"a\.tgz: .*no random access; unpack it: `gunzip .*a\.tgz`"),
        ("a.tar.gz", "unpack it: `gunzip"),
        ("a.csv.gz", "unpack it: `gunzip"),
        ("a.tfrecord-00000-of-00002", "no random access without TensorFlow; tfds:FOLDER"),
        ("a.jpg", "an image; name the folder that it is in"),
        ("a.pkl", "nothing is unpickled"),
        ("a.md", r"none of \.tar, \.array_record, \.parquet, .*\.bin$"),
    ],
)
def test_other_suffixes_are_refused(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(errors.InputError, match=message):
        sources.open_source(str(tmp_path / name))


@pytest.mark.parametrize("suffix", "tar array_record parquet csv tsv jsonl json npz bin".split())
@pytest.mark.parametrize("content", [None, b"", b"\0" * 600, b"<html>404</html>"], ids=["absent", "empty", "zeros", "html"])
def test_no_kind_takes_what_is_no_data(tmp_path, suffix, content):
    path = tmp_path / f"a.{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(errors.InputError) as error:
        sources.open_source(str(path), "train")
    assert str(path) in str(error.value) and "\n" not in str(error.value) and not isinstance(error.value, records.RecordError)


def test_two_kinds_of_shards_in_one_source_are_refused(tmp_path, pair_tars):
    (path,) = records.write(str(tmp_path / "a"), [{"key": "x"}], 1)
    with pytest.raises(errors.InputError, match="give one kind"):
        sources.open_source(f"{pair_tars}::{path}")


def test_tars_are_examples_in_order_over_shards(pair_tars, noise):
    source = sources.open_source(pair_tars)
    assert len(source) == 37
    example = source[30]
    assert example["key"] == "00030"
    assert example["captions"] == [f"a pink thing 30 {word}" for word in ("here", "there", "everywhere")]
    assert example["group"] == 0
    assert example["image"][:2] == b"\xff\xd8"
    assert [source[i]["key"] for i in range(37)] == [f"{i:05d}" for i in range(37)]
    assert source.where(30).endswith("pairs-00001.tar: 00030")
    for outside in (37, -1):
        with pytest.raises(IndexError):
            source[outside]


def test_captions_come_from_json_or_txt_and_labels_from_cls(tmp_path, write_tar):
    members = {
        "a": {"json": b'{"caption": "one"}'},
        "b": {"json": b'{"captions": ["one", "two"]}', "txt": b"three"},
        "c": {"json": b'{"width": 3}', "txt": "café".encode()},
        "d": {"txt": b""},
        "e": {"cls": b"7\n"},
        "f": {"json": b'["one", "two"]', "txt": b"three"},
    }
    listed = [(f"{k}.{ext}", data) for k, m in members.items() for ext, data in (("jpg", b"image"), *m.items())]
    source = sources.WebDataset([write_tar(tmp_path / "a.tar", listed)])
    assert [source[i]["captions"] for i in range(6)] == [["one"], ["one", "two"], ["café"], [], [], ["one", "two"]]
    assert source[2]["width"] == 3
    assert source[4]["label"] == 7


def test_the_tars_of_img2dataset_are_read_as_they_are(tmp_path, write_tar, encode_image, noise):
    """A tar with a table and counts beside it; what was not downloaded is in the table only, or has no image."""
    members = []
    for i in range(6):
        told = {"caption": f"picture {i}", "url": f"http://x/{i}.jpg", "key": f"{i:09d}", "status": "success", "error_message": None,
                "width": 8, "height": 8, "exif": "{}", "sha256": "0"}  # fmt: skip
        failed = i == 4
        members += [] if failed else [(f"{i:09d}.jpg", encode_image(noise(i, 8, 8), "JPEG"))]
        members += [(f"{i:09d}.txt", told["caption"].encode())]
        told |= {"status": "failed_to_download", "error_message": "HTTP Error 404"} if failed else {}
        members += [(f"{i:09d}.json", json.dumps(told).encode())]
    for shard in range(2):
        write_tar(tmp_path / f"{shard:05d}.tar", [(name.replace("00000000", f"0000{shard}000"), data) for name, data in members])
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"beside")
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    for pattern in (str(tmp_path), f"{tmp_path}/*.tar", f"{tmp_path}/{{00000..00001}}.tar"):
        source = sources.open_source(pattern)
        assert [source[i]["captions"][0] for i in range(len(source))] == [f"picture {i}" for i in (0, 1, 2, 3, 5)] * 2
    assert (source[9]["key"], source[9]["status"], source[9]["width"]) == ("000010005", "success", 8)


def test_a_json_cannot_take_the_place_of_key_or_image(tmp_path, write_tar):
    text = json.dumps({"caption": "c", "key": "other", "image": "gone"}).encode()
    example = sources.WebDataset([write_tar(tmp_path / "a.tar", [("x.jpg", b"image"), ("x.json", text)])])[0]
    assert (example["key"], example["image"]) == ("x", b"image")


@pytest.mark.parametrize("extension,data", [("json", b"{"), ("json", b"[1]"), ("json", b"\xff"), ("txt", b"\xff\xfe"), ("cls", b"cat")])
def test_unreadable_text_names_shard_and_key(tmp_path, write_tar, extension, data):
    path = write_tar(tmp_path / "a.tar", [("x.jpg", b"image"), (f"x.{extension}", data)])
    with pytest.raises(records.RecordError, match=r"a\.tar: x: "):
        sources.WebDataset([path])[0]


def test_a_shard_that_shrinks_under_a_run_is_noticed(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("x.txt", b"t"), ("x.jpg", b"i" * 5000)])
    source = sources.WebDataset([path])
    os.truncate(path, 3000)
    with pytest.raises(records.RecordError, match=r"a\.tar: x: image ends after \d+ of 5000 bytes"):
        source[0]


def test_array_records_are_examples_in_order_over_shards(tmp_path):
    paths = records.write(str(tmp_path / "set"), ({"image": b"i", "captions": [str(i)], "label": i} for i in range(9)), 2)
    source = sources.open_source(str(tmp_path / "set-{00000..00001}-of-00002.array_record"))
    assert len(source) == 9
    assert [source[i]["label"] for i in range(9)] == [0, 2, 4, 6, 8, 1, 3, 5, 7]
    assert source[5] == {"image": b"i", "captions": ["1"], "label": 1, "key": "5"}
    assert source.where(5) == f"{paths[1]}: record 0"
    with pytest.raises(IndexError):
        source[9]


def test_one_caption_becomes_a_list(tmp_path):
    paths = records.write(str(tmp_path / "set"), [{"caption": "one"}, {"label": 1}], 1)
    assert [e["captions"] for e in sources.ArrayRecord(paths)] == [["one"], []]


@pytest.mark.parametrize("keep", [0, 100, 40_000, 65_536, 130_000])
def test_a_damaged_array_record_is_refused_when_opened(tmp_path, keep):
    (path,) = records.write(str(tmp_path / "set"), ({"image": os.urandom(2000)} for _ in range(50)), 1)
    os.truncate(path, keep)
    with pytest.raises(errors.InputError, match=r"array_record: (not a complete ArrayRecord|holds no records)"):
        sources.open_source(path)


def test_a_flipped_byte_in_an_array_record_names_the_record(tmp_path):
    (path,) = records.write(str(tmp_path / "set"), ({"image": os.urandom(2000)} for _ in range(50)), 1)
    with open(path, "r+b") as file:
        file.seek(50_000)
        byte = file.read(1)
        file.seek(50_000)
        file.write(bytes([byte[0] ^ 255]))
    source = sources.open_source(path)
    failed = []
    for i in range(50):
        try:
            source[i]
        except records.RecordError as error:
            failed.append(str(error))
    assert len(failed) == 1
    assert f"{path}: record" in failed[0]


def test_records_of_another_program_are_refused_and_damaged_ones_are_not(tmp_path, shared_data):
    with pytest.raises(errors.InputError, match=r"digits.*: its records are of another program\. Name the folder of a TFDS data set"):
        sources.ArrayRecord([str(shared_data / "containers" / "digits.array_record-00000-of-00002")])
    (path,) = records.write(str(tmp_path / "a"), [{"image": bytes(5000)}, {"image": b"i"}], 1)
    data = bytearray(open(path, "rb").read())
    data[data.index(bytes(4000)) + 2000] = 1
    (tmp_path / "b.array_record").write_bytes(data)
    source = sources.ArrayRecord([str(tmp_path / "b.array_record")])
    with pytest.raises(records.RecordError, match="record 0: damaged"):
        source[0]
    assert source[1]["image"] == b"i"


def test_sources_cross_process_borders(tmp_path, pair_tars):
    records.write(str(tmp_path / "set"), ({"captions": [str(i)]} for i in range(9)), 2)
    for pattern in (pair_tars, str(tmp_path / "*.array_record")):
        source = sources.open_source(pattern)
        source[1]
        copy = pickle.loads(pickle.dumps(source))
        assert len(copy) == len(source)
        assert copy[5] == source[5]
        assert copy.where(5) == source.where(5)


def test_a_fingerprint_follows_the_data_and_not_its_folder(tmp_path, pair_tars):
    first, second = sources.expand(pair_tars)
    fingerprint = sources.WebDataset([first, second]).fingerprint
    assert fingerprint.startswith("37 examples in 2 shards, ")
    copies = [shutil.copy(path, tmp_path) for path in (first, second)]
    assert sources.WebDataset(copies).fingerprint == fingerprint
    assert sources.WebDataset([second, first]).fingerprint != fingerprint
    assert sources.WebDataset([first]).fingerprint != fingerprint
