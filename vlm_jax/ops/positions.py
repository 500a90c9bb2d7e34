"""Position tables of image patches."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vlm_jax.errors import InputError

Resize = Literal["bicubic", "bilinear"]


def sincos2d(rows: int, columns: int, width: int) -> Float[Array, "n d"]:
    """Fixed sine-cosine positions of a grid, row-major, n = rows columns, d = width.

    Channels are [sin(x w), cos(x w), sin(y w), cos(y w)] with x the column, y the row and
    w_k = 10000^(-k / (width / 4 - 1)), as in MoCo v3 (Chen et al. 2021) and big_vision. (MAE divides by width / 4.)

    Raises:
      InputError: `width` is not a multiple of 4, or is 4 itself.
    """
    if width % 4 or width < 8:
        raise InputError(f"width {width}: sincos2d positions need a multiple of 4, at least 8")
    frequencies = 10_000.0 ** -jnp.linspace(0.0, 1.0, width // 4)
    y, x = jnp.meshgrid(jnp.arange(rows, dtype=float), jnp.arange(columns, dtype=float), indexing="ij")
    x, y = (jnp.outer(axis.reshape(-1), frequencies) for axis in (x, y))
    return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=-1)


def resize_positions(
    table: Float[Array, "m d"],
    source: tuple[int, int],
    target: tuple[int, int],
    method: Resize = "bicubic",
) -> Float[Array, "n d"]:
    """A table learned on a grid of `source` (rows, columns) at the points of another grid.

    `bicubic` is PyTorch's (Keys kernel a = -0.75, half-pixel centres, borders repeated, no antialiasing), which Hugging
    Face's ViT, DeiT and CLIP use; `jax.image.resize` has a = -0.5. `bilinear` is antialiased, as in SigLIP 2 NaFlex.

    Raises:
      InputError: the table does not have a row for each point of `source`.
    """
    if table.shape[0] != source[0] * source[1]:
        raise InputError(f"positions {table.shape[0]} are not a grid of {source[0]} x {source[1]}")
    if source == target:
        return table
    x = table.reshape(*source, -1)
    if method == "bilinear":
        x = jax.image.resize(x, (*target, x.shape[-1]), "linear", antialias=True)
    else:
        vertical, horizontal = (jnp.asarray(_bicubic(n, m), x.dtype) for n, m in zip(source, target, strict=True))
        x = jnp.einsum("ph,qw,hwd->pqd", vertical, horizontal, x)
    return x.reshape(target[0] * target[1], -1)


def _bicubic(source: int, target: int, a: float = -0.75) -> np.ndarray:
    """The interpolation of `target` points from `source` points along one axis, as a matrix [target, source]."""
    centres = (np.arange(target) + 0.5) * source / target - 0.5
    taps = np.floor(centres)[:, None] + np.arange(-1, 3)
    t = np.abs(centres[:, None] - taps)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * (t**3 - 5 * t**2 + 8 * t - 4)
    matrix = np.zeros((target, source))
    columns = np.clip(taps, 0, source - 1).astype(int)
    np.add.at(matrix, (np.arange(target)[:, None], columns), np.where(t <= 1, near, far))
    return matrix
