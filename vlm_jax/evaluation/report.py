"""The report of a run: one HTML file with its curves, numbers, confusion, examples, recipe and environment.

It needs no network and runs no script, and its content policy forbids both. All text from data and configuration is
escaped where the markup is made (`markup`).
"""

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from vlm_jax.evaluation import base, charts, gallery, records, scores, style
from vlm_jax.evaluation.markup import Markup, element, join, shortened

FIRST = ("loss", "learning_rate", "scale", "bias", "similarity", "grad_norm", "examples_per_second")
"""Charts that stand in front, in this order; the others are folded away."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
    evaluations = tuple(f"{name}/" for name in results)
    training = {name: points for name, points in series.items() if not name.startswith(evaluations)}
    budget = gallery.Budget()
    numbers = [scores.section(name, result, series) for name, result in results.items()]
    galleries = [part for name, result in results.items() if (part := gallery.section(name, result, budget))]
    chance = element("p", "Chance is the tick on a bar and the dotted line in a chart.", class_="soft small")
    drawn = "Drawn evenly over the data, not chosen. Numbers are cosines; right answers are marked."
    sections = {
        "Evaluation": join(chance, numbers) if numbers else None,
        "Training": _training(training),
        "Examples": join(element("p", drawn, class_="soft small"), galleries) if galleries else None,
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


def _tiles(results: Mapping[str, base.Result], training: scores.Series) -> list[Markup]:
    tiles = []
    for name, result in results.items():
        for metric, value in itertools.islice(result.metrics.items(), 1):
            chance = f"chance {scores.show(metric, result.chance[metric])}" if metric in result.chance else ""
            lines = [element("span", element("bdi", name)), element("b", scores.show(metric, value))]
            lines += [element("span", scores.label(metric)), element("span", chance)]
            tiles.append(element("div", lines, class_="tile"))
    if "loss" in training:
        value = charts.number(scores.last(training["loss"]))
        lines = [element("span", "Training"), element("b", value), element("span", "Loss of the last step logged")]
        tiles.append(element("div", lines, class_="tile"))
    return tiles


def _training(series: scores.Series) -> Markup | None:
    """One chart for each quantity; parts of one (after a slash) and kinds of similarity share one."""
    groups: dict[str, list[str]] = {}
    for name in series:
        group = "similarity" if name.endswith("_similarity") else name.split("/")[0]
        groups.setdefault(group, []).append(name)
    figures = {}
    for group, members in groups.items():
        for first in range(0, len(members), scores.LINES):
            lines = [charts.Curve(_short(name, group), series[name]) for name in members[first : first + scores.LINES]]
            figures.setdefault(group, []).append(scores.figure(scores.label(group), lines))
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
        rows += [element("dt", element("bdi", name)), element("dd", element("bdi", value))]
    return element("dl", rows)
