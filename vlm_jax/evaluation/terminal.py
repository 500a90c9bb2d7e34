"""Numbers of evaluations as aligned text: of one checkpoint beside chance, or of several checkpoints side by side."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax.evaluation import scores, shots

Record = Mapping[str, Any]
"""As `records.record` makes it."""
BEST = " *"
_LOWER_IS_BETTER = re.compile(r"(^|_)(rank|loss|error|drop|perplexity|byte)(@|_|$)")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def table(records: Sequence[Record]) -> str:
    """Metrics of one checkpoint: value, 95 % interval, chance, and what is reached blind, as far as they are known; those that are known
    for several numbers of examples in tables by that number."""
    rows: list[list[str]] = [["", "value", "95 % interval", "chance", "blind"]]
    tables = []
    for record in records:
        groups, single = shots.by_metric(record["metrics"])
        if single:
            rows.append([plain(record["dataset"]), "", "", "", ""])
        for metric in single:
            cells = (_number(record, kind, metric) for kind in ("chance", "blind"))
            rows.append([f"  {scores.label(metric)}", _number(record, "metrics", metric), _interval(record, metric), *cells])
        if groups:
            tables.append(_by_shots(record, groups))
    used = [i for i in range(5) if any(row[i] for row in rows[1:])]
    main = ["\n".join(_aligned([[row[i] for i in used] for row in rows]))] if len(rows) > 1 else []
    return "\n\n".join([*main, *tables])


def _by_shots(record: Record, groups: Mapping[str, Mapping[int, str]]) -> str:
    """A row for each metric, a column for each number of examples."""
    counts = sorted({k for of in groups.values() for k in of})
    rows = [[f"{plain(record['dataset'])}, by shots", *map(str, counts), "chance", "blind"]]
    for metric, of in groups.items():
        values = [_number(record, "metrics", of[k]) if k in of else "" for k in counts]
        beside = [_number(record, kind, next(iter(of.values()))) for kind in ("chance", "blind")]
        rows.append([f"  {scores.label(metric)}", *values, *beside])
    used = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return "\n".join(_aligned([[row[i] for i in used] for row in rows]))


def comparison(checkpoints: Mapping[str, Sequence[Record]], width: int = 100) -> str:
    """Metrics by checkpoint, the best of each row marked; more columns than fit go below.

    Args:
      checkpoints: the records of each by its name.
      width: of the terminal, in characters.
    """
    names = list(checkpoints)
    found = {name: {(r["dataset"], m): r for r in records for m in r["metrics"]} for name, records in checkpoints.items()}
    keys = list(dict.fromkeys(key for own in found.values() for key in own))
    winners = {key: best(key[1], {name: own[key]["metrics"][key[1]] for name, own in found.items() if key in own}) for key in keys}

    def cell(name: str, key: tuple[str, str]) -> str:
        record = found[name].get(key)
        if record is None:
            return "-"
        value, between = _number(record, "metrics", key[1]), _interval(record, key[1])
        return f"{value} {between}".rstrip() + (BEST if name in winners[key] else " " * len(BEST))

    first, data = [""], None
    for dataset, metric in keys:
        first += ([plain(dataset)] if dataset != data else []) + [f"  {scores.label(metric)}"]
        data = dataset
    columns = []
    for name in names:
        column, data = [plain(name) + " " * len(BEST)], None
        for key in keys:
            column += ([""] if key[0] != data else []) + [cell(name, key)]
            data = key[0]
        columns.append(column)
    room = width - max(map(_width, first))
    groups: list[list[list[str]]] = [[]]
    for column in columns:
        taken = sum(2 + max(map(_width, other)) for other in groups[-1])
        if groups[-1] and taken + 2 + max(map(_width, column)) > room:
            groups.append([])
        groups[-1].append(column)
    tables = ["\n".join(_aligned([list(row) for row in zip(first, *group, strict=True)])) for group in groups]
    told = ["*: best of its row; [ ]: 95 % interval over other examples of the same kind"] if len(names) > 1 else []
    return "\n\n".join([*tables, *told])


def best(metric: str, values: Mapping[str, float | None]) -> set[str]:
    """The names with the best value, none where all are the same; ranks and losses are better when they are lower."""
    known = {name: value for name, value in values.items() if value is not None}
    if len(set(known.values())) < 2:
        return set()
    wanted = (min if _LOWER_IS_BETTER.search(metric) else max)(known.values())
    return {name for name, value in known.items() if value == wanted}


def plain(text: str) -> str:
    """Text without what a terminal would obey."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _number(record: Record, kind: str, metric: str) -> str:
    values = record.get(kind) or {}
    if metric not in values:
        return ""
    return "not finite" if values[metric] is None else scores.show(metric, values[metric])


def _interval(record: Record, metric: str) -> str:
    interval = (record.get("intervals") or {}).get(metric)
    return "" if interval is None or None in interval else scores.within(metric, tuple(interval))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(_width(row[i]) for row in rows) for i in range(len(rows[0]))]
    sides = ["left"] + ["right"] * (len(widths) - 1)
    return ["  ".join(map(_padded, row, widths, sides)).rstrip() for row in rows]


def _padded(text: str, width: int, side: str) -> str:
    space = " " * (width - _width(text))
    return text + space if side == "left" else space + text


def _width(text: str) -> int:
    """Columns of a terminal: letters of East Asia take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
