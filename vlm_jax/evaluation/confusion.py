"""A confusion matrix in the report, with the pairs that were confused most, shown as images where there are some."""

from collections.abc import Mapping, Sequence

import numpy as np

from vlm_jax.evaluation import base, gallery
from vlm_jax.evaluation.markup import Markup, element, join, shortened

GROUP = "most confused pairs"
"""Examples of groups that end so stand beside the matrix of the same beginning, such as `confusion`: the pair in the words of
the query, and as answers images that were taken for the other class (wrong) and images of that one (right)."""
MATRIX_CLASSES = 128
"""Matrices with more columns are not drawn."""
MATRIX_CELLS = 4000
"""Of more cells the largest are drawn."""
OPEN_ROWS = 32
"""A matrix of more rows is folded."""
SHARES_FROM = 24
"""Pixels; in cells so large the share of a confusion is written."""
PAIRS = 8
"""Pairs, and classes, that are named."""


def section(title: str, table: base.Table, examples: Sequence[base.Example], budget: gallery.Budget) -> Markup:
    """The matrix of a table whose rows are among its columns, what was confused most, and which classes are found least.

    Args:
      examples: those of the group `GROUP`.
    """
    worst = _worst(table, examples, budget)
    if len(table.columns) > MATRIX_CLASSES:
        told = f"{len(table.columns):,} classes are too many for a matrix; these are what it would show first."
        return join(element("h4", title), element("p", told, class_="soft small"), worst, _weakest(table))
    told = "Each row is a true class that occurs, shaded by where its images went, in percent; its recall stands at the right."
    about = element("p", told, class_="soft small")
    if len(table.rows) > OPEN_ROWS:
        summary = element("summary", f"{title} of {len(table.rows)} classes, as a matrix")
        return join(element("h4", title), worst, _weakest(table), element("details", summary, about, matrix(table)))
    kind = "confusion narrow" if len(table.columns) <= 16 else "confusion"
    beside = element("div", matrix(table), element("div", worst) if worst else None, class_=kind)
    return join(element("h4", title), about, beside)


def matrix(table: base.Table) -> Markup:
    """The grid: every row shaded by its shares, right cells in one colour and wrong ones in another."""
    counts = np.asarray(table.values, float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    columns = {name: i for i, name in enumerate(table.columns)}
    cell = int(np.clip(860 // len(table.columns), 12, 34))
    letters = int(np.clip(max(len(name) for name in (*table.rows, *table.columns)), 4, 20))
    size = min(11, cell - 1)
    left, top = int(letters * size * 0.58) + 22, int(letters * size * 0.58) + 22
    width, height = left + cell * len(table.columns) + 44, top + cell * len(table.rows) + 4
    right, bottom = left + cell * len(table.columns), top + cell * len(table.rows)
    least = np.sort(counts, axis=None)[-min(MATRIX_CELLS, counts.size)]
    drawn = [element("rect", class_="ground", x=left, y=top, width=right - left, height=bottom - top)]
    for i, name in enumerate(table.rows):
        middle = round(top + (i + 0.5) * cell + size * 0.35, 1)
        own = columns[name]
        drawn.append(element("text", shortened(name, 20), x=left - 5, y=middle, text_anchor="end"))
        drawn.append(element("text", f"{100 * shares[i, own]:.0f}%", class_="recall", x=right + 5, y=middle))
        drawn.append(element("rect", class_="own", x=left + own * cell, y=top + i * cell, width=cell, height=cell))
        for k in np.flatnonzero((counts[i] > 0) & (counts[i] >= least)):
            told = f"{name} \N{RIGHTWARDS ARROW} {table.columns[k]}: {counts[i, k]:.0f} of {counts[i].sum():.0f}"
            shade = round(0.08 + 0.92 * shares[i, k] ** 0.7, 2)
            square = element(
                "rect", element("title", told), class_="right" if k == own else "wrong", fill_opacity=shade,
                x=left + int(k) * cell + 0.5, y=top + i * cell + 0.5, width=cell - 1, height=cell - 1,
            )  # fmt: skip
            drawn.append(square)
            if cell >= SHARES_FROM and k != own and shares[i, k] >= 0.01:
                at = left + (int(k) + 0.5) * cell
                share = f"{100 * shares[i, k]:.0f}"
                drawn.append(element("text", share, class_="share", x=at, y=middle, text_anchor="middle"))
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
    return element("div", svg, class_="wide fits" if len(table.columns) <= 16 else "wide")


def confused(table: base.Table, count: int = PAIRS) -> list[Mapping[str, object]]:
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


def pairs(title: str, examples: Sequence[base.Example], budget: gallery.Budget) -> Markup:
    """Examples of the group `GROUP` as cards."""
    cards = [gallery.pair(example, budget) for example in examples[:PAIRS]]
    told = element("span", " \N{MIDDLE DOT} numbers are cosines with the answer", class_="soft")
    return join(element("h5", title, told), element("div", cards, class_="pairs"))


def _worst(table: base.Table, examples: Sequence[base.Example], budget: gallery.Budget) -> Markup | None:
    """The pairs that were confused most: as images where there are examples of them, else in words."""
    if examples:
        return pairs("Most often confused", examples, budget)
    lines = [
        element(
            "li",
            element("span", element("bdi", pair["true"]), " taken for ", element("bdi", pair["predicted"])),
            element("span", f"{pair['count']:,} of {pair['of']:,}", class_="soft n"),
        )
        for pair in confused(table)
    ]
    return join(element("h5", "Most often confused"), element("ul", lines, class_="columns")) if lines else None


def _weakest(table: base.Table) -> Markup | None:
    """The classes of the lowest recall; None where all are found always."""
    counts = np.asarray(table.values, float)
    columns = {name: i for i, name in enumerate(table.columns)}
    own = counts[np.arange(len(table.rows)), [columns[name] for name in table.rows]]
    recalls = own / np.maximum(counts.sum(1), 1)
    lines = [
        element(
            "li",
            element("bdi", table.rows[i]),
            element("span", f"{own[i]:,.0f} of {counts[i].sum():,.0f}", class_="soft n"),
        )
        for i in np.argsort(recalls, kind="stable")[:PAIRS]
        if recalls[i] < 1
    ]
    return join(element("h5", "Least often found"), element("ul", lines, class_="columns")) if lines else None
