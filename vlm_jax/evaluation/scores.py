"""Numbers of an evaluation in the report: values with intervals beside chance and baselines, and their curves over the run."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from vlm_jax.evaluation import base, caption_scores, charts, confusion, drawings, gallery, shots
from vlm_jax.evaluation.markup import Markup, element, join

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Values over steps by name."""

LINES = 6
"""Curves in one chart."""
ROWS = 32
"""Rows that a table shows."""
NARROW = 3
"""Metrics by number of examples that leave room for a chart beside them."""
_LABELS = {
    "acc": "Accuracy",
    "acc1": "Top-1 accuracy",
    "acc5": "Top-5 accuracy",
    "any_correct_acc1": "Top-1 answer is one of the labels",
    "auroc": "AUROC",
    "learning_rate": "Learning rate",
    "lr": "Learning rate",
    "mean_average_precision": "Mean average precision",
    "mean_average_precision_11": "Mean average precision, 11 points",
    "mean_per_class_recall": "Mean recall over classes",
    "scale": "Scale of the cosines (1 / temperature)",
    "similarity": "Cosine of pairs",
    "similarities": "Cosines of matching and of other pairs",
    "calibration": "Calibration of the temperature",
    "grad_norm": "Gradient norm",
    "examples_per_second": "Examples a second",
    "mean_rank": "Mean rank (1 is best)",
    "image_acc": "Image accuracy",
    "text_acc": "Text accuracy",
    "median_rank": "Median rank (1 is best)",
    "roc": "Receiver operating characteristic",
    "mfu": "Model FLOPs utilisation",
    "rsum": "RSUM, the sum of the six recalls",
    **caption_scores.METRICS,
    "objects_accuracy": "Captions right in shape and colour",
    "shape_accuracy": "Captions right in shape",
    "colour_accuracy": "Captions right in colour",
    "true_share": "Captions true in all they say",
    "grammatical_share": "Captions of the world's grammar",
}
_DIRECTIONS = {"image_retrieval": "Text to image", "text_retrieval": "Image to text"}


def section(name: str, result: base.Result, series: Series, images: gallery.Budget, points: drawings.Budget) -> Markup:
    """One evaluation: its numbers beside chance, their curves, its figures, its tables."""
    note = element("p", element("bdi", result.note), class_="soft small") if result.note else None
    order = sorted(result.figures.items(), key=lambda item: not isinstance(item[1], base.Scatter))  # others stand beside it
    figures = {title: drawn for title, of in order if (drawn := drawings.draw(label(title), of, points, label))}
    curves = _curves(name, result, series)
    if not curves and "shots" in figures and 0 < len(shots.by_metric(result.metrics)[0]) <= NARROW:
        curves = [figures.pop("shots")]
    if len(curves) == 1:
        numbers = element("div", element("div", _metrics(result)), curves, class_="beside")
    else:
        numbers = join(_metrics(result), element("div", curves, class_="grid below") if curves else None)
    drawn = element("div", list(figures.values()), class_="grid below figures") if figures else None
    pairs: dict[str, list[base.Example]] = {}
    for example in result.examples:
        if example.group.endswith(confusion.GROUP):
            pairs.setdefault(example.group, []).append(example)
    tables = []
    for title, table in result.tables.items():
        own = (
            pairs.pop(f"{title.removesuffix('confusion')}{confusion.GROUP}", []) if title.endswith("confusion") else []
        )
        tables.append(_table(title, table, own, images) if table.rows else None)
    rest = [confusion.pairs(label(title), examples, images) for title, examples in pairs.items()]
    return join(note, numbers, drawn, tables, rest)


def _metrics(result: base.Result) -> Markup:
    """The metrics: a table by number of examples of those that have several, and a row for each of the others."""
    groups, single = shots.by_metric(result.metrics)
    return join(_by_shots(groups, result) if groups else None, _single(single, result) if single or not groups else None)


def _by_shots(groups: Mapping[str, Mapping[int, str]], result: base.Result) -> Markup:
    """A row for each number of examples, a column for each metric; chance, and what is reached blind, below."""
    heads = [element("th", "Shots", class_="count"), [element("th", label(metric), class_="n wrap") for metric in groups]]
    rows = []
    for k in sorted({k for of in groups.values() for k in of}):
        cells = []
        for of in groups.values():
            name = of.get(k)
            cells.append(element("td", _value(name, result) if name else None, class_="n value shots"))
        rows.append(element("tr", element("td", str(k), class_="count"), cells))
    for title, known in (("Chance", result.chance), ("Blind", result.blind)):
        found = [{show(name, known[name]) for name in of.values() if name in known} for of in groups.values()]
        if any(found):
            written = [element("td", ", ".join(sorted(values)), class_="n soft") for values in found]
            rows.append(element("tr", element("td", title, class_="soft count"), written))
    table = element("table", element("thead", element("tr", heads)), element("tbody", rows), class_="metrics")
    return element("div", table, class_="wide")


