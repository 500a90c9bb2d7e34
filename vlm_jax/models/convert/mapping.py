"""Tables of names: which array of another codebase is which of ours, in either direction.

A table has lines `(their name, our name, kind)`. The kind says what stands below both names, and how the arrays differ: all of them by a
permutation of elements, so that there and back gives equal bits. `{}` in their name is the number of a block; ours are stacked.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from vlm_jax.errors import InputError

_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of theirs, and the one or several of ours that it holds."""

    key: str
    """What is appended to their name."""
    paths: tuple[str, ...]
    """What is appended to our name."""
    ours: Callable[[np.ndarray], Sequence[np.ndarray]] = lambda x: (x,)
    theirs: Callable[..., np.ndarray] = lambda x: x


Kind: TypeAlias = tuple[Leaf, ...]
Table: TypeAlias = Sequence[tuple[str, str, Kind]]


def _transposed(key: str, path: str) -> Leaf:
    return Leaf(key, (path,), lambda x: (x.T,), lambda x: x.T)


def _fused(parts: tuple[str, ...], key: str, path: str) -> Leaf:
    """Linear layers stacked on the output axis: kernels [out, in] of theirs, or biases."""
    turned = path.endswith("kernel")
    return Leaf(
        key,
        tuple(f"/{part}{path}" for part in parts),
        lambda x: [y.T if turned else y for y in np.split(x, len(parts))],
        lambda *xs: np.concatenate([x.T if turned else x for x in xs]),
    )


ARRAY: Kind = (Leaf("", ("",)),)
LINEAR: Kind = (_transposed(".weight", "/kernel"), Leaf(".bias", ("/bias",)))
LINEAR_WITHOUT_BIAS: Kind = (_transposed(".weight", "/kernel"),)
KERNEL: Kind = (Leaf("", ("/kernel",)),)
"""A matrix that is kept [in, out], as ours."""
EMBEDDING: Kind = (Leaf(".weight", ("/embedding",)),)
TABLE: Kind = (Leaf(".weight", ("",)),)
NORM: Kind = (Leaf(".weight", ("/scale",)), Leaf(".bias", ("/bias",)))
TOKEN: Kind = (Leaf("", ("",), lambda x: (x[None],), lambda x: x[0]),)
"""A vector that is one row of ours."""
UNBATCHED: Kind = (Leaf("", ("",), lambda x: (x[0],), lambda x: x[None]),)
"""Theirs with a leading axis of one."""
WITHOUT_SECOND: Kind = (
    Leaf("", ("",), lambda x: (np.delete(x[0], 1, axis=0),), lambda x: np.insert(x, 1, 0, axis=0)[None]),
)
"""Positions [1, n, d] without those of the second token, which must be zero."""
NUMBER: Kind = (Leaf("", ("",), lambda x: (x.reshape(()),), lambda x: x.reshape(1)),)
"""Theirs of shape [1]."""
FUSED: Kind = (
    _fused(("query", "key", "value"), "in_proj_weight", "/kernel"),
    _fused(("query", "key", "value"), "in_proj_bias", "/bias"),
)
"""PyTorch's attention: query, key and value in one matrix."""
SEPARATE: Kind = (*(_transposed(f"{name[0]}_proj_weight", f"/{name}/kernel") for name in ("query", "key", "value")), FUSED[1])
"""PyTorch's attention to a sequence of another width: three matrices, and the biases in one vector."""
QKV: Kind = (_fused(("query", "key", "value"), ".weight", "/kernel"), _fused(("query", "key", "value"), ".bias", "/bias"))
"""timm's."""
KV: Kind = (_fused(("key", "value"), ".weight", "/kernel"), _fused(("key", "value"), ".bias", "/bias"))


