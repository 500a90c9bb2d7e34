"""Metrics that an evaluation has for several numbers of examples, such as `accuracy@4_shots`."""

import re
from collections.abc import Iterable

_NAME = re.compile(r"(.+)@(\d+)_shots?(_deviation)?")
FEWEST = 3
"""Numbers of examples from which on a table by them reads better than a row for each."""


def parts(name: str) -> tuple[str, int] | None:
    """The metric without its number of examples, and that number; None where the name has none."""
    found = _NAME.fullmatch(name)
    return (found[1] + (found[3] or ""), int(found[2])) if found else None


def by_metric(names: Iterable[str]) -> tuple[dict[str, dict[int, str]], list[str]]:
    """Full names by metric and number of examples, and the names that have none; all are among these where there are fewer than `FEWEST`
    numbers."""
    names = list(names)
    groups = _groups(names)
    if len({k for of in groups.values() for k in of}) < FEWEST:
        return {}, names
    return groups, [name for name in names if parts(name) is None]


def foremost(names: Iterable[str]) -> str | None:
    """The metric that stands for an evaluation: its first, with the most examples where it has several numbers of them."""
    names = list(names)
    found = parts(names[0]) if names else None
    if found is None:
        return names[0] if names else None
    several = _groups(names)[found[0]]
    return several[max(several)]


def _groups(names: Iterable[str]) -> dict[str, dict[int, str]]:
    groups: dict[str, dict[int, str]] = {}
    for name in names:
        if found := parts(name):
            groups.setdefault(found[0], {})[found[1]] = name
    return groups
