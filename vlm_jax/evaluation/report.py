"""The report of a run: one HTML file with its curves, numbers, confusion, examples, recipe and environment.

It needs no network and runs no script, and its content policy forbids both. All text from data and configuration is
escaped where the markup is made (`markup`).
"""

import base64
import dataclasses
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeGuard

from vlm_jax.evaluation import base, charts, records, style
from vlm_jax.evaluation.markup import Markup, element, join, shortened

MAX_EXAMPLES = 24
"""Examples that one heading shows."""
MAX_IMAGE_BYTES = 6 * 2**20
"""Bytes of all thumbnails together; examples beyond that go without."""
OPEN_ROWS = 32
"""A matrix of more rows is folded."""
LINES = 6
"""Curves in one chart."""
FIRST = ("loss", "learning_rate", "scale", "bias", "similarity", "grad_norm", "examples_per_second")
"""Charts that stand in front, in this order; the others are folded away."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

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
_MIME = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"))


def write(
    path: str | os.PathLike,
    *,
    title: str,
    config: Mapping[str, Any],
    metrics_history: Sequence[Mapping[str, Any]],
    results: Mapping[str, base.Result],
    environment: Mapping[str, Any],
) -> None:
    """Writes the report, whole or not at all.

    Args:
      config: the resolved configuration; shown as JSON.
      metrics_history: rows of metrics.jsonl, each with `step`; metrics of an evaluation are named `<name>/<metric>`.
      results: the last results of the evaluations, by name.
      environment: versions, devices and what else is worth knowing; values are written as text.
    """
    records.write_text(path, page(title, config, metrics_history, results, environment))


def page(
    title: str,
    config: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    results: Mapping[str, base.Result],
    environment: Mapping[str, Any],
) -> Markup:
    """The report as one string."""
    series = _series(history)
    training = {name: points for name, points in series.items() if name.split("/")[0] not in results}
    budget = _Budget()
    told = (
        element("p", "Chance is the tick on a bar and the dotted line in a chart.", class_="soft small")
        if results
        else None
    )
    sections = {
        "Evaluation": join(told, [_evaluation(name, result, series) for name, result in results.items()]),
        "Training": _training(training),
        "Examples": join([_examples(name, result, budget) for name, result in results.items()]),
        "Recipe": _recipe(config),
        "Environment": _environment(environment),
    }
    sections = {name: body for name, body in sections.items() if body}
    head = join(
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", title),
        element("style", Markup(style.CSS)),
    )
    header = element(
        "header",
        element("h1", element("bdi", title)),
        element("p", element("bdi", " · ".join(_facts(config, history, environment)))),
        element("nav", [element("a", name, href=f"#{name.lower()}") for name in sections]),
    )
    body = [element("section", element("h2", name), content, id=name.lower()) for name, content in sections.items()]
    tiles = element("div", _tiles(results, training), class_="tiles")
    content = element("body", header, tiles, body, element("footer", "Made by vlm_jax."))
    return join(Markup("<!doctype html>\n"), element("html", element("head", head), content, lang="en"), "\n")


def _facts(
    config: Mapping[str, Any], history: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]
) -> list[str]:
    """What stands under the title: the system, how far it is, on what; as far as it is known."""
    facts = []
    system = config.get("system")
    if isinstance(system, Mapping) and "_type" in system:
        facts.append(str(system["_type"]).rpartition(".")[2])
    steps = [int(row["step"]) for row in history if _is_number(row.get("step"))]
    total = config.get("steps")
    of = f" of {total:,}" if isinstance(total, int) and steps and total != max(steps) else ""
    facts.append(f"{max(steps):,}{of} steps" if steps else "not trained")
    if "batch_size" in config:
        facts.append(f"batch {config['batch_size']}")
    return facts + [str(environment[name]) for name in ("devices",) if name in environment]


def _series(history: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Values over steps by name, without what never was a number."""
    series: dict[str, dict[float, float]] = {}
    for row in history:
        step = row.get("step")
        if _is_number(step):
            for name, value in row.items():
                if name not in ("step", "time") and (value is None or _is_number(value)):
                    series.setdefault(name, {})[float(step)] = math.nan if value is None else float(value)
    seen = {name for name, points in series.items() if any(abs(value) < charts.LARGEST for value in points.values())}
    return {name: sorted(points.items()) for name, points in series.items() if name in seen}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _last(points: Sequence[tuple[float, float]]) -> float:
    return next(value for _, value in reversed(points) if abs(value) < charts.LARGEST)


