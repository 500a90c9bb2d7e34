"""CSV, TSV and JSON lines as data sets."""

import base64
import errno
import json
import os
import pickle

import pytest

from vlm_jax import errors
from vlm_jax.data import records, sources
from vlm_jax.data.sources import delimited, json_lines


@pytest.fixture
def root(tmp_path):
    for name in ("1.jpg", "sub/2.png", "3.jpg", "../secret.jpg"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(name.encode())
    return tmp_path / "data"


def opened(root, name, text, options=""):
    (root / name).write_bytes(text.encode())
    return sources.open_source(f"{root}/{name}{options}")


def read(*arguments) -> list[dict]:
    source = opened(*arguments)
    return [source[i] for i in range(len(source))]


CSV = 'image,caption,label\n1.jpg,"a cat, asleep",3\nsub/2.png,a café,0\n'
WANTED = [
    {"key": "1.jpg", "image": b"1.jpg", "captions": ["a cat, asleep"], "label": 3},
    {"key": "sub/2.png", "image": b"sub/2.png", "captions": ["a café"], "label": 0},
]


@pytest.mark.parametrize(
    "name,text,options",
    [
        ("pairs.csv", CSV, ""),
        ("pairs.csv", "\ufeff" + CSV.replace("\n", "\r\n") + "\r\n", ""),
        ("pairs.csv", CSV.rstrip("\n"), ""),
        ("pairs.csv", CSV.replace('"a cat, asleep"', "a cat& asleep").replace(",", "\t").replace("&", ","), ""),
        ("pairs.tsv", 'filepath\ttitle\tlabel\n1.jpg\ta cat, asleep\t3\n./sub//2.png\ta café\t0\n', ""),
        ("pairs.csv", CSV.replace("image,caption", "Photo,Words"), "#image=Photo&caption=Words"),
    ],
    ids=range(6),
)
def test_rows_are_examples(root, name, text, options):
    found = read(root, name, text, options)
    for example in found:
        example["key"] = os.path.normpath(example["key"])
    assert found == WANTED


def test_lines_are_examples_with_the_fields_of_the_first(root):
    lines = {"image": "1.jpg", "caption": "a cat, asleep", "label": 3}, {"image": "sub/2.png", "text": "other", "file_name": 1}
    found = read(root, "pairs.jsonl", "\n\n".join(map(json.dumps, lines)) + "\n")
    assert found == [WANTED[0], {"key": "sub/2.png", "image": b"sub/2.png", "captions": [], "text": "other", "file_name": 1}]


def test_an_image_on_several_lines_of_a_csv_is_one_example(root):
    rows = ["image,caption,split", "1.jpg,one,a", "3.jpg,x,b", "./1.jpg,two,c", '1.jpg,"and\nthree",d']
    found = read(root, "captions.csv", "\n".join(rows))
    assert [(e["image"], e["captions"], e["split"]) for e in found] == [
        (b"1.jpg", ["one", "two", "and\nthree"], "d"), (b"3.jpg", ["x"], "b")
    ]  # fmt: skip


def test_captions_may_stand_in_several_columns_and_keys_in_one(root):
    text = "image,a,b,id\n1.jpg,one,uno,007\n3.jpg,two,,x\n"
    found = read(root, "t.csv", text, "#caption=a,b&key=id")
    assert [(e["key"], e["captions"]) for e in found] == [("007", ["one", "uno"]), ("x", ["two"])]


def test_a_json_line_may_hold_its_image(root):
    data = b"\xff\xd8\xff image"
    encoded = base64.b64encode(data).decode()
    values = encoded, f"data:image/png;base64,{encoded}", {"bytes": encoded, "path": "x.jpg"}, {"path": "3.jpg"}, "1.jpg"
    lines = [json.dumps({"image": value, "captions": ["one", "two"]}) for value in values]
    found = read(root, "a.jsonl", "\n".join(lines))
    assert [e["image"] for e in found] == [data, data, data, b"3.jpg", b"1.jpg"]
    assert [e["key"] for e in found] == ["0", "1", "x.jpg", "3.jpg", "1.jpg"]
    assert found[0]["captions"] == ["one", "two"]


def test_rows_that_cannot_be_used_are_bad_records_with_their_place(root):
    source = opened(root, "a.csv", "image,caption\n1.jpg,fine\n1.jpg,a cat, asleep\ngone.jpg,x\n")
    assert source[0]["captions"] == ["fine"]
    with pytest.raises(records.RecordError, match=r"a\.csv: row at byte 25: 3 columns instead of 2; put captions with ',' in quotes"):
        source[1]
    with pytest.raises(records.RecordError, match=r"a\.csv: row at byte 45: No such file.*gone"):
        source[2]
    lines = ['{"image": "1.jpg"}', '{"image": "../secret.jpg"}', "{{{", '["1.jpg"]', '{"caption": "x"}', '{"image": "/9j/!!"}']
    lines += ['{"image": 7}', '{"image": "1.jpg", "caption": [1]}', '{"image": "http://x/1.jpg"}']
    lines += ['{"image": "link.jpg"}', '{"image": "3.jpg"}']
    os.symlink(root.parent / "secret.jpg", root / "link.jpg")
    source = opened(root, "a.jsonl", "\n".join(lines))
    said = "lies outside of", "Expecting", "a list, not a map", "has no image", "base64", "is a int", "are no text", "address", "a link"
    for place, message in enumerate(said, start=1):
        with pytest.raises(records.RecordError, match=rf"a\.jsonl: line at byte \d+: .*{message}"):
            source[place]
    for outside in (-1, len(lines)):
        with pytest.raises(IndexError):
            source[outside]


@pytest.mark.parametrize(
    "name,text,options,message",
    [
        ("a.csv", "", "", "an empty file"),
        ("a.csv", "image,caption\n", "", "has no rows; leave it out"),
        ("a.csv", "image,caption\n../secret.jpg,x\n", "", r"row 1: image '\.\./secret\.jpg' lies outside of .*#root=FOLDER"),
        ("a.csv", "image,caption\n1.jpg,x\n/etc/passwd,x\n", "", "row 2: image '/etc/passwd' lies outside"),
        ("a.csv", "image,caption\n4.jpg,x\n5.jpg,x\n", "", r"4\.jpg does not exist\. Say where paths begin, .*a\.csv#root=FOLDER"),
        ("a.csv", "image,caption\nhttp://x/1.jpg,x\n", "", r"\(column image\).*img2dataset .*--caption_col caption"),
        ("a.csv", "url,caption\nhttp://x/1.jpg,x\n", "", "--input_format csv --url_col url --caption_col caption"),
        ("a.csv", "photo,caption\n1.jpg,x\n", "", r"name it, '.*a\.csv#image=COLUMN'\. It has photo, caption"),
        ("a.csv", CSV, "#image=photo", "has no column 'photo'; it has image, caption, label"),
        ("a.csv", CSV, "#imago=photo", "#imago=photo: 'imago' is unknown; after the # stand caption=..., image"),
        ("a.csv", CSV, "#image=", "'image' has no value"),
        ("a.csv", CSV, "#image=a&image=b", "'image' is given twice"),
        ("a.csv", CSV, "#with=b", "#with=b: it takes image=, caption=, key=, root="),
        ("a.csv", 'image,caption\n1.jpg,"open\n', "", "unexpected end of data; save it as CSV in UTF-8"),
        ("a.jsonl", "\n\n", "", "has no lines"),
        ("a.jsonl", "{{{\n{}", "", "line 1: Expecting"),
        ("a.jsonl", '["a"]\n', "", "line 1: a list, not a map"),
        ("a.jsonl", '{"image": "1.jpg"}\n{"image": "1.j', "", "line 2: .*the file is cut off there, copy it again"),
        ("a.jsonl", '{"image": "4.jpg"}\n', "", r"line at byte 0: No such file.*4\.jpg.*#root=FOLDER"),
        ("a.jsonl", '{"url": "http://x", "TEXT": "x"}\n', "", "--input_format jsonl --url_col url --caption_col TEXT"),
        ("a.jsonl", '{"items": []}\n', "", "none of its columns is known to be the image"),
    ],
    ids=range(21),
)
def test_what_is_wrong_with_a_whole_file_is_said_before_a_run(root, name, text, options, message):
    with pytest.raises(errors.InputError, match=f"data {root}/{name}.*{message}") as error:
        opened(root, name, text, options)
    assert "\n" not in str(error.value) and not isinstance(error.value, records.RecordError)


def test_text_that_is_no_utf8_is_said(root):
    (root / "a.csv").write_bytes(b"image,caption\n1.jpg,caf\xe9\n")
    with pytest.raises(errors.InputError, match=r"a\.csv: 'utf-8' codec.*save it as CSV in UTF-8"):
        sources.open_source(f"{root}/a.csv")


def test_a_root_elsewhere_is_the_users_word_and_paths_may_begin_with_it(root, tmp_path):
    (tmp_path / "tables").mkdir()
    text = f"image,caption\n{root}/1.jpg,x\nsub/2.png,y\n"
    found = read(tmp_path / "tables", "a.csv", text, f"#root={root}")
    assert [e["image"] for e in found] == [b"1.jpg", b"sub/2.png"]
    found = read(tmp_path / "tables", "a.jsonl", '{"image": "3.jpg"}', f"#root={root}")
    assert found[0]["image"] == b"3.jpg"


def test_a_disk_that_fails_is_no_bad_record(root, monkeypatch):
    csv, lines = opened(root, "a.csv", CSV), opened(root, "a.jsonl", '{"image": "1.jpg"}')

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    for source in (csv, lines):
        with pytest.raises(errors.InfrastructureError, match=r"row at byte 20|line at byte 0.*Input/output error"):
            source[0]


def test_several_files_are_one_source_that_travels(root):
    (root / "b.csv").write_text("file_name,text\n3.jpg,z\n")
    source = opened(root, "a.csv", CSV)
    both = sources.open_source(f"{root}/{{a,b}}.csv")
    assert isinstance(both, delimited.Delimited) and len(both) == 3
    assert [both[i]["captions"][0] for i in range(3)] == ["a cat, asleep", "a café", "z"]
    assert pickle.loads(pickle.dumps(both))[2] == both[2] and both.where(2) == f"{root}/b.csv: row at byte 15"
    assert opened(root, "a.csv", CSV).fingerprint == source.fingerprint
    assert opened(root, "a.csv", CSV.replace("asleep", "awake!")).fingerprint != source.fingerprint
    lines = opened(root, "c.jsonl", '{"image": "1.jpg"}\n')
    assert isinstance(lines, json_lines.JsonLines) and pickle.loads(pickle.dumps(lines))[0] == lines[0]


def test_a_table_without_rights_is_one_line(root, monkeypatch):
    for name, text in (("a.csv", CSV), ("a.jsonl", '{"image": "1.jpg"}')):
        (root / name).write_text(text)

    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", denied)
    for name in ("a.csv", "a.jsonl"):
        with pytest.raises(errors.InputError, match=rf"{name}: cannot be read \(Permission denied\)"):
            sources.open_source(f"{root}/{name}")


def test_tables_and_their_images_may_lie_in_a_store():
    import fsspec

    store = fsspec.filesystem("memory")
    for name, data in (("a.csv", b"image,caption\nx/1.jpg,one\n"), ("x/1.jpg", b"picture"), ("a.jsonl", b'{"image": "x/1.jpg"}')):
        with store.open(f"/set/{name}", "wb") as file:
            file.write(data)
    assert sources.open_source("memory://set/a.csv")[0] == {"key": "x/1.jpg", "captions": ["one"], "image": b"picture"}
    assert sources.open_source("memory://set/a.jsonl")[0]["image"] == b"picture"
    with store.open("/set/a.csv", "wb") as file:
        file.write(b"image,caption\n../other/1.jpg,one\n")
    with pytest.raises(errors.InputError, match="lies outside of memory://set"):
        sources.open_source("memory://set/a.csv")
    store.store.clear()
