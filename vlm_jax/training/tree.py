"""Nested dicts of arrays and their paths, such as `image/blocks/attention/query/kernel`."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

PyTree = Any


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path, in the order of the dict. Empty dicts vanish."""
    flat = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}/{path}": leaf for path, leaf in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = leaf
    return nested


def join(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """One nested dict with the leaves of all; later ones win."""
    flat = {}
    for part in parts:
        flat |= flatten(part)
    return unflatten(flat)


def partition(nested: Mapping[str, Any], pattern: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The leaves whose path the pattern does not find, and those that it does."""
    flat = flatten(nested)
    found = {path: leaf for path, leaf in flat.items() if re.search(pattern, path)}
    return unflatten({path: leaf for path, leaf in flat.items() if path not in found}), unflatten(found)


def path_of(keys) -> str:
    """The path of a leaf of any pytree: dict keys, indices and field names joined by `/`."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def map_paths(fn: Callable[[str, Any], Any], nested: PyTree) -> PyTree:
    """Maps `fn(path, leaf)` over the leaves."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: fn(path_of(keys), leaf), nested)
