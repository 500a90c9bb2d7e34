"""Charts draw what they are given, gaps and extremes included."""

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from vlm_jax.evaluation import charts


def svg(markup) -> ET.Element:
    return ET.fromstring(str(markup))


def lines(chart, kind="line"):
    return [
        [tuple(map(float, p.split(","))) for p in e.get("points").split()]
        for e in chart.iter()
        if kind in (e.get("class") or "").split() and e.get("points")
    ]


def test_a_curve_goes_through_its_points_from_left_to_right_and_upwards():
    (points,) = lines(svg(charts.curves([charts.Curve("loss", [(0, 1.0), (5, 2.0), (10, 4.0)])])))
    assert [x for x, _ in points] == [
        charts.LEFT,
        (charts.LEFT + charts.WIDTH - charts.RIGHT) / 2,
        charts.WIDTH - charts.RIGHT,
    ]
    rise = [points[0][1] - y for _, y in points]
    assert rise[2] == pytest.approx(3 * rise[1], rel=0.02) and rise[1] > 10


def test_what_is_not_finite_is_a_gap_and_a_lone_point_a_dot():
    values = [1.0, 2.0, math.nan, 1.5, math.inf, 3.0, 2.0]
    chart = svg(charts.curves([charts.Curve("loss", list(enumerate(values)))]))
    assert [len(part) for part in lines(chart)] == [2, 2]
    shown = [e for e in chart if e.tag == "circle"]
    assert len(shown) == 1


def test_a_long_curve_becomes_means_within_its_range():
    steps = np.arange(10_000)
    values = np.sin(steps / 500) + np.random.default_rng(0).normal(0, 0.2, 10_000)
    chart = svg(charts.curves([charts.Curve("loss", list(zip(steps, values, strict=True)))]))
    (mean,), (band,) = lines(chart), lines(chart, "band")
    assert len(mean) == charts.POINTS and len(band) == 2 * charts.POINTS
    for (_, y), (_, high), (_, low) in zip(mean, band, band[::-1], strict=False):
        assert high <= y <= low
    assert len([e for e in chart if e.get("class") == "hover"]) == charts.HOVERS


def test_hovering_tells_the_step_and_every_value_there():
    chart = svg(
        charts.curves(
            [charts.Curve("a<b", [(1, 0.5), (2, 0.25)], 0.1), charts.Curve("c", [(2, 0.125)])], shares="percent"
        )
    )
    told = [e.text for e in chart.iter("title")]
    assert "step 2\na<b: 25.0\u202f%\nc: 12.5\u202f%" in told and "chance" in told
    assert any("step 1\n" in text for text in told)


@pytest.mark.parametrize(
    "values", [[0.0], [3.0, 3.0], [-1e29, 1e29], [1e-30, 2e-30], [1e12, 1e12 + 1], [math.nan, 1.0], [1e300, 1]]
)
def test_constant_and_extreme_values_give_a_chart_with_finite_places(values):
    text = str(charts.curves([charts.Curve("x", list(enumerate(values)))]))
    ET.fromstring(text)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.9776, "0.9776"), (3.14159, "3.14"), (999.96, "1000"), (123456, "123,456"), (5e-4, "0.0005"), (2e-5, "2e-5"),
     (-0.5, "-0.5"), (1e300, "1e300"), (math.nan, "not finite")],
)  # fmt: skip
def test_numbers_are_written_for_readers(value, text):
    assert charts.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.94312, "94.3"),
        (1, "100.0"),
        (0, "0.0"),
        (9.6e-4, "0.1"),
        (2e-4, "0.02"),
        (1.23e-5, "0.001"),
        (1e-9, "0.0"),
        (-0.052, "-5.2"),
    ],
)
def test_shares_are_written_as_percentages_however_small(value, text):
    assert charts.percent(value) == f"{text}\u202f%"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 17), (1, 1075), (0, 1e-7), (1e5, 3e9)])
def test_ticks_are_round_and_within(low, high):
    found = charts.ticks(low, high)
    assert 3 <= len(found) <= 11 and min(found) >= low and max(found) <= high
    gaps = np.diff(found)
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-6)


def test_chance_and_blind_baselines_are_lines_of_their_own_at_their_values():
    chart = svg(charts.curves([charts.Curve("a", [(0, 0.0), (1, 1.0)], 0.25, 0.5)], shares="percent"))
    at = {e.get("class"): float(e.get("y1")) for e in chart.iter("line") if "base" in (e.get("class") or "")}
    (points,) = lines(chart)
    low, high = points[0][1], points[1][1]
    assert at["base chance"] == pytest.approx(low + 0.25 * (high - low), abs=0.1)
    assert at["base blind"] == pytest.approx(low + 0.5 * (high - low), abs=0.1)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1e-6, 1e6, ["10⁻⁶", "10⁻⁴", "0.01", "1", "100", "10⁴", "10⁶"]), (0.5, 20, ["0.5", "1", "2", "5", "10", "20"]),
     (0.1, 10, ["0.1", "1", "10"]), (3, 4, [])],
)  # fmt: skip
def test_logarithmic_axes_have_powers_of_ten(low, high, expected):
    assert [charts.log_tick(value) for value in charts.log_ticks(low, high)] == expected
