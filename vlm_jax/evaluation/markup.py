"""HTML and SVG from nested calls. What is not markup already is escaped, so that no caption can become part of the page."""

import html
import re

# Control characters have no place in a page; lone surrogates cannot be written; the rest may turn lines around or hide.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_VOID = frozenset({"img", "meta", "br"})


class Markup(str):
    """Text that is markup: made by `element` and `join` only."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Any object as visible text, in an element or between the quotes of an attribute."""
    return text if isinstance(text, Markup) else Markup(html.escape(_UNPRINTABLE.sub("\ufffd", str(text))))


def join(*children: object) -> Markup:
    """Children one after the other; None is left out, lists are taken apart."""
    parts = []
    for child in children:
        if isinstance(child, list | tuple):
            parts.append(join(*child))
        elif child is not None:
            parts.append(escape(child))
    return Markup("".join(parts))


def element(tag: str, /, *children: object, **attributes: object) -> Markup:
    """One element. An attribute `class_` becomes `class`, `stroke_width` `stroke-width`; one that is None is left out."""
    quoted = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{quoted}>")
    return Markup(f"<{tag}{quoted}>{join(*children)}</{tag}>")


def abridged(text: str, length: int) -> str:
    """At most `length` characters, begin and end, with an ellipsis between where some were cut."""
    if len(text) <= length:
        return text
    end = length // 2
    return f"{text[: length - 1 - end].rstrip()}…{text[-end:].lstrip()}"


def shortened(text: str, length: int) -> str:
    """At most `length` characters, the last of them an ellipsis where some were cut."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
