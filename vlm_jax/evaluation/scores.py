"""Numbers of an evaluation in the report: values beside chance, their curves over the run, what was confused."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from vlm_jax.evaluation import base, charts
from vlm_jax.evaluation.markup import Markup, element, join

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Values over steps by name."""

OPEN_ROWS = 32
"""A matrix of more rows is folded."""
LINES = 6
"""Curves in one chart."""
_LABELS = {
    "acc1": "Top-1 accuracy",
    "acc5": "Top-5 accuracy",
    "mean_per_class_recall": "Mean recall over classes",
    "image_retrieval": "Text to image",
    "text_retrieval": "Image to text",
    "learning_rate": "Learning rate",
    "scale": "Scale of the cosines (1 / temperature)",
    "similarity": "Cosine of pairs",
    "grad_norm": "Gradient norm",
    "examples_per_second": "Examples a second",
    "accuracy": "Accuracy",
    "median_rank": "Median rank",
    "mfu": "Model FLOPs utilisation",
}


def section(name: str, result: base.Result, series: Series) -> Markup:
    """One evaluation: its numbers beside chance, its curves, its tables."""
    rows = []
    for metric, value in result.metrics.items():
        chance = result.chance.get(metric)
        bar = _bar(value, chance) if _is_share(metric) and math.isfinite(value) else None
        cells = [
            element("td", label(metric)),
            element("td", bar, class_="bar"),
            element("td", show(metric, value), class_="n value"),
            element("td", "" if chance is None else show(metric, chance), class_="n soft"),
        ]
        rows.append(element("tr", cells))
    names = [
        element("th", "Metric"),
        element("th", class_="bar"),
        element("th", "Value", class_="n"),
        element("th", "Chance", class_="n"),
    ]
    table = element("table", element("thead", element("tr", names)), element("tbody", rows))
    note = element("p", element("bdi", result.note), class_="soft small") if result.note else None
    figures = _curves(name, result, series)
    if len(figures) == 1:
        numbers = element("div", element("div", table), figures, class_="beside")
    else:
        numbers = join(table, element("div", figures, class_="grid below") if figures else None)
    tables = [_table(table_name, values) for table_name, values in result.tables.items()]
    return element("div", element("h3", element("bdi", name)), note, numbers, tables, class_="evaluation")


def _bar(value: float, chance: float | None) -> Markup:
    parts = [
        element("rect", class_="track", x=0, y=3, width="100%", height=4, rx=2),
        element("rect", class_="fill", x=0, y=3, width=f"{100 * min(max(value, 0), 1):.2f}%", height=4, rx=2),
    ]
    if chance is not None and math.isfinite(chance):
        told = element("title", f"chance {charts.percent(chance)}")
        parts.append(
            element("rect", told, class_="mark", x=f"{100 * min(max(chance, 0), 1):.2f}%", y=0, width=1.5, height=10)
        )
    return element("svg", parts, aria_hidden="true")


def _curves(name: str, result: base.Result, series: Series) -> list[Markup]:
    """Metrics of one evaluation over steps: recalls by direction, other shares together, ranks together."""
    groups: dict[str, list[str]] = {}
    for full in series:
        if full.startswith(f"{name}/") and len(series[full]) > 1:
            metric = full.removeprefix(f"{name}/")
            kind = "median_rank" if metric.endswith("_median_rank") else "accuracy" if _is_share(metric) else metric
            groups.setdefault(metric.partition("_recall@")[0] + "@" if "@" in metric else kind, []).append(metric)
    figures = []
    for group, members in sorted(groups.items(), key=lambda item: item[0] == "median_rank"):
        lines = [
            charts.Curve(
                label(m).rpartition(", ")[2] if "@" in m else label(m).removesuffix(", median rank"),
                series[f"{name}/{m}"],
                result.chance.get(m),
            )
            for m in members[:LINES]
        ]
        shares = "percent" if _is_share(members[0]) else "plain"
        figures.append(figure(label(group.removesuffix("@")), lines, shares))
    return figures


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
            f"{line.name} " if len(lines) > 1 else None,
            write(last(line.points)),
            class_="key",
        )
        for i, line in enumerate(lines)
    ]
    caption = element("figcaption", element("b", title), element("span", keys, class_="keys"))
    return element("figure", caption, charts.curves(lines, shares=shares))


def last(points: Sequence[tuple[float, float]]) -> float:
    """The last value that a chart shows."""
    return next(value for _, value in reversed(points) if abs(value) < charts.LARGEST)


def label(name: str) -> str:
    """A metric's name for a reader."""
    match = re.fullmatch(r"(image_retrieval|text_retrieval)_(?:recall@(\d+)|median_rank)", name)
    if match:
        return f"{_LABELS[match[1]]}, {f'R@{match[2]}' if match[2] else 'median rank'}"
    if name in _LABELS:
        return _LABELS[name]
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _is_share(metric: str) -> bool:
    return bool(re.search(r"(^|_)(acc|accuracy|recall)(\d|@|_|$)", metric)) or metric.endswith("_share")


def show(metric: str, value: float) -> str:
    """A metric's value for a reader: recalls and accuracies as percentages."""
    return charts.percent(value) if _is_share(metric) else charts.number(value)


def _table(name: str, table: base.Table) -> Markup | None:
    """A confusion matrix as a grid, and the pairs most often confused in words; any other table as it is."""
    if not table.rows:
        return None
    if not set(table.rows) <= set(table.columns):
        return _plain(name, table)
    parts = []
    if len(table.columns) <= charts.MATRIX_CLASSES:
        told = "Each row is a true class that occurs, shaded by where its images went; its recall stands at the right."
        told = element("p", told, class_="soft small")
        if len(table.rows) > OPEN_ROWS:
            summary = element("summary", f"{label(name)} of {len(table.rows)} classes")
            parts.append(element("details", summary, told, charts.matrix(table)))
        else:
            parts += [element("h4", label(name)), told, charts.matrix(table)]
    pairs = charts.confused(table)
    if pairs:
        lines = [
            element(
                "li",
                element("span", element("bdi", pair["true"]), " taken for ", element("bdi", pair["predicted"])),
                element("span", f"{pair['count']} of {pair['of']}", class_="soft n"),
            )
            for pair in pairs
        ]
        parts += [element("h4", "Most often confused"), element("ul", lines, class_="columns")]
    return join(parts)


def _plain(name: str, table: base.Table) -> Markup:
    heads = element(
        "tr", element("th", table.row_axis), [element("th", column, class_="n") for column in table.columns]
    )
    rows = [
        element("tr", element("td", row), [element("td", charts.number(float(value)), class_="n") for value in values])
        for row, values in zip(table.rows[:OPEN_ROWS], table.values, strict=False)
    ]
    more = len(table.rows) - OPEN_ROWS
    body = element("table", element("thead", heads), element("tbody", rows))
    rest = element("p", f"{more} more rows not shown.", class_="soft small") if more > 0 else None
    return join(element("h4", label(name)), element("div", body, class_="wide"), rest)
