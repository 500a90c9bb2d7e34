"""Patterns: how a setting names files, `shards/train-{00000..00041}.tar`, and what it says of them, `pairs.csv#image=path`."""

import functools
import glob
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from vlm_jax import errors
from vlm_jax.data import places
from vlm_jax.data.sources import base

T = TypeVar("T")

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_OPTION = re.compile(r"[a-z]+=")


def expand(pattern: str, field: str = "data") -> list[str]:
    """The files that a pattern names, in order.

    `{00000..00041}` counts (with leading zeros), `{a,b}` lists, `*`, `?` and `[...]` match names on disk (sorted), and `::` joins patterns.

    Raises:
      InputError: an empty pattern, an empty or malformed brace, a shard that does not exist, a match of nothing.
    """
    paths: list[str] = []
    for part in pattern.split("::"):
        if not part.strip():
            raise errors.InputError(f"{field} {pattern!r}: a pattern is empty; give shards such as 'train-{{00000..00041}}.tar'")
        for name in _expand_braces(places.locate(part.strip(), field), field):
            if glob.has_magic(name) and (places.is_remote(name) or not os.path.exists(name)):
                matches = _asked(places.match, name, field)
                if not matches:
                    raise errors.InputError(f"{field} {name}: matches no file; check the folder and the name")
                paths += matches
            else:
                paths.append(name)
    found = base.each(functools.partial(_asked, places.is_file, field=field), paths)
    missing = [path for path, there in zip(paths, found, strict=True) if not there]
    if missing:
        others = f" (and {len(missing) - 1} more of {len(paths)})" if len(missing) > 1 else ""
        kind = "is a folder, not a shard" if os.path.isdir(missing[0]) else "does not exist"
        raise errors.InputError(f"{field} {missing[0]}{others}: {kind}; check the path and the range in braces")
    twice = [path for path, group in itertools.groupby(sorted(paths)) if len(list(group)) > 1]
    if twice:
        raise errors.InputError(f"{field} {twice[0]}: named twice; its examples would count twice")
    return paths


def options(pattern: str, known: Collection[str], field: str = "data") -> tuple[str, dict[str, str]]:
    """Parts `captions.csv#image=filepath&caption=title` into the pattern and {"image": "filepath", "caption": "title"}.

    A `#` that no `name=` follows is a part of a file's name.

    Raises:
      InputError: a name that is none of those known, twice the same, or one without a value.
    """
    pattern, mark, tail = pattern.rpartition("#")
    if not mark or not _OPTION.match(tail):
        return pattern + mark + tail, {}
    found: dict[str, str] = {}
    for part in tail.split("&"):
        name, _, value = part.partition("=")
        if name not in known or not value or name in found:
            what = "is given twice" if name in found else "has no value" if name in known else "is unknown"
            raise errors.InputError(f"{field} {pattern}#{tail}: {name!r} {what}; after the # stand {'=..., '.join(sorted(known))}=...")
        found[name] = value
    return pattern, found


def _asked(question: Callable[[str], T], path: str, field: str) -> T:
    try:
        return question(path)
    except OSError as error:
        raise errors.InputError(f"{field} {path}: cannot be reached ({error.strerror or error}); check the name and the rights") from error


def _expand_braces(text: str, field: str) -> Iterable[str]:
    start = text.find("{")
    if start < 0:
        if "}" in text:
            raise errors.InputError(f"{field} {text}: a }} without its {{")
        return [text]
    end = text.find("}", start)
    inside = text[start + 1 : end]
    if end < 0 or "{" in inside:
        raise errors.InputError(f"{field} {text}: a {{ without its }}; braces cannot be nested")
    if match := _RANGE.fullmatch(inside):
        first, last = match.groups()
        if int(first) > int(last):
            raise errors.InputError(f"{field} {text}: the range {{{inside}}} is empty; count upwards, {{{last}..{first}}}")
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        choices = [str(i).zfill(width) for i in range(int(first), int(last) + 1)]
    elif "," in inside:
        choices = inside.split(",")
    else:
        raise errors.InputError(f"{field} {text}: {{{inside}}} is neither a range {{00000..00041}} nor a list {{a,b}}")
    rest = list(_expand_braces(text[end + 1 :], field))
    return [text[:start] + choice + tail for choice in choices for tail in rest]
