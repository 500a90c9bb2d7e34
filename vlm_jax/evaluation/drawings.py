"""Figures of an evaluation as SVG: how cosines are spread, whether confidence is deserved, where embeddings lie, what a sweep found."""

import collections
import itertools
import math
import re
from collections.abc import Callable

import numpy as np

from vlm_jax.evaluation import base, charts
from vlm_jax.evaluation.markup import Markup, element, shortened

MAX_POINTS = 1500
"""Points that one map shows."""
MARKED = 40
"""Lines of more points have no marks."""
MAP_WIDTH = 480
"""Of the view box of a map; it holds no text, so it may be drawn at any size."""
_RARE = 1 / 6
"""Groups with fewer points than this share of the largest are drawn larger, over the others."""


class Budget:
    """Counts the points of maps that a page may still hold."""

    def __init__(self, points: int = 8000):
        self.left = points


def draw(title: str, figure: base.Figure, budget: Budget, label: Callable[[str], str] = str) -> Markup | None:
    """A figure under its title; None where it holds nothing that can be drawn, or is of a kind unknown here.

    Args:
      label: from names of metrics, which name lines and axes, to words.
    """
    match figure:
        case base.Histogram():
            return _histogram(title, figure)
        case base.Calibration():
            return _calibration(title, figure)
        case base.Scatter():
            return _scatter(title, figure, budget)
        case base.Lines():
            return _lines(title, figure, label)
    return None


def _figure(title: str, keys: list[Markup], drawn: Markup, told: str = "", kind: str | None = None) -> Markup:
    legend = element("div", keys, class_="keys") if keys else None
    below = element("p", element("bdi", told), class_="soft small") if told else None
    caption = element("figcaption", element("b", title))
    return element("figure", element("div", caption, legend), drawn, below, class_=kind)


def _key(i: int, *words: object, kind: str = "") -> Markup:
    colour = min(i, charts.COLOURS - 1)
    return element("span", element("i", class_=f"k{colour}{kind}"), words, class_=f"key g{colour}")


def _histogram(title: str, histogram: base.Histogram) -> Markup | None:
    edges = np.asarray(histogram.edges, float)
    counts = {name: np.asarray(values, float) for name, values in histogram.counts.items()}
    shares = {name: values / values.sum() for name, values in counts.items() if values.sum() > 0}
    if not shares:
        return None
    middles = (edges[1:] + edges[:-1]) / 2
    top = max(float(values.max()) for values in shares.values()) * 1.06
    frame = charts.Frame((float(edges[0]), float(edges[-1])), (0.0, top), histogram.axis, "share of each group")
    drawn = frame.grid(
        [(value, charts.number(value)) for value in charts.ticks(*frame.x)],
        [(value, f"{100 * value:g}%") for value in charts.ticks(0, top, 4)],
    )
    keys = []
    for i, (name, values) in enumerate(shares.items()):
        steps = [(edge, value) for k, value in enumerate(values) for edge in (edges[k], edges[k + 1])]
        places = [(edges[0], 0.0), *steps, (edges[-1], 0.0)]
        outline = " ".join(f"{frame.at_x(x)},{frame.at_y(y)}" for x, y in places)
        drawn += [element("polygon", class_=f"band s{i % 6}", points=outline)]
        drawn += [element("polyline", class_=f"line s{i % 6}", points=outline)]
        mean = charts.number(round(float(values @ middles), 3))
        keys.append(_key(i % 6, element("bdi", name), f": {charts.number(counts[name].sum())}, mean {mean}"))
    for k, middle in enumerate(middles):
        told = [f"{histogram.axis} {charts.number(round(edges[k], 4))} to {charts.number(round(edges[k + 1], 4))}"]
        told += [f"{name}: {charts.number(counts[name][k])}, {charts.percent(shares[name][k])}" for name in shares]
        left, right = frame.at_x(edges[k]), frame.at_x(edges[k + 1])
        drawn.append(charts.strip("\n".join(told), left, right, frame.at_x(middle), top=frame.top))
    return _figure(title, keys, frame.svg(drawn, label=f"{histogram.axis} of {', '.join(shares)}"))


