"""Charts as SVG, without scripts: numbers and axes for readers, and curves over steps."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from vlm_jax.evaluation.markup import Markup, element

POINTS = 240
"""Longer curves are drawn as means over so many stretches, with the range behind them."""
HOVERS = 100
"""Places along a curve that tell their values."""
WIDTH, HEIGHT = 360, 204
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 36
LARGEST = 1e30
"""Values beyond are gaps in a curve, as those that are not finite."""
COLOURS = 12
"""Classes `s0` to `s11` of the style sheet; the last one is grey."""
_SUPERSCRIPT = str.maketrans("-0123456789", "\N{SUPERSCRIPT MINUS}⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line: values over steps; at least one of them is below `LARGEST`."""

    name: str
    points: Sequence[tuple[float, float]]
    chance: float | None = None
    blind: float | None = None


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
    """A share of one as a percentage, to a tenth, or to its first digits below that."""
    if not math.isfinite(value):
        return "not finite"
    text = f"{100 * value:.1g}" if 1e-6 < value < 9.5e-4 else f"{100 * value:.1f}"
    return f"{text}\N{NARROW NO-BREAK SPACE}%"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about `count` of them."""
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.9g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Powers of ten from low to high, about `count` of them; with their doubles and halves where the range is short."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first < 2:
        found = [m * 10.0**k for k in range(first - 1, last + 1) for m in (1, 2, 5)]
        return [float(f"{value:.9g}") for value in found if low * 0.999 <= value <= high * 1.001]
    apart = -(-(last - first) // count)
    return [10.0**k for k in range(first, last + 1) if k % apart == 0]


@dataclasses.dataclass(frozen=True)
class Frame:
    """The area of a chart: which values it spans, where each of them lies, and the grid with its labels."""

    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str = ""
    """Stands over the area, where the title of the chart does not say it."""
    x_scale: Literal["linear", "log"] = "linear"
    height: int = HEIGHT

    @property
    def top(self) -> int:
        return TOP + (14 if self.y_label else 0)

    @property
    def bottom(self) -> int:
        return self.height - BOTTOM

    def at_x(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.x_scale == "log" else v for v in (*self.x, value))
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def at_y(self, value: float) -> float:
        return round(self.bottom - (value - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - self.top), 1)

    def grid(self, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]]) -> list[Markup]:
        """Lines, values and what they are of."""
        drawn = []
        for value, text in y_ticks:
            at = self.at_y(value)
            drawn.append(element("line", class_="grid-line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at))
            drawn.append(element("text", text, x=LEFT - 6, y=round(at + 3.5, 1), text_anchor="end"))
        for value, text in x_ticks:
            at = self.at_x(value)
            anchor = "end" if at > WIDTH - RIGHT - 12 else "start" if at < LEFT + 4 else "middle"
            drawn.append(element("text", text, x=at, y=self.bottom + 15, text_anchor=anchor))
        centre = (LEFT + WIDTH - RIGHT) / 2
        drawn.append(element("text", self.x_label, class_="axis", x=centre, y=self.height - 5, text_anchor="middle"))
        if self.y_label:
            drawn.append(element("text", self.y_label, class_="axis", x=LEFT - 6, y=10))
        return drawn

    def svg(self, *drawn: Markup | Sequence[Markup], label: str) -> Markup:
        """The chart of these parts; `label` is what is read out in place of it."""
        return element("svg", *drawn, viewBox=f"0 0 {WIDTH} {self.height}", role="img", aria_label=label)


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
    baselines = [(kind, value) for line in lines for kind, value in (("chance", line.chance), ("blind", line.blind))]
    baselines = [(kind, value) for kind, value in baselines if value is not None and math.isfinite(value)]
    if shares == "percent":
        y_low, y_high = 0.0, max(y_high, *(value for _, value in baselines), 1e-3) * 1.04
    else:
        margin = 0.05 * (y_high - y_low) or 0.1 * abs(y_high) or 1.0
        y_low, y_high = y_low - margin, y_high + margin
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    frame = Frame((x_low, x_high), (y_low, y_high), "step")
    x, y = frame.at_x, frame.at_y
    grid = frame.grid(
        [(value, tick(value)) for value in ticks(x_low, x_high) if value == round(value)],
        [(value, f"{100 * value:g}%" if shares == "percent" else tick(value)) for value in ticks(y_low, y_high)],
    )
    marks: list[Markup] = []
    taken: list[tuple[str, float]] = []
    for kind, at in sorted({(kind, y(value)) for kind, value in baselines if y_low <= value <= y_high}):
        if not taken or taken[-1][0] != kind or at - taken[-1][1] > 4:
            taken.append((kind, at))
            told = element("title", kind)
            marks.append(element("line", told, class_=f"base {kind}", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at))
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
    return frame.svg(grid, marks, _hovers(drawn, x, y, show), label=label)


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


def tick(value: float) -> str:
    """A number beside an axis: 20k, 1.5M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and value % size == 0):
            return f"{value / size:g}{letter}"
    return number(value)


def log_tick(value: float) -> str:
    """A number beside a logarithmic axis: 0.1, 1, 10, 10⁻⁴."""
    exponent = round(math.log10(value))
    if abs(exponent) < 3 or not math.isclose(value, 10.0**exponent):
        return number(value)
    return f"10{str(exponent).translate(_SUPERSCRIPT)}"


def edges(places: np.ndarray, low: float, high: float) -> np.ndarray:
    """Where the strips under the pointer around places begin and end: halfway between them."""
    return np.concatenate([[low], (places[1:] + places[:-1]) / 2, [high]]).round(1)


def strip(
    told: str, left: float, right: float, at: float, *marks: Markup, top: int = TOP, bottom: int = HEIGHT - BOTTOM
) -> Markup:
    """A stretch of a chart which, under the pointer, shows a rule and its marks and tells its values."""
    area = element("rect", x=left, y=top, width=round(right - left, 1), height=bottom - top)
    rule = element("line", class_="rule", x1=at, x2=at, y1=top, y2=bottom)
    return element("g", element("title", told), area, rule, *marks, class_="hover")


def _hovers(drawn: Sequence[_Drawn], x: Callable, y: Callable, show: Callable) -> list[Markup]:
    steps = np.unique(np.concatenate([line.steps for line in drawn]))
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(HOVERS, len(steps))).round().astype(int))]
    places = np.array([x(step) for step in steps])
    bounds = edges(places, LEFT, WIDTH - RIGHT)
    strips = []
    for i, step in enumerate(steps):
        told, dots = [f"step {step:,.0f}"], []
        for k, line in enumerate(drawn):
            at = int(np.abs(line.steps - step).argmin())
            if np.isfinite(line.mean[at]):
                told.append(f"{line.name}: {show(float(line.mean[at]))}")
                dots.append(element("circle", class_=f"dot s{k % 6}", cx=x(line.steps[at]), cy=y(line.mean[at]), r=3))
        strips.append(strip("\n".join(told), float(bounds[i]), float(bounds[i + 1]), float(places[i]), *dots))
    return strips
