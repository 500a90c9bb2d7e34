"""The report of a run: one HTML file with its numbers, figures, curves, time, examples, recipe and environment.

It needs no network and runs no script, and its content policy forbids both. All text from data and configuration is
escaped where the markup is made (`markup`).
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from vlm_jax.evaluation import base, charts, confusion, drawings, gallery, records, scores, shots, spent, style
from vlm_jax.evaluation.markup import Markup, element, join, shortened
from vlm_jax.training import goodput as accounts

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
    goodput: Sequence[accounts.Attempt] = (),
) -> None:
    """Writes the report, whole or not at all.

    Args:
      config: the resolved configuration; shown as JSON.
      metrics_history: rows of metrics.jsonl, each with `step`; metrics of an evaluation are named `<name>/<metric>`.
      results: the last results of the evaluations, by name.
      environment: versions, devices and what else is worth knowing; values are written as text.
      goodput: the starts of the run, for where its time went.
    """
    records.write_text(path, page(title, config, metrics_history, results, environment, goodput))


def page(
    title: str,
    config: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    results: Mapping[str, base.Result],
    environment: Mapping[str, Any],
    goodput: Sequence[accounts.Attempt] = (),
) -> Markup:
    """The report as one string."""
    series = _series(history)
    evaluations = tuple(f"{name}/" for name in results)
    training = {name: points for name, points in series.items() if not name.startswith(evaluations)}
    images, points = gallery.Budget(), drawings.Budget()
    numbers = [
        element("div", element("h3", element("bdi", name)), body, class_="evaluation", id=f"evaluation-{i}")
        for i, (name, result) in enumerate(results.items())
        if (body := scores.section(name, result, series, images, points))
    ]
    galleries = []
    for name, result in results.items():
        examples = [example for example in result.examples if not example.group.endswith(confusion.GROUP)]
        galleries.append(gallery.section(name, examples, images))
    drawn = "Drawn evenly over the data, unless the heading says otherwise. Numbers are cosines; right answers are marked."
    sections = {
        "Evaluation": join(scores.key(results), numbers) if numbers else None,
        "Training": _training(training),
        "Time": spent.section(goodput),
        "Examples": join(element("p", drawn, class_="soft small"), galleries) if any(galleries) else None,
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
    """The foremost metric of every evaluation, and the loss."""
    tiles = []
    for i, (name, result) in enumerate(results.items()):
        if metric := shots.foremost(result.metrics):
            value, interval, beside = result.metrics[metric], result.intervals.get(metric), []
            for kind, of in (("chance", result.chance), ("blind", result.blind)):
                if metric in of:
                    beside.append(f"{kind} {scores.show(metric, of[metric])}")
            between = element("small", f" {scores.within(metric, interval)}") if interval else None
            lines = [element("span", element("bdi", name)), element("b", scores.show(metric, value), between)]
            lines += [element("span", scores.label(metric)), element("span", ", ".join(beside))]
            tiles.append(element("a", lines, class_="tile", href=f"#evaluation-{i}"))
    if "loss" in training:
        value = charts.number(scores.last(training["loss"]))
        lines = [element("span", "Training"), element("b", value), element("span", "Loss of the last step logged")]
        tiles.append(element("a", lines, class_="tile", href="#training"))
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
    """The fields of the run in a list, and everything as it resolves behind a fold."""
    if not config:
        return None
    plain = {
        name: value
        for name, value in config.items()
        if value not in ("", None) and isinstance(value, str | int | float)
    }
    kinds = {name: value for name, value in config.items() if isinstance(value, Mapping) and "_type" in value}
    plain |= {name: str(value["_type"]).rpartition(".")[2] for name, value in kinds.items()}
    rows = [
        (element("dt", element("bdi", shortened(name, 60))), element("dd", element("bdi", shortened(str(value), 200))))
        for name, value in plain.items()
        if not name.startswith("_")
    ]
    text = json.dumps(config, indent=2, default=str, ensure_ascii=False)
    folded = element("details", element("summary", "The resolved configuration"), element("pre", text))
    return join(element("dl", rows, class_="short") if rows else None, folded)


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
