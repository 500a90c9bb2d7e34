"""A confusion matrix shows what was taken for what, in a grid, in words and in images."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from vlm_jax.evaluation import base, confusion, gallery
from vlm_jax.evaluation.markup import element


def svg(markup) -> ET.Element:
    return ET.fromstring(str(markup))


def test_a_matrix_shades_its_cells_and_tells_right_from_wrong():
    names = ("a", "b", "<c>")
    table = base.Table("true", "predicted", names[1:], names, np.array([[1, 3, 0], [0, 0, 0]]))
    drawn = svg(confusion.matrix(table))
    cells = {e.find("title").text: e for e in drawn.iter("rect") if e.find("title") is not None}
    assert {text: e.get("class") for text, e in cells.items()} == {"b → a: 1 of 4": "wrong", "b → b: 3 of 4": "right"}
    assert float(cells["b → b: 3 of 4"].get("fill-opacity")) == pytest.approx(0.08 + 0.92 * 0.75**0.7, abs=0.01)
    labels = [e.text for e in drawn.iter("text")]
    assert "75%" in labels and labels.count("<c>") == 2


def test_the_most_confused_pairs_are_those_that_happened_more_than_once():
    names = ("a", "b", "c")
    table = base.Table("true", "predicted", names, names, np.array([[9, 2, 0], [0, 5, 1], [4, 0, 4]]))
    assert confusion.confused(table) == [
        {"true": "c", "predicted": "a", "count": 4, "of": 8},
        {"true": "a", "predicted": "b", "count": 2, "of": 11},
    ]


def text(shown):
    return " ".join(" ".join(shown.itertext()).split())


def section(table, examples=()):
    page = str(element("div", confusion.section("Confusion", table, examples, gallery.Budget())))
    return ET.fromstring(re.sub("(<img[^>]*)>", r"\1/>", page))


def table_of(count, wrong=3):
    names = tuple(f"class {i}" for i in range(count))
    counts = np.eye(count, dtype=int) + wrong * np.eye(count, k=1, dtype=int)
    return base.Table("true", "predicted", names, names, counts)


def test_the_worst_pairs_stand_beside_the_matrix_as_images_and_in_words_without_them():
    picture = base.Entry(image=base.thumbnail(np.zeros((8, 8, 3), np.uint8)), score=0.25)
    pair = base.Example(confusion.GROUP, base.Entry("class 0 taken for class 1, 3 of 4"), (picture,) * 9)
    shown = section(table_of(3), [pair])
    words = text(shown)
    assert "class 0 taken for class 1, 3 of 4" in words and "0.250" in words
    assert len(list(shown.iter("img"))) == gallery.PAIR_IMAGES
    assert "class 1 taken for class 2" not in words
    assert "class 1 taken for class 2" in text(section(table_of(3)))
    right = base.Entry("class 1", base.thumbnail(np.zeros((8, 8, 3), np.uint8)), verdict="right")
    both = section(table_of(3), [base.Example(confusion.GROUP, base.Entry("told"), (picture,) * 9 + (right,) * 9)])
    sides = [len(list(e.iter("img"))) for e in both.iter("ol")]
    assert sides == [gallery.PAIR_IMAGES // 2] * 2
    assert [next(e.get("alt") for e in side.iter("img")) for side in both.iter("ol")] == ["image", "class 1"]


@pytest.mark.parametrize(
    ("count", "cells", "fold"), [(32, 63, 0), (33, 65, 1), (128, 255, 1), (129, 0, 0), (1000, 0, 0)]
)
def test_large_matrices_are_folded_and_larger_ones_left_out(count, cells, fold):
    shown = section(table_of(count))
    assert sum(e.get("class") in ("right", "wrong") for e in shown.iter("rect")) == cells
    assert len(list(shown.iter("details"))) == fold
    words = text(shown)
    assert "class 0 taken for class 1" in words
    assert ("Least often found class 0 1 of 4" in words) == (count > 32)
    if count > 128:
        assert f"{count:,} classes are too many for a matrix" in words and len(words) < 2000


def test_a_matrix_of_very_many_cells_draws_the_largest(monkeypatch):
    monkeypatch.setattr(confusion, "MATRIX_CELLS", 3)
    names = ("a", "b", "c")
    table = base.Table("true", "predicted", names, names, np.array([[9, 2, 1], [1, 8, 1], [1, 1, 7]]))
    drawn = [e.get("class") for e in svg(confusion.matrix(table)).iter("rect") if e.get("class") in ("right", "wrong")]
    assert drawn == ["right"] * 3


def test_only_classes_that_were_missed_are_named_as_such():
    names = tuple(f"class {i}" for i in range(40))
    counts = 10 * np.eye(40, dtype=int)
    counts[7, 8], counts[9, 8] = 5, 20
    words = text(section(base.Table("true", "predicted", names, names, counts)))
    assert "Least often found class 9 10 of 30 class 7 10 of 15 Confusion of" in words
