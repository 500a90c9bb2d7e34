"""Charts as SVG, without scripts: curves over steps, and the grid of a confusion matrix."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from vlm_jax.evaluation import base
from vlm_jax.evaluation.markup import Markup, element, shortened

POINTS = 240
"""Longer curves are drawn as means over so many stretches, with the range behind them."""
HOVERS = 100
"""Places along a curve that tell their values."""
WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 22
LARGEST = 1e30
"""Values beyond are gaps in a curve, as those that are not finite."""
MATRIX_CLASSES = 128
"""Matrices with more columns are not drawn."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line: values over steps; at least one of them is below `LARGEST`."""

    name: str
    points: Sequence[tuple[float, float]]
    chance: float | None = None


def number(value: float) -> str:
    """A number for a reader: four digits at most, thousands apart."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = abs(value)
    if 1000 <= size < 1e7:
        return f"{value:,.0f}"
    if 1e-4 <= size < 1000:
        text = f"{value:.{max(0, 3 - math.floor(math.log10(size)) - 1 + (size < 1))}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def percent(value: float) -> str:
    """A share of one as a percentage."""
    return f"{100 * value:.1f}\N{NARROW NO-BREAK SPACE}%" if math.isfinite(value) else "not finite"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about `count` of them."""
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.9g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def curves(lines: Sequence[Curve], *, shares: Literal["percent", "plain"] = "plain") -> Markup:
    """One chart of up to six lines over the same steps.

    Args:
      shares: "percent" writes values as percentages and starts at zero.
    """
    show = percent if shares == "percent" else number
    drawn = [_Drawn.of(line) for line in lines]
    steps = np.concatenate([line.steps for line in drawn])
    lows = np.concatenate([line.low for line in drawn])
    highs = np.concatenate([line.high for line in drawn])
    x_low, x_high = float(steps.min()), float(steps.max())
    y_low, y_high = float(np.nanmin(lows)), float(np.nanmax(highs))
    if shares == "percent":
        y_low, y_high = 0.0, max(y_high, *(line.chance or 0 for line in lines), 1e-3) * 1.04
    else:
        margin = 0.05 * (y_high - y_low) or 0.1 * abs(y_high) or 1.0
        y_low, y_high = y_low - margin, y_high + margin
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1

    def x(step):
        return round(LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y(value):
        return round(HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    grid = []
    for value in ticks(y_low, y_high):
        grid.append(element("line", class_="grid-line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(value), y2=y(value)))
        label = f"{100 * value:g}%" if shares == "percent" else _tick(value)
        grid.append(element("text", label, x=LEFT - 6, y=y(value) + 3.5, text_anchor="end"))
    for value in ticks(x_low, x_high):
        if value == round(value):
            at = x(value)
            anchor = "end" if at > WIDTH - RIGHT - 12 else "start" if at < LEFT + 4 else "middle"
            grid.append(element("text", _tick(value), x=at, y=HEIGHT - 6, text_anchor=anchor))
    marks = []
    for at in sorted({y(line.chance) for line in lines if line.chance is not None and y_low <= line.chance <= y_high}):
        if not marks or at - marks[-1][0] > 4:
            told = element("title", "chance")
            marks.append((at, element("line", told, class_="chance", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at)))
    marks = [mark for _, mark in marks]
    for i, line in enumerate(drawn):
        for part in line.parts():
            if line.averaged == "yes":
                upper = [f"{x(s)},{y(v)}" for s, v in zip(line.steps[part], line.high[part], strict=True)]
                lower = [f"{x(s)},{y(v)}" for s, v in zip(line.steps[part], line.low[part], strict=True)]
                marks.append(element("polygon", class_=f"band s{i % 6}", points=" ".join(upper + lower[::-1])))
            places = [(x(s), y(v)) for s, v in zip(line.steps[part], line.mean[part], strict=True)]
            if len(places) == 1:
                marks.append(element("circle", class_=f"dot s{i % 6}", cx=places[0][0], cy=places[0][1], r=2.5))
            else:
                marks.append(
                    element("polyline", class_=f"line s{i % 6}", points=" ".join(f"{a},{b}" for a, b in places))
                )
    label = ", ".join(f"{line.name} {show(line.last)}" for line in drawn)
    return element(
        "svg", *grid, *marks, *_hovers(drawn, x, y, show), viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label
    )


@dataclasses.dataclass(frozen=True)
class _Drawn:
    name: str
    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    averaged: Literal["yes", "no"]
    last: float

    @classmethod
    def of(cls, line: Curve) -> "_Drawn":
        steps, values = np.array(sorted(dict(line.points).items()), float).T
        values = np.where(np.abs(values) < LARGEST, values, np.nan)
        last = float(values[np.isfinite(values)][-1])
        if len(steps) <= POINTS:
            return cls(line.name, steps, values, values, values, "no", last)
        parts = np.array_split(np.arange(len(steps)), POINTS)
        kept = [values[part][np.isfinite(values[part])] for part in parts]
        at = np.array([steps[part].mean() for part in parts])
        nothing = np.array([np.nan])
        kept = [part if len(part) else nothing for part in kept]
        mean, low, high = (np.array([measure(part) for part in kept]) for measure in (np.mean, np.min, np.max))
        return cls(line.name, at, mean, low, high, "yes", last)

    def parts(self) -> list[slice]:
        """Stretches without gaps."""
        finite = np.concatenate([[False], np.isfinite(self.mean), [False]])
        edges = np.flatnonzero(finite[1:] != finite[:-1])
        return [slice(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _hovers(drawn: Sequence[_Drawn], x: Callable, y: Callable, show: Callable) -> list[Markup]:
    """Strips over the whole height which, under the pointer, show a rule and tell the values there."""
    steps = np.unique(np.concatenate([line.steps for line in drawn]))
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(HOVERS, len(steps))).round().astype(int))]
    places = np.array([x(step) for step in steps])
    edges = np.concatenate([[LEFT], (places[1:] + places[:-1]) / 2, [WIDTH - RIGHT]]).round(1)
    strips = []
    for i, step in enumerate(steps):
        told, dots = [f"step {step:,.0f}"], []
        for k, line in enumerate(drawn):
            at = int(np.abs(line.steps - step).argmin())
            if np.isfinite(line.mean[at]):
                told.append(f"{line.name}: {show(float(line.mean[at]))}")
                dots.append(element("circle", class_=f"dot s{k % 6}", cx=x(line.steps[at]), cy=y(line.mean[at]), r=3))
        width = round(float(edges[i + 1] - edges[i]), 1)
        area = element("rect", x=float(edges[i]), y=TOP, width=width, height=HEIGHT - TOP - BOTTOM)
        rule = element("line", class_="rule", x1=float(places[i]), x2=float(places[i]), y1=TOP, y2=HEIGHT - BOTTOM)
        strips.append(element("g", element("title", "\n".join(told)), area, rule, *dots, class_="hover"))
    return strips


def _tick(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and value % size == 0):
            return f"{value / size:g}{letter}"
    return number(value)


def matrix(table: base.Table) -> Markup:
    """A confusion matrix: every row shaded by its shares, right cells in one colour and wrong ones in another."""
    counts = np.asarray(table.values, float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    columns = {name: i for i, name in enumerate(table.columns)}
    cell = int(np.clip(860 // len(table.columns), 12, 30))
    letters = int(np.clip(max(len(name) for name in (*table.rows, *table.columns)), 4, 20))
    size = min(11, cell - 1)
    left, top = int(letters * size * 0.58) + 22, int(letters * size * 0.58) + 22
    width, height = left + cell * len(table.columns) + 44, top + cell * len(table.rows) + 4
    right, bottom = left + cell * len(table.columns), top + cell * len(table.rows)
    drawn = [element("rect", class_="ground", x=left, y=top, width=right - left, height=bottom - top)]
    for i, name in enumerate(table.rows):
        middle = top + (i + 0.5) * cell + size * 0.35
        own = columns[name]
        drawn.append(element("text", shortened(name, 20), x=left - 5, y=round(middle, 1), text_anchor="end"))
        recall = element("text", f"{100 * shares[i, own]:.0f}%", class_="recall", x=right + 5, y=round(middle, 1))
        drawn.append(recall)
        drawn.append(element("rect", class_="own", x=left + own * cell, y=top + i * cell, width=cell, height=cell))
        for k in np.flatnonzero(counts[i]):
            told = f"{name} \N{RIGHTWARDS ARROW} {table.columns[k]}: {counts[i, k]:.0f} of {counts[i].sum():.0f}"
            shade = round(0.2 + 0.8 * shares[i, k], 2)
            square = element(
                "rect", element("title", told), class_="right" if k == own else "wrong", fill_opacity=shade,
                x=left + int(k) * cell + 0.5, y=top + i * cell + 0.5, width=cell - 1, height=cell - 1,
            )  # fmt: skip
            drawn.append(square)
    for k, name in enumerate(table.columns):
        at = round(left + (k + 0.5) * cell + size * 0.35, 1)
        turn = f"rotate(-90 {at} {top - 5})"
        drawn.append(element("text", shortened(name, 20), x=at, y=top - 5, transform=turn))
    drawn.append(element("text", table.column_axis, class_="axis", x=right, y=12, text_anchor="end"))
    drawn.append(element("text", table.row_axis, class_="axis", x=12, y=bottom, transform=f"rotate(-90 12 {bottom})"))
    svg = element(
        "svg", *drawn, viewBox=f"0 0 {width} {height}", width=width, height=height, font_size=size, role="img",
        aria_label=f"{table.row_axis} against {table.column_axis}",
    )  # fmt: skip
    return element("div", svg, class_="wide")


def confused(table: base.Table, count: int = 8) -> list[Mapping[str, object]]:
    """What was taken for what most often, and more than once: `true`, `predicted`, `count`, `of`."""
    counts = np.asarray(table.values, float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    wrong = counts * (np.array(table.rows, object)[:, None] != np.array(table.columns, object)[None, :])
    order = np.lexsort((-shares.ravel(), -wrong.ravel()))[:count]
    places = [(int(k // wrong.shape[1]), int(k % wrong.shape[1])) for k in order if wrong.flat[k] > 1]
    return [
        {"true": table.rows[i], "predicted": table.columns[k], "count": int(counts[i, k]), "of": int(counts[i].sum())}
        for i, k in places
    ]
