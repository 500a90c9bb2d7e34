"""Where the time of a run went, in the report: stacked bars of its starts, and the share that trained the model."""

import math
import time
from collections.abc import Sequence

from vlm_jax.evaluation import charts
from vlm_jax.evaluation.markup import Markup, element, join
from vlm_jax.training import goodput

STARTS = 12
"""The last so many starts have a bar of their own."""
_KINDS = {
    "productive": ("2", "steps that trained the model"),
    "redone": ("4", "steps made again by a later start"),
    "compile": ("3", "compiling the step"),
    "start": ("0", "making the model, opening the data"),
    "restore": ("5", "reading a checkpoint"),
    "data wait": ("1", "waiting for the next batch"),
    "evaluate": ("8", "evaluations"),
    "save": ("6", "writing checkpoints"),
    "down": ("11", "between two starts"),
}
"""By bucket: the colour and what is counted there; in the order of the bars."""


def section(attempts: Sequence[goodput.Attempt]) -> Markup | None:
    """Bars, legend and figures; None where nothing, or nothing plausible, was counted."""
    plausible = [attempt for attempt in attempts if _plausible(attempt)]
    if not plausible or len(plausible) < len(attempts):
        return None
    total = goodput.summary(plausible)
    if not (0 < total["wall"] < charts.LARGEST):
        return None
    share = charts.percent(goodput.share(total))
    starts = "one start" if len(plausible) == 1 else f"{len(plausible)} starts"
    head = element("p", element("b", share), f" of {duration(total['wall'])} trained the model, in {starts}.")
    bars = [_bar("All starts" if len(plausible) > 1 else "This run", "", total, total["wall"])]
    if len(plausible) > 1:
        parts = [_own(plausible, i) for i in range(len(plausible))]
        longest = max(part["wall"] for part in parts)
        for i, part in list(enumerate(parts))[-STARTS:]:
            attempt = plausible[i]
            when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(attempt.began))
            what = f"steps {attempt.first_step:,} to {attempt.last_step:,}, {when}"
            bars.append(_bar(f"Start {i + 1}", what, part, longest))
        if len(parts) > STARTS:
            bars.insert(1, element("p", f"{len(parts) - STARTS} earlier starts not shown", class_="soft small"))
    rows = []
    for name, (colour, what) in _KINDS.items():
        if total.get(name, 0) / total["wall"] >= 5e-4:
            cells = [
                element("td", element("span", element("i", class_=f"k{colour} square"), name, class_="key")),
                element("td", what, class_="soft"),
                element("td", duration(total[name]), class_="n"),
                element("td", charts.percent(total[name] / total["wall"]), class_="n value"),
            ]
            rows.append(element("tr", cells))
    table = element("table", element("tbody", rows), class_="spent")
    return join(head, element("div", element("div", bars, class_="bars"), table, class_="halves"))


def duration(seconds: float) -> str:
    """A time for a reader: 3.2 s, 4 min 10 s, 2 h 3 min, 5 d 1 h."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        whole, rest = divmod(round(seconds / part), size // part)
        if whole:
            return f"{whole:,} {unit} {rest} {smaller}"
    return f"{seconds:.0f} s"


def _plausible(attempt: goodput.Attempt) -> bool:
    values = [attempt.began, attempt.ended, attempt.first_step, attempt.last_step]
    values += attempt.seconds.values() if isinstance(attempt.seconds, dict) else [math.nan]
    return all(isinstance(v, int | float) and math.isfinite(v) and 0 <= v < 1e11 for v in values)


def _own(attempts: Sequence[goodput.Attempt], i: int) -> dict[str, float]:
    """Seconds by bucket of one start, without the time before it."""
    alone = goodput.summary(attempts[i : i + 1])
    later = goodput.summary(attempts[i + 1 :])["redone"] if i + 1 < len(attempts) else 0.0
    redone = goodput.summary(attempts[i:])["redone"] - later
    return alone | {"redone": redone, "productive": alone["productive"] - redone}


def _bar(name: str, what: str, seconds: dict[str, float], longest: float) -> Markup:
    at, parts = 0.0, []
    for kind, (colour, _) in _KINDS.items():
        width = 100 * max(seconds.get(kind, 0.0), 0) / longest
        if width >= 0.05:
            told = f"{kind}: {duration(seconds[kind])}, {charts.percent(seconds[kind] / seconds['wall'])}"
            x, shown = f"{at:.2f}%", f"{width:.2f}%"
            parts.append(element("rect", element("title", told), class_=f"s{colour}", x=x, y=0, width=shown, height=16))
        at += width
    share = charts.percent(goodput.share(seconds))
    words = element(
        "p",
        element("span", element("b", name), f" {what}" if what else None),
        element("span", f"{duration(seconds['wall'])}, {share} productive", class_="soft"),
        class_="small",
    )
    label = f"{name}: {share} of {duration(seconds['wall'])} productive"
    return element("div", words, element("svg", parts, role="img", aria_label=label, class_="stack"))
