"""The account of a run's time adds up in its bars, and an odd one is left out."""

import math
import xml.etree.ElementTree as ET

import pytest

from vlm_jax.evaluation import spent
from vlm_jax.evaluation.markup import element
from vlm_jax.training import goodput


def attempt(began, ended, first, last, **seconds):
    return goodput.Attempt(began, ended, first, last, dict.fromkeys(goodput.BUCKETS, 0.0) | seconds)


RUN = [attempt(0, 100, 0, 80, start=10.0, save=10.0), attempt(150, 200, 40, 100, compile=20.0)]


def shown(attempts):
    return ET.fromstring(str(element("div", spent.section(attempts))))


def bars(drawn):
    """By bar: what its parts tell, with their widths in percent."""
    return [
        {e.find("title").text.partition(":")[0]: float(e.get("width").rstrip("%")) for e in svg.iter("rect")}
        for svg in drawn.iter("svg")
    ]


def test_the_bar_of_all_starts_is_the_summary_and_each_start_has_its_own():
    total, first, second = bars(shown(RUN))
    seconds = goodput.summary(RUN)
    assert total == {k: pytest.approx(100 * v / 200, abs=0.01) for k, v in seconds.items() if v and k != "wall"}
    assert first == {"productive": 40, "redone": 40, "start": 10, "save": 10}
    assert second == {"productive": 30, "compile": 20}
    said = " ".join(" ".join(shown(RUN).itertext()).split()).replace("\u202f", " ")
    assert "35.0 % of 3 min 20 s trained the model, in 2 starts." in said
    assert "steps 40 to 100, 1970-01-01 00:02 UTC" in said and "down between two starts 50.0 s 25.0 %" in said
    assert "restore" not in said


def test_parts_stand_one_after_the_other():
    for svg in shown(RUN).iter("svg"):
        at = 0.0
        for part in svg.iter("rect"):
            assert float(part.get("x").rstrip("%")) == pytest.approx(at, abs=0.02)
            at += float(part.get("width").rstrip("%"))


def test_one_start_is_one_bar_and_of_many_the_last_are_shown():
    assert len(bars(shown(RUN[:1]))) == 1
    many = [attempt(10 * i, 10 * i + 9, i, i + 1, start=1.0) for i in range(40)]
    assert len(bars(shown(many))) == 1 + spent.STARTS
    assert "28 earlier starts not shown" in "".join(shown(many).itertext())


@pytest.mark.parametrize(
    "attempts",
    [[], [attempt(0, 0, 0, 0)], [attempt(0, math.nan, 0, 1)], [attempt(0, 9, 0, 1, start="long")], [attempt(0, 9, 0, 1, start=-5.0)],
     [RUN[0], attempt(200, 1e300, 80, 90)], [goodput.Attempt(0, 9, 0, 1, None)]],
)  # fmt: skip
def test_an_account_that_cannot_be_is_left_out(attempts):
    assert spent.section(attempts) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (3.21, "3.2 s"),
        (59.96, "1 min 0 s"),
        (250, "4 min 10 s"),
        (119.7, "2 min 0 s"),
        (7380, "2 h 3 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_times_are_written_for_readers(seconds, text):
    assert spent.duration(seconds) == text