def _calibration(title: str, calibration: base.Calibration) -> Markup | None:
    counts = np.asarray(calibration.counts, float)
    if not counts.sum() > 0:
        return None
    frame = charts.Frame((0.0, 1.0), (0.0, 1.0), "confidence: probability of the answer", "accuracy", height=240)
    labels = [(value, f"{100 * value:.0f}%") for value in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    drawn = frame.grid(labels, labels)
    for k in np.flatnonzero(counts):
        left, right = frame.at_x(calibration.edges[k]), frame.at_x(calibration.edges[k + 1])
        accuracy, confidence = float(calibration.accuracy[k]), float(calibration.confidence[k])
        share = counts[k] / counts.sum()
        told = (
            f"confidence {charts.percent(confidence)}\naccuracy {charts.percent(accuracy)}\n"
            f"{charts.number(counts[k])} examples, {charts.percent(share)}"
        )
        low, high = sorted((frame.at_y(accuracy), frame.at_y(confidence)))
        width = round(right - left - 2, 1)
        bars = [
            element("rect", class_="accuracy", x=left + 1, y=frame.at_y(accuracy), width=width,
                    height=round(frame.bottom - frame.at_y(accuracy), 1), fill_opacity=round(0.25 + 0.75 * share**0.5, 2)),
            element("rect", class_="gap", x=left + 1, y=low, width=width, height=round(high - low, 1)),
        ]  # fmt: skip
        drawn.append(element("g", element("title", told), bars))
    start, end = (frame.at_x(0), frame.at_y(0)), (frame.at_x(1), frame.at_y(1))
    drawn.append(element("line", class_="base chance", x1=start[0], y1=start[1], x2=end[0], y2=end[1]))
    keys = [
        element("span", element("i", class_="square accuracy"), "accuracy, darker: more examples", class_="key"),
        element("span", element("i", class_="square gap"), "gap to the confidence", class_="key"),
    ]
    gap = float(
        np.nansum(counts * (np.asarray(calibration.confidence) - np.asarray(calibration.accuracy))) / counts.sum()
    )
    side = "above" if gap > 0 else "below"
    error, scale, best = calibration.error, calibration.scale, calibration.best_scale
    told = (
        f"Expected calibration error {charts.percent(error)}; on average the confidence lies {abs(100 * gap):.1f} points {side} "
        f"the accuracy. Scale {charts.number(scale)} (1 / temperature); on these examples {charts.number(round(best, 2))} fits best."
    )
    return _figure(title, keys, frame.svg(drawn, label=f"{title}, expected error {charts.percent(error)}"), told)


def _scatter(title: str, scatter: base.Scatter, budget: Budget) -> Markup | None:
    points = np.asarray(scatter.points, float).reshape(-1, 2)
    kept = np.flatnonzero(np.isfinite(points).all(1))
    room = min(MAX_POINTS, budget.left)
    sizes = collections.Counter(scatter.groups[i] for i in kept)
    rare = {name for name, size in sizes.items() if size < _RARE * max(sizes.values())}
    if len(kept) > room:
        small = [i for i in kept if scatter.groups[i] in rare][:room]
        large = np.array([i for i in kept if scatter.groups[i] not in rare])
        kept = np.array(sorted([*small, *base.spread(large, room - len(small))]), int)
    if not len(kept):
        return None
    budget.left -= len(kept)
    low, high = points[kept].min(0), points[kept].max(0)
    span = np.maximum(high - low, 1e-12 + 0.25 * (high - low).max())
    scale = (MAP_WIDTH - 20) / span[0]
    height = min(340.0, span[1] * scale + 20)
    scale = min(scale, (height - 20) / span[1])
    corner = np.array([MAP_WIDTH, height]) / 2 - (low + high) / 2 * (scale, -scale)
    places = (points * (scale, -scale) + corner).round(1)

    names = list(dict.fromkeys(scatter.groups))
    largest = sorted(names, key=lambda name: (name not in rare, -sizes[name]))[: charts.COLOURS - 1]
    own = largest if len(names) > charts.COLOURS else names
    colours = {name: k for k, name in enumerate(name for name in names if name in own)}
    groups: dict[int, list[Markup]] = {}
    for i in kept:
        name = scatter.groups[i]
        colour = colours.get(name, charts.COLOURS - 1)
        title_of = scatter.titles[i] if i < len(scatter.titles) else ""
        told = name if title_of in ("", name) else f"{shortened(title_of, 100)}\n{name}"
        groups.setdefault(colour, []).append(_mark(places[i], colour, 4.5 if name in rare else 2.2, told))
    above = {colours[name] for name in rare if name in colours}
    order = sorted(groups, key=lambda k: (k in above, k))
    marks = [element("g", groups[k], class_=f"points s{k}{' rare' if k in above else ''}") for k in order]
    keys = [_key(k, element("bdi", shortened(n, 40)), kind=" diamond" if k >= 6 else "") for n, k in colours.items()]
    if len(names) > len(own):
        keys.append(_key(charts.COLOURS - 1, f"{len(names) - len(own)} others", kind=" diamond"))
    ground = element("rect", class_="ground", x=0, y=0, width=MAP_WIDTH, height=round(height, 1), rx=8)
    drawn = element(
        "svg", ground, marks, viewBox=f"0 0 {MAP_WIDTH} {round(height, 1)}", role="img",
        aria_label=f"{title}: {len(kept)} points of {', '.join(itertools.islice(colours, 12))}",
    )  # fmt: skip
    if scatter.method.startswith("t-SNE"):
        how = "neighbours stay together, distances between islands mean nothing"
    else:
        how = "both axes have the same unit"
    of = f"{len(kept):,} of {len(points):,} points" if len(kept) < len(points) else f"{len(kept):,} points"
    return _figure(title, keys, drawn, f"{scatter.method}; {of}; {how}. Point at one to read what it is.", "double")


def _mark(place: np.ndarray, colour: int, radius: float, told: str) -> Markup:
    x, y = place.tolist()
    if colour < 6:
        return element("circle", element("title", told), cx=x, cy=y, r=radius)
    r = round(radius * 1.2, 1)
    return element("path", element("title", told), d=f"M{x - r:.1f} {y}l{r}-{r} {r} {r}-{r} {r}z")


def _lines(title: str, lines: base.Lines, label: Callable[[str], str]) -> Markup | None:
    finite = {
        name: [(x, y) for x, y in points if _usable(x, lines.scale) and _usable(y, "linear")]
        for name, points in lines.lines.items()
    }
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return None
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    chosen = lines.chosen if lines.chosen is not None and _usable(lines.chosen, lines.scale) else None
    swept = xs if chosen is None else [*xs, chosen]
    x_low, x_high = min(swept), max(swept)
    if lines.scale == "log":
        x_low, x_high = (x_low, x_high) if x_low < x_high else (x_low / 2, x_high * 2)
        x_ticks = [(value, charts.log_tick(value)) for value in charts.log_ticks(x_low, x_high)]
    else:
        x_low, x_high = (x_low, x_high) if x_low < x_high else (x_low - 1, x_high + 1)
        x_ticks = [(value, charts.tick(value)) for value in charts.ticks(x_low, x_high)]
    margin = 0.06 * (max(ys) - min(ys)) or 0.1 * abs(max(ys)) or 1.0
    y_low, y_high = min(ys) - margin, max(ys) + margin
    shares = (
        bool(re.search(r"accuracy|recall|share|acc\d?\b|precision|positive rate", lines.y_axis.lower()))
        and 0 <= min(ys) <= max(ys) <= 1
    )
    show = charts.percent if shares else charts.number
    frame = charts.Frame((x_low, x_high), (y_low, y_high), lines.x_axis, label(lines.y_axis), lines.scale)
    y_ticks = [
        (v, f"{100 * v:g}%" if shares else charts.tick(v)) for v in charts.ticks(y_low, y_high) if not shares or v <= 1
    ]
    drawn = frame.grid(x_ticks, y_ticks)
    keys = []
    if chosen is not None:
        told = element("title", f"chosen: {charts.number(chosen)}")
        at = frame.at_x(chosen)
        drawn.append(element("line", told, class_="chosen", x1=at, x2=at, y1=frame.top, y2=frame.bottom))
    for i, (name, points) in enumerate(finite.items()):
        colour = min(i, charts.COLOURS - 1)
        places = [(frame.at_x(x), frame.at_y(y)) for x, y in points]
        drawn.append(element("polyline", class_=f"line s{colour}", points=" ".join(f"{a},{b}" for a, b in places)))
        for (x, y), (a, b) in zip(points, places, strict=True) if len(points) <= MARKED else ():
            told = element("title", f"{lines.x_axis} {charts.number(x)}\n{name}: {show(y)}")
            taken = chosen is not None and math.isclose(x, chosen)
            drawn.append(element("circle", told, class_=f"dot s{colour}", cx=a, cy=b, r=4.5 if taken else 2.8))
        if i < charts.COLOURS:
            keys.append(_key(colour, element("bdi", label(name))))
    if chosen is not None:
        keys.append(element("span", element("i", class_="dashed"), f"chosen: {charts.number(chosen)}", class_="key"))
    return _figure(title, keys, frame.svg(drawn, label=f"{label(lines.y_axis)} over {lines.x_axis}"))


def _usable(value: float, scale: str) -> bool:
    return math.isfinite(value) and abs(value) < charts.LARGEST and (scale == "linear" or value > 0)
