"""Folders of images, in classes or with captions."""

import os
import pickle

import pytest

from vlm_jax import errors
from vlm_jax.data import records, sources
from vlm_jax.data.sources import image_folder


def fill(root, *names, content=b"image"):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if name.lower().endswith(image_folder.SUFFIXES) else b"text")
    return str(root)


def test_folders_are_classes_by_name_and_hidden_files_are_left_out(tmp_path):
    hidden = ".git/x/1.jpg", "dog/._1.jpg", "cat/notes.md", "LICENSE", "empty/.keep"
    source = sources.open_source(fill(tmp_path, "dog/2.jpg", "dog/1.JPEG", "cat/deep/er/3.webp", "cat/0.png", *hidden))
    assert [source[i] for i in range(len(source))] == [
        {"key": "cat/0.png", "image": b"image", "captions": [], "label": 0, "label_name": "cat"},
        {"key": "cat/deep/er/3.webp", "image": b"image", "captions": [], "label": 0, "label_name": "cat"},
        {"key": "dog/1.JPEG", "image": b"image", "captions": [], "label": 1, "label_name": "dog"},
        {"key": "dog/2.jpg", "image": b"image", "captions": [], "label": 1, "label_name": "dog"},
    ]
    assert source.classes.titles == ("cat", "dog")
    assert source.where(3) == f"{tmp_path}/dog/2.jpg"
    for outside in (4, -1):
        with pytest.raises(IndexError):
            source[outside]


def test_captions_lie_beside_an_image_one_a_line(tmp_path):
    fill(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "1.txt").write_bytes(b"\xef\xbb\xbfa cat\r\n\n it sleeps\n")
    source = sources.open_source(str(tmp_path))
    assert [source[i]["captions"] for i in range(2)] == [["a cat", "it sleeps"], []]
    assert source.classes is None and "label" not in source[0]
    (tmp_path / "1.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(records.RecordError, match=r"1\.jpg: cannot be read \('utf-8' codec"):
        source[0]


def test_what_cannot_be_read_names_the_file(tmp_path, monkeypatch):
    source = sources.open_source(fill(tmp_path, "a/1.jpg", "a/2.jpg", "a/3.jpg", "a/4.jpg"))
    os.remove(tmp_path / "a" / "1.jpg")
    os.remove(tmp_path / "a" / "2.jpg")
    os.mkfifo(tmp_path / "a" / "2.jpg")
    with pytest.raises(records.RecordError, match=r"a/1\.jpg: cannot be read \(No such file"):
        source[0]
    with pytest.raises(records.RecordError, match="no plain file any more"):
        source[1]
    monkeypatch.setattr(image_folder, "LARGEST", 4)
    with pytest.raises(records.RecordError, match="5 bytes, more than 4"):
        source[2]

    def denied(path, flags):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(records.RecordError, match=r"a/4\.jpg: cannot be read \(Permission denied\)"):
        source[3]


def test_links_that_lead_out_or_nowhere_are_left_out(tmp_path, caplog):
    root = tmp_path / "root"
    fill(root, "a/1.jpg")
    fill(tmp_path, "secret.jpg", "outside/x.jpg")
    (root / "a" / "2.jpg").symlink_to(root / "a" / "1.jpg")
    (root / "a" / "3.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "a" / "4.jpg").symlink_to("nowhere")
    (root / "b").symlink_to(tmp_path / "outside")
    (root / "a" / "loop").symlink_to(root)
    os.mkfifo(root / "a" / "5.jpg")
    source = sources.open_source(str(root))
    assert [source[i]["key"] for i in range(len(source))] == ["a/1.jpg", "a/2.jpg"]
    assert "4 links that are broken or lead out of the folder are left out, first a/3.jpg" in caplog.text
    link = tmp_path / "link"
    link.symlink_to(root)
    assert len(sources.open_source(str(link))) == 2


def test_folders_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(errors.InputError, match=r"the folder holds no images, \.jpg"):
        sources.open_source(fill(tmp_path / "none", "a/notes.md"))
    with pytest.raises(errors.InputError, match=r"name its shards by a pattern, .*/\*\.tar"):
        sources.open_source(fill(tmp_path / "tars", "a-0.tar", "a-1.tar"))
    with pytest.raises(errors.InputError, match=r"logo\.png lies beside folders of classes"):
        sources.open_source(fill(tmp_path / "both", "a/1.jpg", "logo.png"))
    with pytest.raises(errors.InputError, match="more than 32 folders deep"):
        sources.open_source(fill(tmp_path / "deep", "/".join("x" * 40) + "/1.jpg"))


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    fill(tmp_path, "a/1.jpg", "b/1.jpg")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("b/"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(errors.InputError, match=r"/b/: cannot be listed \(Permission denied\)"):
        sources.open_source(str(tmp_path))


def test_a_copy_elsewhere_has_the_same_fingerprint_and_a_change_another(tmp_path):
    names = "a/1.jpg", "b/2.jpg"
    first = sources.open_source(fill(tmp_path / "x", *names))
    assert sources.open_source(fill(tmp_path / "y", *names)).fingerprint == first.fingerprint
    assert sources.open_source(fill(tmp_path / "z", *names, content=b"other image")).fingerprint != first.fingerprint
    assert sources.open_source(fill(tmp_path / "y", "a/3.jpg")).fingerprint != first.fingerprint
    copy = pickle.loads(pickle.dumps(first))
    assert copy[1] == first[1] and copy.fingerprint == first.fingerprint and copy.classes == first.classes


def test_a_name_commands_no_terminal(tmp_path):
    source = sources.open_source(fill(tmp_path, "a\x1b[2J/1.jpg"))
    assert source.where(0).isprintable() and source[0]["label_name"] == "a\x1b[2J"
