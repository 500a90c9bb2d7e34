"""The page about a data set: every count is there once, and figures have the right bars."""

import numpy as np
import pytest

from vlm_jax.data import statistics
from vlm_jax.evaluation import data_page


def _statistics(words, sizes):
    found = statistics.Statistics()
    for length, (width, height) in zip(words, sizes, strict=True):
        found.add({"key": "k", "image": b"\xff\xd8\xff", "captions": ["word " * length]}, width, height)
    return found


def test_the_page_tells_counts_reasons_and_facts():
    found = _statistics([3, 4, 4], [(10, 20), (10, 30), (10, 40)])
    samples = [(np.zeros((8, 8, 3), np.uint8), ["<b>one</b>"] * 7)]
    page = data_page.page("a <title>", found, reasons={"no <image>": 2, "torn": 5}, facts={"longest": 512}, samples=samples)
    for text in ("<b>3</b>", "<b>7</b>", "no &lt;image&gt;", "a &lt;title&gt;", "&lt;b&gt;one&lt;/b&gt;", "and 2 more", "512", "3 JPEG"):
        assert text in page
    assert page.index("torn") < page.index("no &lt;image&gt;"), "the most frequent first"
    for name, mean in (("captions", "3.67"), ("width", "10"), ("height", "30"), ("images", "1")):
        assert f"<bdi>{name}</bdi>: 3, mean {mean}</span>" in page
    assert "default-src &#x27;none&#x27;" in page and "<script" not in page


def test_a_page_of_nothing_can_be_read():
    page = data_page.page("empty", statistics.Statistics(), reasons={}, facts={}, samples=[])
    assert "no images" in page and "<figure" not in page and "Left out" not in page


@pytest.mark.parametrize("counts", [{7: 3}, {1: 5, 400: 5}, {2: 1000, 3: 1000, 10_000: 1}])
def test_every_value_is_in_a_bar(counts):
    drawn = data_page._histogram("words", {"captions": counts})
    assert drawn.counts["captions"].sum() == sum(counts.values())
    assert 5 <= len(drawn.edges) - 1 <= data_page.BINS + 1