def _patches_to_torch(x: np.ndarray) -> np.ndarray:
    side = math.isqrt(x.shape[0] // 3)
    return x.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


def _patches_to_flax(x: np.ndarray) -> np.ndarray:
    side = math.isqrt(x.shape[0] // 3)
    return x.reshape(side, side, 3, -1)


PATCHES_WITHOUT_BIAS: Kind = (
    Leaf(".weight", ("/kernel",), lambda x: (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),), _patches_to_torch),
)
"""A convolution whose stride is its size [out, channel, row, column]; ours is a matrix on pixels."""
PATCHES: Kind = (*PATCHES_WITHOUT_BIAS, Leaf(".bias", ("/bias",)))
FLAX_PATCHES: Kind = (
    Leaf("/kernel", ("/kernel",), lambda x: (x.reshape(-1, x.shape[-1]),), _patches_to_flax),
    Leaf("/bias", ("/bias",)),
)
FLAX_LINEAR: Kind = (Leaf("/kernel", ("/kernel",)), Leaf("/bias", ("/bias",)))
FLAX_NORM: Kind = (Leaf("/scale", ("/scale",)), Leaf("/bias", ("/bias",)))


def flax_heads(num_heads: int) -> Kind:
    """Query, key or value of Flax: [d, heads, head_dim]."""
    return (
        Leaf("/kernel", ("/kernel",), lambda x: (x.reshape(x.shape[0], -1),), lambda x: x.reshape(x.shape[0], num_heads, -1)),
        Leaf("/bias", ("/bias",), lambda x: (x.reshape(-1),), lambda x: x.reshape(num_heads, -1)),
    )


def flax_out(num_heads: int) -> Kind:
    """The output layer of Flax's attention: [heads, head_dim, d]."""
    return (
        Leaf(
            "/kernel", ("/kernel",), lambda x: (x.reshape(-1, x.shape[-1]),), lambda x: x.reshape(num_heads, -1, x.shape[-1])
        ),
        Leaf("/bias", ("/bias",)),
    )


def below(table: Table, theirs: str, ours: str) -> list[tuple[str, str, Kind]]:
    """The table with both names prefixed."""
    return [(theirs + key, ours + path, kind) for key, path, kind in table]


def to_ours(
    table: Table, theirs: Mapping[str, np.ndarray], like: Mapping[str, Any], *, allow: Sequence[str] = (), ignore: str = r"(?!)"
) -> dict[str, np.ndarray]:
    """Our arrays by path, in the dtypes of `like`.

    Args:
      like: shapes and dtypes of all our parameters by path.
      allow: regular expressions of their names, for the whole name: such arrays may be unknown, or of a wider dtype than ours, and such
        ones of ours may be missing there. What is missing is missing in the result.
      ignore: regular expression of their names that are no parameters.

    Raises:
      InputError: a name of theirs is unknown or missing, a shape is another, or a dtype would be narrowed.
    """
    left = {key for key in theirs if not re.fullmatch(ignore, key)}
    allowed = re.compile("|".join(f"(?:{pattern})" for pattern in allow) or r"(?!)").fullmatch
    found: dict[str, np.ndarray] = {}
    missing, wrong = [], []
    for name, own, kind in table:
        for leaf in kind:
            paths = [own + path for path in leaf.paths]
            parts = []
            for key, shapes in _layers(name + leaf.key, [like[path].shape for path in paths]):
                left.discard(key)
                if key not in theirs:
                    missing.append(key)
                    continue
                x, shape = theirs[key], leaf.theirs(*(np.broadcast_to(np.float32(0), s) for s in shapes)).shape
                if x.shape != shape:
                    wrong.append(f"{key} has shape {x.shape}, the configuration means {shape}")
                    continue
                dtype = np.dtype(like[paths[0]].dtype)
                if _narrows(x.dtype, dtype) and not allowed(key):
                    wrong.append(f"{key} is {x.dtype} and would become {dtype}")
                    continue
                parts.append([y.astype(dtype) for y in leaf.ours(x)])
            if "{}" in name and len(parts) == like[paths[0]].shape[0]:
                found |= {path: np.stack(layers) for path, layers in zip(paths, zip(*parts, strict=True), strict=True)}
            elif "{}" not in name and parts:
                found |= dict(zip(paths, parts[0], strict=True))
    complaints = [f"missing {_some([key for key in missing if not allowed(key)])}"] if any(not allowed(k) for k in missing) else []
    unknown = sorted(key for key in left if not allowed(key))
    complaints += [f"unknown {_some(unknown)}"] if unknown else []
    complaints += [_some(wrong)] if wrong else []
    if complaints:
        raise InputError(f"weights: {'; '.join(complaints)}")
    return found


def to_theirs(table: Table, ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Their arrays by name; the table must have a place for all of ours.

    Raises:
      InputError: an array of ours has no place, or one that the table needs is missing.
    """
    left, made = set(ours), {}
    for name, own, kind in table:
        for leaf in kind:
            paths = [own + path for path in leaf.paths]
            lacking = [path for path in paths if path not in ours]
            if lacking:
                raise InputError(f"weights: missing {_some(lacking)}")
            left -= set(paths)
            arrays = [ours[path] for path in paths]
            if "{}" in name:
                made |= {
                    (name + leaf.key).format(i): leaf.theirs(*(x[i] for x in arrays)) for i in range(arrays[0].shape[0])
                }
            else:
                made[name + leaf.key] = leaf.theirs(*arrays)
    if left:
        raise InputError(f"weights: {_some(sorted(left))} has no place in the other layout")
    return {key: np.asarray(x, order="C") for key, x in made.items()}


def _layers(key: str, shapes: Sequence[tuple[int, ...]]) -> list[tuple[str, Sequence[tuple[int, ...]]]]:
    """The names of theirs that a line stands for, each with the shapes of what it becomes."""
    if "{}" not in key:
        return [(key, shapes)]
    return [(key.format(i), [shape[1:] for shape in shapes]) for i in range(shapes[0][0])]


def _narrows(source: np.dtype, target: np.dtype) -> bool:
    if source == target:
        return False
    try:
        have, get = ml_dtypes.finfo(source), ml_dtypes.finfo(target)
    except ValueError:
        return True  # no floating point number
    return have.nmant > get.nmant or have.maxexp > get.maxexp or have.minexp < get.minexp


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
