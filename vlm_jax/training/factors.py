"""Factors of the learning rate by parameter path and from layer to layer."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from vlm_jax.errors import InputError
from vlm_jax.training import tree

PyTree = Any
Factor = float | np.ndarray
"""Of one parameter; for a stacked one, an array that broadcasts over its leading axis."""
Pairs = Sequence[tuple[str, float]]

BEFORE = r"^(stem|fold|patch_embed|token_embed|positions|class_token|registers|pre_norm)(/|$)"
"""What stands before the blocks in the towers of `vlm_jax.models`, as a pattern over the path below the tower."""


def of(params: PyTree, rates: Pairs, layer_decay: Pairs, before: str) -> dict[str, Factor | None]:
    """The factor of every parameter by path, None for one that nothing names.

    Args:
      params: arrays, or anything with shapes.
      rates: (pattern over paths, factor); the first that finds a path counts.
      layer_decay: (path of a tower, decay); multiplies what `rates` says.
      before: pattern over the path below a tower, for what stands before its blocks.

    Raises:
      InputError: a tower has no blocks.
    """
    flat = tree.flatten(params)
    found: dict[str, Factor | None] = {
        path: next((factor for pattern, factor in rates if re.search(pattern, path)), None) for path in flat
    }
    for tower, decay in layer_decay:
        for path, factor in _layers(flat, tower, decay, before).items():
            other = found[path]
            found[path] = factor if other is None else other * factor
    return found


def _layers(flat: dict[str, Any], tower: str, decay: float, before: str) -> dict[str, Factor]:
    """decay**(n - i) for block i of n, decay**(n + 1) for what stands before the blocks; what follows them is not named."""
    prefix = f"{tower}/" if tower else ""
    blocks = {path: x for path, x in flat.items() if path.startswith(f"{prefix}blocks/")}
    if not blocks:
        have = sorted({path.rpartition("/blocks/")[0] for path in flat if "/blocks/" in path})
        raise InputError(
            f"optimizer.layer_decay {tower!r}: no trainable parameter is at {prefix}blocks/; towers with blocks are "
            f"{', '.join(map(repr, have)) or 'none'}"
        )
    n = next(iter(blocks.values())).shape[0]
    by_block = decay ** np.arange(n, 0, -1.0)
    first = {
        path: decay ** (n + 1.0)
        for path in flat
        if path.startswith(prefix) and path not in blocks and re.search(before, path.removeprefix(prefix))
    }
    return first | {path: by_block.reshape(n, *(1,) * (len(x.shape) - 1)) for path, x in blocks.items()}


def check(params: PyTree, rates: Pairs, layer_decay: Pairs, before: str, coverage: Literal["rest_is_one", "all"]) -> None:
    """Every pattern must have an effect; with coverage "all" every parameter must be named.

    Raises:
      InputError: a pattern finds no parameter, or only such that an earlier one has; a tower has no blocks; or a
        parameter is not named.
    """
    paths = list(tree.flatten(params))
    left = paths
    for pattern, _ in rates:
        found = [path for path in paths if re.search(pattern, path)]
        if not found:
            raise InputError(f"optimizer.rates {pattern!r} finds no parameter; paths are such as {', '.join(paths[:3])}")
        if not set(found) & set(left):
            raise InputError(f"optimizer.rates {pattern!r}: earlier patterns have all that it finds, {', '.join(found[:3])}")
        left = [path for path in left if path not in found]
    unnamed = [path for path, factor in of(params, rates, layer_decay, before).items() if factor is None]
    if coverage == "all" and unnamed:
        more = f" and {len(unnamed) - 4} more" if len(unnamed) > 4 else ""
        raise InputError(
            f"optimizer.coverage all: neither optimizer.rates nor layer_decay names {', '.join(unnamed[:4])}{more}; add a "
            "pattern with factor 1, or set coverage rest_is_one"
        )


def text(factor: Factor | None) -> str:
    """A factor for people: a number, or those of the first and the last block."""
    ends = np.ravel(1.0 if factor is None else factor)[[0, -1]]
    return f"{ends[0]:.3g}" if ends[0] == ends[1] else f"{ends[0]:.3g} to {ends[1]:.3g}"
