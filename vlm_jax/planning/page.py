"""Plans as one HTML file, in the style of the report: no network, no script, everything escaped."""

from collections.abc import Sequence

from vlm_jax.evaluation import report, style
from vlm_jax.evaluation.markup import Markup, element, join
from vlm_jax.planning import words
from vlm_jax.planning.plan import Plan

_CSS = """
.planned { width: auto; min-width: 60%; } .planned th, .planned td { padding-right: 28px; }
.planned tr.own td:first-child::before { content: "* "; } .planned tr.no { color: var(--soft); }
.room { display: flex; height: 28px; border-radius: 6px; overflow: hidden; background: var(--raised); outline: 1px solid var(--line); }
.room i { display: block; } .room i.k11 { opacity: .8; }
.planned td:first-child, .planned .n { overflow-wrap: normal; } .wide .planned th, .wide .planned td { white-space: nowrap; }
.room ~ p { margin-bottom: 10px; }
.over { color: var(--wrong); } .under { color: var(--right); }
.room + .keys { margin: 10px 0 24px; }
@media (max-width: 640px) { .planned th, .planned td { padding-right: 16px; } }
"""


def page(plans: Sequence[Plan]) -> Markup:
    """One plan, or the neighbours that a search has compiled, in its order with the best one in full."""
    best = plans[0]
    sections = [_searched(plans)] if len(plans) > 1 else []
    sections += [_memory(best), _arithmetic(best), _exchanges(best)]
    title = words.title(best)
    head = join(
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=report.POLICY),
        element("title", title),
        element("style", Markup(style.CSS + _CSS)),
    )
    compiler = f", libtpu {best.compiler}" if best.compiler else ""
    how = element("b", best.how[0].upper() + best.how[1:])
    flags = element("p", f"With {best.flags}") if best.flags else None
    header = element("header", element("h1", title), element("p", how, f"{compiler}. {words.setting(best)}"), flags)
    body = element("body", header, sections, element("footer", "Made by vlm_jax."))
    return join(Markup("<!doctype html>\n"), element("html", element("head", head), body, lang="en"), "\n")


def _memory(plan: Plan) -> Markup:
    told = "The state and the batch follow from shapes and shards, exactly. What lies beyond them is what the compiler reports."
    said = words.verdict(plan)
    verdict = element("p", element("b", said[0].upper() + said[1:]), class_={True: "under", False: "over", None: "soft"}[plan.fits])
    rows = [_row(name, words.scaled(size, "B")) for name, size in words.memory(plan)]
    rows.append(_row("of the chip", words.scaled(plan.memory, "B")))
    table = element("table", element("tbody", rows), class_="planned")
    if plan.whole:
        whole = join(element("h4", "Larger than 1 MB and held whole by every device"), element("p", ", ".join(plan.whole)))
    else:
        whole = None
    return element("section", element("h2", "Memory of a device"), element("p", told, class_="soft"), _room(plan), verdict, table, whole)


def _room(plan: Plan) -> Markup:
    """The chip's memory as a bar, with what takes it."""
    shares = [(name, size) for name, size in words.memory(plan) if not name.startswith("high")]
    whole = max(plan.memory, sum(size for _, size in shares))
    bars = [element("i", class_=f"k{i}", style=f"width: {100 * size / whole:.2f}%", title=name) for i, (name, size) in enumerate(shares)]
    keys = [element("span", element("i", class_=f"k{i}"), name, class_="key") for i, (name, _) in enumerate(shares)]
    return join(element("div", bars, class_="room"), element("div", keys, class_="keys"))


def _arithmetic(plan: Plan) -> Markup:
    rows = [_row(name, value, remark) for name, value, remark in words.arithmetic(plan)]
    return element("section", element("h2", "Arithmetic"), element("table", element("tbody", rows), class_="planned"))


def _exchanges(plan: Plan) -> Markup | None:
    if plan.collectives is None:
        return element("section", element("h2", "Exchanges"), element("p", plan.note)) if plan.note else None
    names = ("kind", "along", "times", "results", "at the links' speed")
    head = [element("th", name, class_=None if i < 2 else "n") for i, name in enumerate(names)]
    rows = []
    for found in plan.collectives:
        where = element("td", found.kind), element("td", " + ".join(found.axes) or "one device")
        amounts = f"{found.count:,}", words.scaled(found.bytes, "B"), words.milliseconds(found.milliseconds)
        rows.append(element("tr", where, [element("td", text, class_="n") for text in amounts]))
    table = element("table", element("thead", element("tr", head)), element("tbody", rows), class_="planned")
    note = element("p", plan.note, class_="soft small") if plan.note else None
    return element("section", element("h2", "Exchanges of a step, on one device"), element("div", table, class_="wide"), note)


def _searched(plans: Sequence[Plan]) -> Markup:
    names = ("data x fsdp x model", "remat", "chunks", "batch", "memory", "estimated", "an example")
    head = [element("th", name, class_="n" if i > 1 else None) for i, name in enumerate(names)]
    rows = []
    for plan in plans:
        cells = words.cells(plan)
        kind = " ".join(["own"] * (not plan.fields) + ["no"] * (not plan.fits)) or None
        rows.append(element("tr", [element("td", cell, class_="n" if i > 1 else None) for i, cell in enumerate(cells)], class_=kind))
    told = "Best first; the recipe as it is has a star, and what does not fit is grey. The estimate ranks, and is no measurement."
    table = element("table", element("thead", element("tr", head)), element("tbody", rows), class_="planned")
    return element("section", element("h2", "Neighbours"), element("p", told, class_="soft"), element("div", table, class_="wide"))


def _row(name: str, value: str, remark: str = "") -> Markup:
    return element("tr", element("td", f"{name}{remark}"), element("td", value, class_="n"))