def _label(name: str) -> str:
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


def _show(metric: str, value: float) -> str:
    return charts.percent(value) if _is_share(metric) else charts.number(value)


def _tiles(results: Mapping[str, base.Result], training: Mapping[str, Sequence[tuple[float, float]]]) -> list[Markup]:
    tiles = []
    for name, result in results.items():
        for metric, value in itertools.islice(result.metrics.items(), 1):
            chance = f"chance {_show(metric, result.chance[metric])}" if metric in result.chance else ""
            lines = [element("span", element("bdi", name)), element("b", _show(metric, value))]
            lines += [element("span", _label(metric)), element("span", chance)]
            tiles.append(element("div", lines, class_="tile"))
    if "loss" in training:
        value = charts.number(_last(training["loss"]))
        lines = [element("span", "Training"), element("b", value), element("span", "Loss of the last step logged")]
        tiles.append(element("div", lines, class_="tile"))
    return tiles


def _evaluation(name: str, result: base.Result, series: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    rows = []
    for metric, value in result.metrics.items():
        chance = result.chance.get(metric)
        bar = _bar(value, chance) if _is_share(metric) and math.isfinite(value) else None
        cells = [
            element("td", _label(metric)),
            element("td", bar, class_="bar"),
            element("td", _show(metric, value), class_="n value"),
            element("td", "" if chance is None else _show(metric, chance), class_="n soft"),
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
    figures = _evaluation_curves(name, result, series)
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


def _evaluation_curves(
    name: str, result: base.Result, series: Mapping[str, Sequence[tuple[float, float]]]
) -> list[Markup]:
    """Metrics of one evaluation over steps: recalls by direction, other shares together, ranks together."""
    groups: dict[str, list[str]] = {}
    for full in series:
        if full.startswith(f"{name}/") and len(series[full]) > 1:
            metric = full.removeprefix(f"{name}/")
            kind = "median_rank" if metric.endswith("_median_rank") else "accuracy" if _is_share(metric) else metric
            groups.setdefault(metric.partition("_recall@")[0] if "@" in metric else kind, []).append(metric)
    figures = []
    for group, members in sorted(groups.items(), key=lambda item: item[0] == "median_rank"):
        lines = [
            charts.Curve(
                _label(m).split(", ")[group != "median_rank" and "@" in m], series[f"{name}/{m}"], result.chance.get(m)
            )
            for m in members[:LINES]
        ]
        shares = "percent" if _is_share(members[0]) else "plain"
        figures.append(_figure(_label(group), lines, shares))
    return figures


def _figure(title: str, lines: Sequence[charts.Curve], shares: Literal["percent", "plain"] = "plain") -> Markup:
    show = charts.percent if shares == "percent" else charts.number
    keys = [
        element(
            "span",
            element("i", class_=f"k{i % LINES}") if len(lines) > 1 else None,
            f"{line.name} " if len(lines) > 1 else None,
            show(_last(line.points)),
            class_="key",
        )
        for i, line in enumerate(lines)
    ]
    caption = element("figcaption", element("b", title), element("span", keys, class_="keys"))
    return element("figure", caption, charts.curves(lines, shares=shares))


def _training(series: Mapping[str, Sequence[tuple[float, float]]]) -> Markup | None:
    """One chart for each quantity; parts of one (after a slash) and kinds of similarity share one."""
    groups: dict[str, list[str]] = {}
    for name in series:
        group = "similarity" if name.endswith("_similarity") else name.split("/")[0]
        groups.setdefault(group, []).append(name)
    figures = {}
    for group, members in groups.items():
        for first in range(0, len(members), LINES):
            lines = [charts.Curve(_short(name, group), series[name]) for name in members[first : first + LINES]]
            figures.setdefault(group, []).append(_figure(_label(group), lines))
    if not figures:
        return None
    front = [figures.pop(name) for name in FIRST if name in figures]
    more = None
    if figures:
        summary = element("summary", f"{len(figures)} more: {shortened(', '.join(figures), 90)}")
        more = element("details", summary, element("div", list(figures.values()), class_="grid"))
    return join(element("div", front, class_="grid") if front else None, more)


def _short(name: str, group: str) -> str:
    if name == group:
        return "all" if "/" not in name else name
    return name.removeprefix(f"{group}/").removesuffix("_similarity")


def _table(name: str, table: base.Table) -> Markup | None:
    """A confusion matrix as a grid, and the pairs most often confused in words."""
    if not table.rows:
        return None
    parts = []
    if len(table.columns) <= charts.MATRIX_CLASSES:
        told = "Each row is a true class that occurs, shaded by where its images went; its recall stands at the right."
        told = element("p", told, class_="soft small")
        if len(table.rows) > OPEN_ROWS:
            summary = element("summary", f"{_label(name)} of {len(table.rows)} classes")
            parts.append(element("details", summary, told, charts.matrix(table)))
        else:
            parts += [element("h4", _label(name)), told, charts.matrix(table)]
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


class _Budget:
    """Counts the bytes of the images that a page may still hold."""

    def __init__(self):
        self.left = MAX_IMAGE_BYTES

    def image(self, data: bytes, alt: str) -> Markup | None:
        kind = next((mime for magic, mime in _MIME if data.startswith(magic)), None)
        if kind is None or len(data) > self.left:
            return None
        self.left -= len(data)
        source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        return element("img", src=source, alt=shortened(alt, 120), loading="lazy")


def _examples(name: str, result: base.Result, budget: _Budget) -> Markup | None:
    groups: dict[str, list[base.Example]] = {}
    for example in result.examples:
        groups.setdefault(example.group, []).append(example)
    parts = []
    for group, examples in groups.items():
        shown = examples[:MAX_EXAMPLES]
        cards = [_card(example, budget) for example in shown]
        longest = max(len(entry.text) for example in shown for entry in (*example.answers, example.expected))
        images = any(entry.image for example in shown for entry in example.answers)
        kind = "cards long" if images or longest > 28 else "cards"
        more = f", {len(examples) - len(shown)} more not shown" if len(examples) > len(shown) else ""
        parts += [element("h4", f"{group[:1].upper()}{group[1:]}{more}"), element("div", cards, class_=kind)]
    if not parts:
        return None
    told = "Drawn evenly over the data, not chosen. Numbers are cosines; right answers are marked."
    return element(
        "div", element("h3", element("bdi", name)), element("p", told, class_="soft small"), parts, class_="evaluation"
    )


def _card(example: base.Example, budget: _Budget) -> Markup:
    """A query beside its answers, or over them where the answers are images."""
    query = example.query
    words = element("p", element("bdi", shortened(query.text, 300)), class_="query") if query.text else None
    entries = [(entry, "" if entry.score is None else f"{entry.score:.3f}") for entry in example.answers]
    if not any(entry.verdict == "right" for entry in example.answers) and example.expected != base.Entry():
        entries.append((dataclasses.replace(example.expected, verdict="right"), "expected"))
    answers = []
    for entry, beside in entries:
        kind = entry.verdict if entry.verdict != "none" else None
        mark = "\N{CHECK MARK}" if kind == "right" else ""
        if entry.image:
            picture = budget.image(entry.image, entry.text or f"answer, {beside}")
            answers.append(element("li", picture, f"{mark} {beside}".strip(), class_=kind))
        else:
            text = element("bdi", shortened(entry.text, 200))
            answers.append(
                element("li", element("span", mark), text, element("span", beside, class_="score"), class_=kind)
            )
    if any(entry.image for entry in example.answers):
        return element("div", words, element("ol", answers), class_="card strip")
    picture = budget.image(query.image, example.expected.text or "query image") if query.image else None
    return element("div", words, element("div", picture), element("ol", answers, class_="answers"), class_="card")


def _recipe(config: Mapping[str, Any]) -> Markup | None:
    if not config:
        return None
    text = json.dumps(config, indent=2, default=str, ensure_ascii=False)
    return element("details", element("summary", "The resolved configuration"), element("pre", text))


def _environment(environment: Mapping[str, Any]) -> Markup | None:
    if not environment:
        return None
    rows = []
    for name, value in environment.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        rows += [element("dt", _label(str(name))), element("dd", element("bdi", value))]
    return element("dl", rows)
