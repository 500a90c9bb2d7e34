"""What a stored state and the one that it is to fill have in common: names, shapes and dtypes, and words for what differs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from vlm_jax.errors import InputError
from vlm_jax.training import tree

Leaf = tuple[tuple[int, ...], str]
_SHOWN = 4


def leaves(nested: Any) -> dict[str, Leaf]:
    """Shape and dtype by path."""
    return {tree.path_of(keys): (tuple(x.shape), str(x.dtype)) for keys, x in jax.tree_util.tree_leaves_with_path(nested)}


def lines(stored: dict[str, Leaf], wanted: dict[str, Leaf], *, casts: Literal["none", "float"]) -> list[str]:
    """A line for every leaf that differs.

    Args:
      casts: `float`: another floating dtype is no difference.
    """

    def same(a: Leaf | None, b: Leaf | None) -> bool:
        if a is None or b is None or a == b or casts == "none":
            return a == b
        return a[0] == b[0] and all(jnp.issubdtype(jnp.dtype(dtype), jnp.floating) for _, dtype in (a, b))

    names = [name for name in sorted(stored.keys() | wanted.keys()) if not same(stored.get(name), wanted.get(name))]
    return [f"{name}: stored {_say(stored.get(name))}, here {_say(wanted.get(name))}" for name in names]


def refuse(path: Path, what: str, different: Sequence[str], advice: str = "") -> None:
    """
    Raises:
      InputError: there is a difference; names the first ones.
    """
    if different:
        more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        ending = f": {advice}" if advice else ""
        raise InputError(f"checkpoint {path} is of another {what} ({'; '.join(different[:_SHOWN])}{more}){ending}")


def _say(leaf: Leaf | None) -> str:
    return "nothing" if leaf is None else f"{'x'.join(map(str, leaf[0])) or 'scalar'} {leaf[1]}"
