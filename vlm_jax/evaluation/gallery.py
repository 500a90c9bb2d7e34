"""Examples in the report: what the model was asked, what it answered, and what was right."""

import base64
import dataclasses
from collections.abc import Sequence

from vlm_jax.evaluation import base
from vlm_jax.evaluation.markup import Markup, abridged, element, shortened

MAX_EXAMPLES = 24
"""Examples that one heading shows."""
MAX_IMAGE_BYTES = 6 * 2**20
"""Bytes of all thumbnails together; examples beyond that go without."""
PAIR_IMAGES = 6
"""Images that one pair of confused classes shows."""
_MIME = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"))


class Budget:
    """Counts the bytes of the images that a page may still hold."""

    def __init__(self):
        self.left = MAX_IMAGE_BYTES

    def image(self, data: bytes, alt: str) -> Markup | None:
        """A JPEG or PNG within the page; None for anything else, and where the budget is spent."""
        kind = next((mime for magic, mime in _MIME if data.startswith(magic)), None)
        if kind is None or len(data) > self.left:
            return None
        self.left -= len(data)
        source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        return element("img", src=source, alt=shortened(alt, 120), decoding="async")


def section(name: str, examples: Sequence[base.Example], budget: Budget) -> Markup | None:
    """Examples of one evaluation under the headings of their groups; None where there are none."""
    groups: dict[str, list[base.Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    parts = []
    for group, examples in groups.items():
        shown = examples[:MAX_EXAMPLES]
        cards = [_card(example, budget) for example in shown]
        longest = max(
            (len(entry.text) for example in shown for entry in (*example.answers, example.expected)), default=0
        )
        images = any(entry.image for example in shown for entry in example.answers)
        kind = "cards long" if images or longest > 28 else "cards"
        more = f", {len(examples) - len(shown)} more not shown" if len(examples) > len(shown) else ""
        right = sum(example.answers[0].verdict == "right" for example in shown if example.answers)
        of = f": the first answer is right in {right} of {len(shown)}" if 0 < right < len(shown) else ""
        parts += [element("h4", f"{group[:1].upper()}{group[1:]}{of}{more}"), element("div", cards, class_=kind)]
    if not parts:
        return None
    return element("div", element("h3", element("bdi", name)), parts, class_="evaluation")


def pair(example: base.Example, budget: Budget) -> Markup:
    """Images of a class that were taken for another one, and of that one, under the words of the query."""
    entries = [entry for entry in (example.query, *example.answers) if entry.image]
    wrong = [entry for entry in entries if entry.verdict != "right"]
    right = [entry for entry in entries if entry.verdict == "right"]
    rows = []
    for kind, group in (("wrong", wrong), ("right", right)):
        shown = group[: PAIR_IMAGES if not (wrong and right) else PAIR_IMAGES // 2]
        pictures = [
            element(
                "li",
                budget.image(entry.image, entry.text or "image"),
                None if entry.score is None else element("span", f"{entry.score:.3f}"),
            )
            for entry in shown
        ]
        names = ", ".join(dict.fromkeys(entry.text for entry in shown if entry.text))
        told = element("p", element("bdi", shortened(names, 60)), class_=kind) if names else None
        if pictures:
            rows.append(element("div", told, element("ol", pictures)))
    kind = "sides" if len(rows) > 1 else None
    return element(
        "div",
        element("p", element("bdi", shortened(example.query.text, 160))),
        element("div", rows, class_=kind),
        class_="pair",
    )


def _prompt(example: base.Example, budget: Budget) -> Markup:
    """A prompt in short, and behind a fold what it shows, one after the other."""
    asked = element("summary", element("bdi", abridged(example.query.text, 220)))
    entries = []
    for entry in example.context:
        picture = budget.image(entry.image, entry.text) if entry.image else None
        entries.append(element("li", element("div", picture), element("bdi", shortened(entry.text, 200))))
    return element("details", asked, element("ol", entries, class_="context"), class_="query")


def _card(example: base.Example, budget: Budget) -> Markup:
    """A query beside its answers, or over them where the answers are images."""
    query = example.query
    words = None
    if example.context:
        words = _prompt(example, budget)
    elif query.text:
        words = element("p", element("bdi", shortened(query.text, 300)), class_="query")
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