def _value(metric: str, result: base.Result) -> tuple[list[Markup | str], Markup | None]:
    """A value with its interval, and its bar, as far as it has them; a deviation has none."""
    value, interval = result.metrics[metric], result.intervals.get(metric)
    bar = None
    if is_share(metric) and "_deviation" not in metric and math.isfinite(value):
        bar = _bar(value, result.chance.get(metric), result.blind.get(metric), interval)
    between = [" ", element("span", within(metric, interval), class_="interval")] if interval else []
    return [element("b", show(metric, value)), *between], bar


def _single(metrics: Sequence[str], result: base.Result) -> Markup:
    """A row for each metric."""
    with_blind = any(metric in result.blind for metric in metrics)
    with_interval = any(metric in result.intervals for metric in metrics)
    rows = []
    for metric in metrics:
        written, bar = _value(metric, result)
        chance, blind = result.chance.get(metric), result.blind.get(metric)
        cells = [
            element("td", label(metric)),
            element("td", bar, class_="bar"),
            element("td", written, class_="n value"),
            element("td", "" if chance is None else show(metric, chance), class_="n soft"),
            element("td", "" if blind is None else show(metric, blind), class_="n soft") if with_blind else None,
        ]
        rows.append(element("tr", cells))
    names = [
        element("th", "Metric"),
        element("th", class_="bar"),
        element("th", "Value [95\N{NARROW NO-BREAK SPACE}%]" if with_interval else "Value", class_="n"),
        element("th", "Chance", class_="n"),
        element("th", "Blind", class_="n") if with_blind else None,
    ]
    return element("table", element("thead", element("tr", names)), element("tbody", rows), class_="metrics")


def _bar(value: float, chance: float | None, blind: float | None, interval: tuple[float, float] | None) -> Markup:
    def place(share):
        return 100 * min(max(share, 0), 1)

    parts = [
        element("rect", class_="track", x=0, y=4, width="100%", height=4, rx=2),
        element("rect", class_="fill", x=0, y=4, width=f"{place(value):.2f}%", height=4, rx=2),
    ]
    if interval and all(map(math.isfinite, interval)):
        low, high = map(place, interval)
        told = element("title", "95\N{NARROW NO-BREAK SPACE}% interval")
        shown = f"{max(high - low, 0.3):.2f}%"
        parts.append(element("rect", told, class_="range", x=f"{low:.2f}%", y=1, width=shown, height=10, rx=2))
    for kind, share in (("chance", chance), ("blind", blind)):
        if share is not None and math.isfinite(share):
            told = element("title", f"{kind} {charts.percent(share)}")
            x = f"{min(place(share), 99.5):.2f}%"
            if kind == "chance":
                parts.append(element("rect", told, class_="mark chance", x=x, y=0, width=2, height=12))
            else:
                parts.append(element("circle", told, class_="mark blind", cx=x, cy=6, r=3.2))
    return element("svg", parts, aria_hidden="true")


def key(results: Mapping[str, base.Result]) -> Markup:
    """What the marks of bars and charts mean, as far as these results have them."""
    told = [("chance", "chance: what guessing would reach; dotted in charts")]
    if any(result.blind for result in results.values()):
        told.append(("blind", "blind: what is reached without looking; dashed in charts"))
    if any(result.intervals for result in results.values()):
        told.append(("range", "95\N{NARROW NO-BREAK SPACE}% interval over other examples of the same kind"))
    keys = [element("span", element("i", class_=f"mark {kind}"), words, class_="key") for kind, words in told]
    return element("div", keys, class_="keys small")


def _curves(name: str, result: base.Result, series: Series) -> list[Markup]:
    """Metrics of one evaluation over steps: recalls by direction, other shares together, ranks together, in charts of six."""
    groups: dict[str, list[str]] = {}
    for full in series:
        if full.startswith(f"{name}/") and len(series[full]) > 1:
            metric = full.removeprefix(f"{name}/")
            direction = metric.partition("_recall@")[0] + "@" if "_recall@" in metric else ""
            kind = re.search("(median|mean)_rank$|_drop|_deviation", metric)
            group = direction or (kind[0].lstrip("_") if kind else "accuracy" if is_share(metric) else metric)
            groups.setdefault(group, []).append(metric)
    figures = []
    for group, members in sorted(groups.items(), key=lambda item: item[0].endswith("_rank")):
        for first in range(0, len(members), LINES):
            lines = [
                charts.Curve(_short(m), series[f"{name}/{m}"], result.chance.get(m), result.blind.get(m))
                for m in members[first : first + LINES]
            ]
            shares = "percent" if is_share(members[0]) else "plain"
            title = label(group.removesuffix("@")) if len(members) > 1 or group == "accuracy" else label(members[0])
            figures.append(figure(title, lines, shares))
    return figures


