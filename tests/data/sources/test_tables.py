"""Tables of captions and labels beside images."""

import json

import pytest

from vlm_jax import errors
from vlm_jax.data import sources
from vlm_jax.data.sources import tables


@pytest.fixture
def root(tmp_path):
    for name in ("1.jpg", "sub/2.png", "3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"image")
    return tmp_path


def read(root, name, text) -> dict:
    (root / name).write_text(text, encoding="utf-8")
    source = sources.open_source(str(root))
    return {(e := source[i])["key"]: {k: v for k, v in e.items() if k not in ("key", "image")} for i in range(len(source))}


CSV = 'file_name,text,label\n1.jpg,"a cat, asleep",3\nsub/2.png,a caf\u00e9,0\n'
ROWS = [{"file_name": "1.jpg", "text": "a cat, asleep", "label": 3}, {"file_name": "./sub/2.png", "text": "a caf\u00e9", "label": 0}]


@pytest.mark.parametrize(
    "name,text",
    [
        ("metadata.csv", CSV),
        ("metadata.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("captions.tsv", CSV.replace('"a cat, asleep"', "a cat& asleep").replace(",", "\t").replace("&", ",")),
        ("metadata.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n"),
        ("captions.txt", CSV.replace("file_name", "image")),
    ],
)
def test_rows_are_captions_and_fields_of_their_images(root, name, text, caplog):
    assert read(root, name, text) == {
        "1.jpg": {"captions": ["a cat, asleep"], "label": 3},
        "sub/2.png": {"captions": ["a caf\u00e9"], "label": 0},
    }
    assert "1 of 3 images are not in it" in caplog.text


def test_an_image_on_several_lines_has_several_captions(root):
    assert read(root, "captions.csv", "image,caption\n1.jpg,one\n3.jpg,x\n1.jpg,two\n") == {
        "1.jpg": {"captions": ["one", "two"]}, "3.jpg": {"captions": ["x"]},
    }  # fmt: skip


def test_a_map_has_a_caption_or_a_list_of_them(root):
    found = read(root, "captions.json", json.dumps({"3.jpg": "three", "1.jpg": ["one", " ", "uno"]}))
    assert found == {"1.jpg": {"captions": ["one", "uno"]}, "3.jpg": {"captions": ["three"]}}


def test_several_labels_pass_through(root):
    rows = [{"file_name": "1.jpg", "labels": [0, 2]}, {"file_name": "3.jpg", "labels": ["cat"], "key": "other", "image": "gone"}]
    found = read(root, "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    assert found["1.jpg"]["labels"] == [0, 2] and found["3.jpg"]["labels"] == ["cat"]


def test_a_column_with_words_stays_text(root):
    found = read(root, "metadata.csv", "file_name,label,id\n1.jpg,3,007\n3.jpg,cat,1\n")
    assert [e["label"] for e in found.values()] == ["3", "cat"] and [e["id"] for e in found.values()] == [7, 1]


@pytest.mark.parametrize(
    "name,text,message",
    [
        ("metadata.csv", "file_name,text\n../../etc/passwd,x\n", r"metadata.csv: row 1: '../../etc/passwd' is none of the 3 images"),
        ("metadata.csv", "file_name,text\n/etc/passwd,x\n", "is none of the 3 images"),
        ("metadata.csv", "file_name,text\n4\x1b[2J.jpg,x\n", r"'4\\\\x1b\[2J.jpg' is none|none of the 3"),
        ("metadata.csv", "file_name,text\n", "has no rows"),
        ("metadata.csv", "", "has no rows"),
        ("metadata.csv", "name,text\n1.jpg,x\n", r"row 1 has no file_name or image or filename, it has \['name', 'text'\]"),
        ("captions.txt", "image,caption\n1.jpg,a cat, asleep\n", "put captions with commas in quotes"),
        ("captions.tsv", "image\tcaption\n1.jpg\n", "row 1 has more or fewer columns"),
        ("metadata.csv", 'file_name,text\n1.jpg,"open\n', "unexpected end of data"),
        ("metadata.jsonl", "[1]\n", "line 1 is a list, not a map"),
        ("metadata.jsonl", "{\n", "metadata.jsonl: Expecting"),
        ("metadata.jsonl", "[" * 100_000, "metadata.jsonl: "),
        ("metadata.jsonl", '{"file_name": "1.jpg", "captions": [1]}', r"row 1: captions \[1\] are no text"),
        ("captions.json", "[]", "must be a map"),
        ("captions.json", '{"1.jpg": {"a": "b"}}', "must be a map"),
        ("metadata.csv", "file_name,text\n1.jpg," + "x" * 2**21, "field larger than field limit"),
    ],
    ids=range(16),
)
def test_other_tables_are_refused_with_their_row(root, name, text, message):
    with pytest.raises(errors.InputError, match=message):
        read(root, name, text)


def test_two_tables_and_a_giant_are_refused(root, monkeypatch):
    (root / "captions.txt").write_text("image,caption\n1.jpg,x\n")
    monkeypatch.setattr(tables, "LARGEST", 10)
    with pytest.raises(errors.InputError, match="more than 10; write shards"):
        sources.open_source(str(root))
    with pytest.raises(errors.InputError, match=r"metadata.csv and captions.txt both describe"):
        read(root, "metadata.csv", CSV)
