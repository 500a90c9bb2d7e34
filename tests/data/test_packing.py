"""Pieces of documents and the rows that they fill."""

import collections
import dataclasses

import numpy as np
import pytest

from vlm_jax.data import packing, text
from vlm_jax.data.sources import documents


@pytest.fixture(scope="module")
def form(piece_model) -> packing.Form:
    """Rows of 16 tokens and 3 images; begin 3, image 80, end of a chunk 81."""
    made = packing.Form(text.Tokenizer(piece_model, length=16), images=3)
    vocabulary = made.tokenizer.load().vocab_size
    assert (made.image_id, made.chunk_end_id) == (vocabulary, vocabulary + 1)
    return made


def image() -> bytes:
    return b""


def test_a_chunk_ends_before_an_image_and_with_the_document(form):
    items = ("a thing", image, image, "here", image, "there")
    ids = form.tokens(documents.Document("k", items)).tolist()
    encode = form.tokenizer.load().encode
    i, e = form.image_id, form.chunk_end_id
    assert ids == [3, *encode("a thing"), e, i, i, *encode("here"), e, i, *encode("there"), e]
    assert form.tokens(documents.Document("k", (image,))).tolist() == [3, i]
    assert form.tokens(documents.Document("k", ())).tolist() == []


@pytest.mark.parametrize(
    ("kinds", "lengths"),
    [
        ("t" * 16, [16]),
        ("t" * 40, [16, 16, 8]),
        ("ittiitittit", [6, 5]),  # the fourth image begins another piece
        ("ttttttttttttittttttttt", [12, 10]),  # the last quarter goes with its image
        ("tttttttttttittttttttttt", [16, 7]),  # too much of the row would stay empty
        ("ttttttttttttiitttttttttt", [12, 12]),  # images in a row stay together
        ("iiiiiiii", [3, 3, 2]),
    ],
)
def test_a_long_document_is_cut_with_its_images(form, kinds, lengths):
    ids = np.array([form.image_id if kind == "i" else 7 for kind in kinds])
    pieces = list(form.cut(ids))
    assert [stop - start for start, stop in pieces] == lengths
    assert [start for start, _ in pieces] == [0, *(stop for _, stop in pieces[:-1])]


@pytest.mark.parametrize(("mean", "most_of_a_piece", "waste"), [(20, 1, 0.01), (3, 1, 0.1), (20, 4, 0.25), (3, 4, 0.01)])
def test_rows_hold_every_piece_once_and_never_too_much(mean, most_of_a_piece, waste):
    rng = np.random.default_rng(mean)
    length, most = 32, 4
    tokens = np.minimum(rng.geometric(1 / mean, 1500), length)
    images = np.minimum(rng.integers(0, most_of_a_piece + 1, 1500), tokens)
    order, ends = packing.fill(tokens, images, length, most)
    assert sorted(order) == list(range(1500))
    rows = np.split(order, ends[:-1])
    assert all(len(row) and tokens[row].sum() <= length and images[row].sum() <= most for row in rows)
    least = max(-(-tokens.sum() // length), -(-images.sum() // most))
    assert len(rows) <= (1 + waste) * least + 1
    np.testing.assert_array_equal(packing.fill(tokens, images, length, most)[0], order)


def test_a_plan_is_made_once_and_by_any_number_of_processes(form, tmp_path, monkeypatch):
    opened = Many(30)
    (tmp_path / "many").write_text("")
    opened.paths = [str(tmp_path / "many")]
    alone = packing.plan(opened, form)
    assert (alone.bad, alone.first_bad) == (3, 0)
    covered = collections.Counter()
    for row in range(len(alone)):
        assert len(alone.row(row))
        for document, start, stop, first, last in alone.row(row).tolist():
            covered[document] += stop - start
            assert last - first == (form.tokens(opened[document])[start:stop] == form.image_id).sum()
    assert covered == {i: len(form.tokens(opened[i])) for i in range(30) if i % 10}
    assert alone.tokens == covered.total()
    monkeypatch.setattr(Many, "__getitem__", None)
    np.testing.assert_array_equal(packing.plan(opened, form).pieces, alone.pieces)
    monkeypatch.undo()
    monkeypatch.setenv("VLM_JAX_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(packing, "_FEW", 0)
    monkeypatch.setattr(packing, "_TASK", 7)
    np.testing.assert_array_equal(packing.plan(opened, form).pieces, alone.pieces)


@dataclasses.dataclass
class Many:
    """Documents of different lengths; every tenth cannot be used."""

    count: int
    fingerprint: str = "many"
    paths: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> documents.Document:
        if index % 10 == 0:
            raise packing.records.RecordError(f"document {index} is broken")
        return documents.Document(str(index), ("a thing " * index, image, "here", image))
