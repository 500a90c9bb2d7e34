"""Several checkpoints side by side as one HTML file, in the style of the report: no network, no script, everything escaped."""

import os
from collections.abc import Mapping, Sequence

from vlm_jax.evaluation import records, report, scores, style, terminal
from vlm_jax.evaluation.markup import Markup, element, join

_CSS = """
.compared { width: auto; min-width: 60%; } .compared th, .compared td { padding-right: 28px; }
.compared small { display: block; color: var(--soft); font-size: 12px; white-space: nowrap; }
.compared td.best b { color: var(--right); } .compared td.best b::after { content: " *"; }
.compared tbody td:first-child { position: sticky; left: 0; min-width: 110px; background: var(--ground); overflow-wrap: normal; }
@media (max-width: 640px) { .compared th, .compared td { padding-right: 16px; } }
"""


def write(path: str | os.PathLike, checkpoints: Mapping[str, Sequence[terminal.Record]]) -> None:
    """Writes the page, whole or not at all.

    Args:
      checkpoints: the records of each by its name.
    """
    records.write_text(path, page(checkpoints))


def page(checkpoints: Mapping[str, Sequence[terminal.Record]]) -> Markup:
    """One table for each data set: metrics in rows, checkpoints in columns, the best of each row marked."""
    datasets = list(dict.fromkeys(str(record["dataset"]) for found in checkpoints.values() for record in found))
    tables = []
    for dataset in datasets:
        own = {name: next((r for r in found if r["dataset"] == dataset), None) for name, found in checkpoints.items()}
        tables.append(element("section", element("h2", element("bdi", dataset)), element("div", _table(own), class_="wide")))
    title = f"{len(checkpoints)} checkpoints compared"
    head = join(
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=report.POLICY),
        element("title", title),
        element("style", Markup(style.CSS + _CSS)),
    )
    told = "The best of a row is green and has a star; in brackets 95 % intervals over other examples of the same kind."
    header = element("header", element("h1", title), element("p", told))
    body = element("body", header, tables, element("footer", "Made by vlm_jax."))
    return join(Markup("<!doctype html>\n"), element("html", element("head", head), body, lang="en"), "\n")


def _table(own: Mapping[str, terminal.Record | None]) -> Markup:
    metrics = dict.fromkeys(metric for record in own.values() if record for metric in record["metrics"])
    head = [element("th", "")]
    for name, record in own.items():
        told = f"step {record['step']:,}, {record['weights']}" if record else "not evaluated"
        head.append(element("th", element("bdi", name), element("small", told), class_="n"))
    rows = []
    for metric in metrics:
        values = {name: record["metrics"].get(metric) for name, record in own.items() if record}
        best = terminal.best(metric, values)
        chances = [record["chance"][metric] for record in own.values() if record and record.get("chance", {}).get(metric) is not None]
        cells = [_cell(record, metric, "best" if name in best else "") for name, record in own.items()]
        rows.append(element("tr", element("td", scores.label(metric)), cells, _chance(metric, chances)))
    chance = element("th", "Chance", class_="n")
    return element("table", element("thead", element("tr", head, chance)), element("tbody", rows), class_="compared")


def _cell(record: terminal.Record | None, metric: str, mark: str) -> Markup:
    value = record["metrics"].get(metric) if record else None
    if record is None or value is None:
        return element("td", "-", class_="n soft")
    interval = record.get("intervals", {}).get(metric)
    between = element("small", scores.within(metric, tuple(interval))) if interval and None not in interval else None
    return element("td", element("b", scores.show(metric, value)), between, class_=f"n {mark}".strip())


def _chance(metric: str, chances: Sequence[float]) -> Markup:
    return element("td", scores.show(metric, chances[0]) if chances else "", class_="n soft")
