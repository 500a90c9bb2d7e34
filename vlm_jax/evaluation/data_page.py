"""A page about a data set: its counts, how large its images and how long its captions are, what was left out, and samples.

One HTML file in the look of the report: no network, no script; all text from the data is escaped.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from vlm_jax.data import statistics as stats
from vlm_jax.evaluation import base, drawings, gallery, report, style
from vlm_jax.evaluation.markup import Markup, element, join, shortened

BINS = 40
"""Bars of a histogram."""
_THUMBNAIL = 240


def page(
    title: str,
    statistics: stats.Statistics,
    *,
    reasons: Mapping[str, int],
    facts: Mapping[str, object],
    samples: Sequence[tuple[np.ndarray, Sequence[str]]],
) -> Markup:
    """The page as one string.

    Args:
      reasons: how many records were left out, by reason.
      facts: what else is to be told, by name.
      samples: images uint8[h, w, 3] with their captions.
    """
    budget = gallery.Budget()
    figures = [drawn for drawn in _figures(statistics) if drawn]
    left_out = sum(reasons.values())
    sections = {
        "Samples": element("div", [_card(image, captions, budget) for image, captions in samples], class_="cards") if samples else None,
        "Figures": element("div", figures, class_="grid figures") if figures else None,
        "Left out": _table(["reason", "records"], sorted(reasons.items(), key=lambda item: -item[1])) if reasons else None,
        "Fields": _table(["field", "records"], statistics.fields.most_common()) if statistics.fields else None,
        "How": element("dl", [[element("dt", name), element("dd", element("bdi", value))] for name, value in facts.items()]),
    }
    sections = {name: body for name, body in sections.items() if body}
    tiles = [
        ("records", f"{statistics.examples:,}"),
        ("captions", f"{statistics.words.total():,}"),
        ("megabytes of images", f"{statistics.image_bytes / 1e6:,.1f}"),
        ("left out", f"{left_out:,}"),
    ]
    drawn = [element("div", element("span", name), element("b", value), class_="tile") for name, value in tiles]
    head = join(
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=report.POLICY),
        element("title", title),
        element("style", Markup(style.CSS)),
    )
    forms = ", ".join(f"{count:,} {name}" for name, count in statistics.forms.most_common())
    header = element("header", element("h1", element("bdi", title)), element("p", forms or "no images"))
    body = [element("section", element("h2", name), content) for name, content in sections.items()]
    content = element("body", header, element("div", drawn, class_="tiles"), body, element("footer", "Made by vlm_jax."))
    return join(Markup("<!doctype html>\n"), element("html", element("head", head), content, lang="en"), "\n")


def _figures(statistics: stats.Statistics) -> list[Markup | None]:
    budget = drawings.Budget()
    wanted = [
        ("Image sizes", "pixels", stats.sides(statistics.sizes)),
        ("Caption lengths", "words", {"captions": statistics.words}),
        ("Caption lengths in tokens", "tokens", {"captions": statistics.tokens}),
        ("Captions of an image", "captions", {"images": statistics.captions}),
    ]
    return [drawings.draw(title, _histogram(axis, groups), budget) for title, axis, groups in wanted if any(groups.values())]


def _histogram(axis: str, groups: Mapping[str, Mapping[int, int]]) -> base.Histogram:
    """Bars of equal whole widths around whole numbers, five or more; the last hundredth of long tails is in the last bar."""
    low = min(min(counts) for counts in groups.values())
    high = max(stats.quantile(counts, 0.99) for counts in groups.values())
    if high - low < 4:
        low, high = low - 2, high + 2
    width = max(1, -(-(high - low + 1) // BINS))
    edges = np.arange(low, high + width + 1, width) - 0.5
    counted = {}
    for name, counts in groups.items():
        values = np.minimum(np.array(list(counts)), edges[-1] - 0.5)
        counted[name] = np.histogram(values, edges, weights=np.array(list(counts.values())))[0]
    return base.Histogram(axis, edges, counted)


def _card(image: np.ndarray, captions: Sequence[str], budget: gallery.Budget) -> Markup:
    small = Image.fromarray(image)
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    words = [element("p", element("bdi", shortened(caption, 200))) for caption in captions[:5]]
    more = element("p", f"and {len(captions) - 5} more", class_="soft") if len(captions) > 5 else None
    picture = budget.image(out.getvalue(), captions[0] if captions else "image")
    return element("div", element("div", picture), element("div", words, more), class_="card")


def _table(names: Sequence[str], rows: Sequence[tuple[str, int]]) -> Markup:
    head = element("tr", element("th", names[0]), element("th", names[1], class_="n"))
    body = [element("tr", element("td", element("bdi", name)), element("td", f"{count:,}", class_="n")) for name, count in rows]
    return element("table", head, body)
