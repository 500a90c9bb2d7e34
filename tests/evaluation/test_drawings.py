"""Figures are drawn at their values, with legends, and left out where there is nothing to draw."""

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from vlm_jax.evaluation import base, charts, drawings

NAN = math.nan


def draw(figure, budget=None):
    drawn = drawings.draw("Title", figure, budget or drawings.Budget())
    return None if drawn is None else ET.fromstring(str(drawn))


def words(drawn):
    return " ".join(" ".join(drawn.itertext()).split()).replace("\u202f", " ")


def calibration(**changes):
    values = {
        "edges": np.linspace(0, 1, 5), "confidence": np.array([NAN, 0.4, 0.6, 0.9]), "accuracy": np.array([NAN, 0.5, 0.5, 0.7]),
        "counts": np.array([0, 10, 10, 80]), "error": 0.18, "scale": 20.0, "best_scale": 9.5,
    }  # fmt: skip
    return base.Calibration(**(values | changes))


def test_a_histogram_draws_shares_so_that_groups_of_any_size_can_be_compared():
    figure = base.Histogram(
        "cosine", np.array([0.0, 0.5, 1.0]), {"own": np.array([1, 3]), "<others>": np.array([300, 100])}
    )
    drawn = draw(figure)
    outlines = {e.get("class"): e.get("points").split() for e in drawn.iter("polyline")}
    heights = {name: [200 - float(p.split(",")[1]) for p in points] for name, points in outlines.items()}
    first, second = heights["line s0"], heights["line s1"]
    assert first[1:3] == second[3:5] and first[3:5] == second[1:3] and first[3] > first[1]
    assert "own : 4, mean 0.625" in words(drawn) and "<others> : 400, mean 0.375" in words(drawn)
    assert "cosine 0 to 0.5 own: 1, 25.0 % <others>: 300, 75.0 %" in words(drawn)


def test_calibration_draws_each_bin_with_its_gap_and_says_what_would_fit():
    drawn = draw(calibration())
    frame = charts.Frame((0.0, 1.0), (0.0, 1.0), "", "y", height=240)
    gaps = [e for e in drawn.iter("rect") if e.get("class") == "gap"]
    assert len(gaps) == 3
    assert float(gaps[2].get("y")) == frame.at_y(0.9)
    assert float(gaps[2].get("height")) == pytest.approx(frame.at_y(0.7) - frame.at_y(0.9), abs=0.11)
    said = words(drawn)
    assert "error 18.0 %" in said and "16.0 points above" in said and "Scale 20 (1" in said and "9.5 fits best" in said
    assert "80 examples, 80.0 %" in said


def test_a_map_keeps_shapes_and_says_what_each_point_is():
    points = np.array([[0, 0], [4, 0], [0, 2], [NAN, 1]])
    drawn = draw(base.Scatter("PCA, 34 % of the variance", points, ("a", "a", "b", "b"), ("one", "two", "<b>", "lost")))
    places = np.array([[float(e.get("cx")), float(e.get("cy"))] for e in drawn.iter("circle")])
    assert len(places) == 3
    assert places[1, 0] - places[0, 0] == pytest.approx(2 * (places[0, 1] - places[2, 1]), abs=0.2)
    assert [e.find("title").text for e in drawn.iter("circle")] == ["one\na", "two\na", "<b>\nb"]
    assert "PCA, 34 % of the variance; 3 of 4 points" in words(drawn)


def test_a_large_map_is_thinned_but_for_small_groups_and_a_page_holds_so_many_points():
    rng = np.random.default_rng(0)
    groups = ("images",) * 5000 + ("names",) * 10
    scatter = base.Scatter("t-SNE", rng.normal(size=(5010, 2)), groups)
    budget = drawings.Budget(2000)
    circles = list(draw(scatter, budget).iter("circle"))
    assert len(circles) == drawings.MAX_POINTS
    assert sum(e.find("title").text == "names" for e in circles) == 10
    assert len({e.get("r") for e in circles}) == 2, "and the few are larger"
    assert len(list(draw(scatter, budget).iter("circle"))) == 500
    assert draw(scatter, budget) is None


def test_groups_beyond_the_colours_share_one():
    names = [f"g{i}" for i in range(30)]
    drawn = draw(base.Scatter("PCA", np.arange(60.0).reshape(30, 2), tuple(names)))
    assert "19 others" in words(drawn) and len(list(drawn.iter("title"))) == 30
    assert sum((e.get("class") or "").startswith("key") for e in drawn.iter("span")) == charts.COLOURS


def test_a_sweep_has_a_logarithmic_axis_and_marks_what_was_chosen():
    points = [(1e-4, 0.5), (1e-2, 0.75), (1.0, 0.6)]
    drawn = draw(base.Lines("penalty", "accuracy on validation", {"probe": points}, "log", 1e-2))
    (line,) = drawn.iter("polyline")
    xs = [float(p.split(",")[0]) for p in line.get("points").split()]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    (chosen,) = [e for e in drawn.iter("line") if e.get("class") == "chosen"]
    assert float(chosen.get("x1")) == xs[1]
    said = words(drawn)
    assert (
        "penalty 0.01 probe: 75.0 %" in said
        and "chosen: 0.01" in said
        and "10⁻⁴" in said
        and "accuracy on validation" in said
    )


def test_a_line_of_many_points_has_no_marks():
    points = [(k / 100, (k / 100) ** 2) for k in range(101)]
    drawn = draw(base.Lines("false positive rate", "true positive rate", {"model": points}))
    assert not list(drawn.iter("circle")) and len(list(drawn.iter("polyline"))) == 1
    assert "75%" in words(drawn)


@pytest.mark.parametrize(
    "figure",
    [
        base.Histogram("cosine", np.array([0.0, 1.0]), {"a": np.array([0])}),
        base.Histogram("cosine", np.array([0.0, 1.0]), {}),
        calibration(counts=np.zeros(4, int)),
        base.Scatter("PCA", np.zeros((0, 2)), ()),
        base.Scatter("PCA", np.full((2, 2), NAN), ("a", "a")),
        base.Lines("x", "y", {}),
        base.Lines("x", "y", {"a": [(0.0, 1.0), (-1.0, 1.0)], "b": [(1.0, NAN)]}, "log"),
        "not a figure",
    ],
)
def test_what_holds_nothing_is_left_out(figure):
    assert draw(figure) is None


@pytest.mark.parametrize(
    "figure",
    [
        base.Histogram("cosine", np.array([0.5, 0.5005]), {"a": np.array([3])}),
        calibration(error=NAN, scale=0.0, best_scale=NAN),
        base.Scatter("PCA", np.ones((3, 2)), ("a", "b", "c")),
        base.Scatter("PCA", np.array([[0, 0], [1e12, 0]]), ("a", "b")),
        base.Lines("x", "y", {"a": [(1.0, 2.0)]}),
        base.Lines("x", "y", {"a": [(1.0, 2.0)]}, "log", 1.0),
        base.Lines("x", "y", {f"line {i}": [(0.0, 1.0), (NAN, 1.0), (2.0, float(i))] for i in range(20)}, chosen=0.0),
        base.Lines("x", "accuracy", {"a": [(1e-9, 0.0), (1e9, 1.0)]}, "log", -1.0),
    ],
)
def test_odd_values_give_a_drawing_with_finite_places(figure):
    drawn = draw(figure)
    assert not [
        v for e in drawn.iter() for k, v in e.attrib.items() if k != "aria-label" and ("nan" in v or "inf" in v)
    ]
