"""An evaluation that was interrupted goes on with what is on disk; nothing else is taken for it, and the same images are embedded once."""

import numpy as np
import pytest

from vlm_jax.data import sources
from vlm_jax.evaluation import base, embeddings, retrieval, zero_shot


@pytest.fixture
def counted(monkeypatch):
    """The batches that are embedded, as (method, rows)."""
    calls = []
    embed = base.Compiled.embed

    def counting(self, method, variables, rows):
        calls.append((method, len(rows)))
        return embed(self, method, variables, rows)

    monkeypatch.setattr(base.Compiled, "embed", counting)
    return calls


def _with_pieces(subject, folder, identity=None, **more):
    pieces = embeddings.Pieces(folder, identity or {"weights": "w"}, **more)
    return base.Subject(subject.compiled, subject.variables, subject.transform, subject.tokenizer, subject.batch_size, pieces)


def _files(folder):
    return sorted(folder.glob("*/*.npy"))


def test_evaluators_of_the_same_images_embed_them_once(make_subject, data, classes, counted):
    subject = make_subject(batch_size=10)
    first = zero_shot.ZeroShot(data=data, classes=classes)(subject)
    images = [call for call in counted if call[0] == "embed_image"]
    assert len(images) == 3
    retrieval.Retrieval(data=data)(subject)
    again = zero_shot.ZeroShot(data=data, classes=classes)(subject)
    zero_shot.ZeroShot(data=data, classes=classes, limit=20)(subject)
    assert [call for call in counted if call[0] == "embed_image"] == images
    assert again.metrics == first.metrics
    zero_shot.ZeroShot(data=data, classes=classes)(make_subject(batch_size=10))
    assert len([call for call in counted if call[0] == "embed_image"]) == 6


def test_what_is_remembered_cannot_be_changed(make_subject, data):
    subject, source = make_subject(), sources.open_source(data)
    with pytest.raises(ValueError, match="read-only"):
        subject.embed_records(source, 9)[0] = 0
        subject.embed_records(source, 9)[0] = 0


def test_an_interrupted_evaluation_goes_on_where_it_was(make_subject, data, tmp_path, counted, monkeypatch):
    source = sources.open_source(data)
    whole = make_subject(batch_size=4).embed_records(source, 27)
    counted.clear()
    subject = _with_pieces(make_subject(batch_size=4), tmp_path)
    embed = base.Compiled.embed

    def interrupted(self, method, variables, rows):
        if len(counted) == 4:
            raise KeyboardInterrupt
        return embed(self, method, variables, rows)

    monkeypatch.setattr(base.Compiled, "embed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        subject.embed_records(source, 27)
    monkeypatch.setattr(base.Compiled, "embed", embed)
    assert len(_files(tmp_path)) == 1 and not list(tmp_path.rglob("*.part"))
    counted.clear()
    again = _with_pieces(make_subject(batch_size=4), tmp_path)
    np.testing.assert_array_equal(again.embed_records(source, 27), whole)
    assert (again.pieces.found, len(counted)) == (12, 4)
    third = _with_pieces(make_subject(batch_size=4), tmp_path)
    np.testing.assert_array_equal(third.embed_records(source, 27), whole)
    np.testing.assert_array_equal(_with_pieces(make_subject(batch_size=4), tmp_path).embed_records(source, 13), whole[:13])
    assert (third.pieces.found, len(counted)) == (27, 4)


def test_pieces_are_written_at_intervals(make_subject, data, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "SECONDS", 0.0)
    _with_pieces(make_subject(batch_size=10), tmp_path).embed_records(sources.open_source(data), 27)
    assert [path.stem.split("-")[:2] for path in _files(tmp_path)] == [["0", "10"], ["10", "20"], ["20", "27"]]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "renamed", "pickle"])
def test_a_damaged_or_foreign_piece_is_noticed_and_made_again(make_subject, data, tmp_path, counted, damage, capsys):
    source = sources.open_source(data)
    whole = _with_pieces(make_subject(), tmp_path).embed_records(source, 27)
    (path,) = _files(tmp_path)
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif damage == "renamed":
        path.rename(path.with_name(path.name.replace("0-27", "0-28")))
    elif damage == "pickle":
        np.save(path, np.array([{"armed": 1}], object), allow_pickle=True)
    else:
        path.write_bytes(content[:-8] if damage == "cut" else b"")
    counted.clear()
    again = _with_pieces(make_subject(), tmp_path)
    np.testing.assert_array_equal(again.embed_records(source, 27), whole)
    assert again.pieces.found == 0 and len(counted) == 3
    assert "damaged or from elsewhere; it is made again" in capsys.readouterr().err


def test_a_piece_of_another_set_is_not_taken(make_subject, data, tmp_path, counted):
    source = sources.open_source(data)
    _with_pieces(make_subject(), tmp_path, {"weights": "one"}).embed_records(source, 27)
    (path,) = _files(tmp_path)
    other = _with_pieces(make_subject(), tmp_path, {"weights": "two"})
    key = other.pieces.key({"method": "embed_image", "batch_size": 10, **embeddings.of_records(source), "transform": repr(other.transform)})
    (tmp_path / key).mkdir()
    path.rename(tmp_path / key / path.name)
    counted.clear()
    other.embed_records(source, 27)
    assert other.pieces.found == 0 and len(counted) == 3


@pytest.mark.parametrize("change", ["weights", "transform", "batch_size", "data", "method", "texts"])
def test_whatever_the_numbers_follow_from_is_in_the_key(make_subject, data, tmp_path, change):
    import dataclasses
    import os
    import shutil

    paths = [str(shutil.copy(path, tmp_path)) for path in data.split("::")]
    source = sources.open_source("::".join(paths))
    _with_pieces(make_subject(), tmp_path / "kept").embed_records(source, 9)
    subject = _with_pieces(make_subject(batch_size=11 if change == "batch_size" else 10), tmp_path / "kept", {"weights": change})
    if change != "weights":
        subject.pieces.identity = {"weights": "w"}
    if change == "transform":
        subject = dataclasses.replace(subject, transform=dataclasses.replace(subject.transform, resize_to=12))
    if change == "data":
        os.utime(paths[0], ns=(1, 1))
    if change in ("method", "texts"):
        for text in ("a red", "a blue") if change == "texts" else ("a red",):
            subject.embed_texts([text])
            subject.embed_texts([text], method="project_text")
    else:
        subject.embed_records(source, 9)
    assert subject.pieces.found == 0
    same = _with_pieces(make_subject(), tmp_path / "kept")
    if change != "data":
        same.embed_records(source, 9)
        assert same.pieces.found == 9


def test_the_folder_stays_below_its_limit(make_subject, data, tmp_path, capsys):
    source = sources.open_source(data)
    for name in ("a", "b", "c"):
        _with_pieces(make_subject(), tmp_path, {"weights": name}, limit=1300).embed_records(source, 27)
    assert len(_files(tmp_path)) == 2, "560 bytes each"
    subject = _with_pieces(make_subject(), tmp_path, {"weights": "d"}, limit=300)
    assert subject.embed_records(source, 27).shape == (27, 4)
    assert "no more embeddings are kept (its limit of 3e-07 GB is reached)" in capsys.readouterr().err
    subject.pieces.clear()
    assert not tmp_path.exists()


def test_a_disk_that_refuses_does_not_end_an_evaluation(make_subject, data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    found = _with_pieces(make_subject(), tmp_path / "file" / "folder").embed_records(sources.open_source(data), 9)
    assert found.shape == (9, 4) and "the evaluation goes on without" in capsys.readouterr().err