def _short(metric: str) -> str:
    """A metric's name beside others of its chart."""
    if "_recall@" in metric:
        return label(metric).rpartition(", ")[2]
    return re.sub(r", (median|mean) rank.*$", "", label(metric))


def figure(title: str, lines: Sequence[charts.Curve], shares: Literal["percent", "plain"] = "plain") -> Markup:
    """A chart under its title, with the last value of every line.

    Args:
      shares: "percent" writes values as percentages.
    """
    write = charts.percent if shares == "percent" else charts.number
    keys = [
        element(
            "span",
            element("i", class_=f"k{i % LINES}") if len(lines) > 1 else None,
            element("bdi", line.name) if len(lines) > 1 else None,
            f" {write(last(line.points))}",
            class_="key",
        )
        for i, line in enumerate(lines)
    ]
    caption = element("figcaption", element("b", element("bdi", title)), element("span", keys, class_="keys"))
    return element("figure", caption, charts.curves(lines, shares=shares))


def last(points: Sequence[tuple[float, float]]) -> float:
    """The last value that a chart shows."""
    return next(value for _, value in reversed(points) if abs(value) < charts.LARGEST)


def label(name: str) -> str:
    """A metric's name for a reader."""
    for prefix, direction in _DIRECTIONS.items():
        if name == prefix:
            return direction
        if name.startswith(f"{prefix}_"):
            rest = name.removeprefix(f"{prefix}_")
            match = re.fullmatch(r"(true_)?recall@(\d+)", rest)
            words = f"{'true recall@' if match[1] else 'R@'}{match[2]}" if match else rest.replace("_", " ")
            return f"{direction}, {'true recall' if rest == 'true' else words}"
    if found := shots.parts(name):
        metric, count = found
        return f"{label(metric)}, {count} shot{'' if count == 1 else 's'}"
    if name in _LABELS:
        return _LABELS[name]
    if name.endswith("_deviation"):
        return f"{label(name.removesuffix('_deviation'))}, deviation"
    if part := re.fullmatch("(acc[15]?)[_@](.+)", name):
        return f"{_LABELS[part[1]]}, {part[2].replace('_', ' ').replace('@', ', ')}"
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def is_share(metric: str) -> bool:
    """Whether a metric is a share of one, which is written as a percentage."""
    words = r"acc|accuracy|recall|hit_rate|precision|map|auroc|share|any_correct"
    return bool(re.search(rf"(^|_)({words})(\d|@|_|$)", metric)) and not re.search("(rank|loss|count)$", metric)


def show(metric: str, value: float) -> str:
    """A metric's value for a reader: recalls and accuracies as percentages."""
    return charts.percent(value) if is_share(metric) else charts.number(value)


def within(metric: str, interval: tuple[float, float]) -> str:
    """An interval for a reader: [93.1, 95.4], in the unit of the value beside it."""
    if not all(map(math.isfinite, interval)):
        return "[not finite]"
    low, high = (f"{100 * v:.1f}" if is_share(metric) else charts.number(v) for v in interval)
    return f"[{low}, {high}]"


def _looks_like_shares(column: np.ndarray) -> bool:
    return bool(((column >= 0) & (column <= 1)).all() and (column % 1 != 0).any())


def _table(name: str, table: base.Table, pairs: Sequence[base.Example], images: gallery.Budget) -> Markup:
    """A confusion matrix as a grid and in words; any other table as it is."""
    if set(table.rows) <= set(table.columns):
        return confusion.section(label(name), table, pairs, images)
    values = np.asarray(table.values, float)
    heads = element("tr", element("th", table.row_axis), [element("th", label(c), class_="n") for c in table.columns])
    shares = [is_share(c) or _looks_like_shares(values[:, k]) for k, c in enumerate(table.columns)]
    rows = []
    for title, row in zip(table.rows[:ROWS], values, strict=False):
        written = [charts.percent(v) if share else charts.number(v) for v, share in zip(row, shares, strict=True)]
        cells = [element("td", text, class_="n") for text in written]
        rows.append(element("tr", element("td", label(title) if is_share(title) else title), cells))
    more = len(table.rows) - ROWS
    body = element("table", element("thead", heads), element("tbody", rows))
    rest = element("p", f"{more} more rows not shown.", class_="soft small") if more > 0 else None
    return join(element("h4", label(name)), element("div", body, class_="wide"), rest)
