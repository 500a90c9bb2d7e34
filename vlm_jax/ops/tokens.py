"""Training on a part of an image's patches: which ones stay, drawn for every example and step."""

import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vlm_jax.errors import InputError

Rule = Literal["random", "grid", "block"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drop:
    """Patches that a training step leaves out."""

    keep: float = 1.0
    """Share of the patches that is encoded, rounded to whole patches; 1: all of them. FLIP has 0.5 and 0.25."""
    rule: Rule = "random"
    """Which stay: any (FLIP), one of each square cell (keep is 1/4, 1/9, ...), or all but one block (both CLIPA)."""

    def __post_init__(self):
        if self.rule not in get_args(Rule):
            raise InputError(f"rule {self.rule!r}: choose one of {', '.join(get_args(Rule))}")
        if not 0 < self.keep <= 1:
            raise InputError(f"keep {self.keep}: a share of the patches above 0 is needed, at most 1 (all of them)")
        if self.rule == "grid" and abs(self.keep * self.cell**2 - 1) > 0.01:
            raise InputError(f"keep {self.keep}: rule 'grid' keeps one patch of a square cell, so 0.25, 0.111 or 0.0625")

    @property
    def cell(self) -> int:
        """Rows and columns of patches in a cell of rule "grid"."""
        return round(self.keep**-0.5)

    def count(self, grid: tuple[int, int]) -> int:
        """Patches that stay of a grid of (rows, columns).

        Raises:
          InputError: none would stay, or the cells do not divide the grid.
        """
        rows, columns = grid
        if self.rule == "grid":
            if rows % self.cell or columns % self.cell:
                raise InputError(
                    f"keep {self.keep}: cells of {self.cell} x {self.cell} patches do not divide a grid of {rows} x {columns}; "
                    "use rule 'random', or another image_size"
                )
            return (rows // self.cell) * (columns // self.cell)
        count = round(self.keep * rows * columns)
        if not count:
            raise InputError(
                f"keep {self.keep}: no patch of a grid of {rows} x {columns} would stay; keep at least {1 / (rows * columns):.2g}"
            )
        return count


def kept(drop: Drop, key: Key[Array, ""], rows: Int[Array, " b"], grid: tuple[int, int]) -> Int[Array, "b m"]:
    """Indices of the patches that stay, ascending, m = `drop.count(grid)`.

    FLIP (Li et al. 2023, "Scaling Language-Image Pre-training via Masking") draws them uniformly without replacement;
    CLIPA (Li et al. 2023, "An Inverse Scaling Law for CLIP Training") compares that with one random patch of every
    cell of 2 x 2 and with leaving out blocks. Our block is one, nearly square (BEiT's are several, of random aspect).

    Args:
      key: of the step.
      rows: numbers of the examples in the global batch. What an example keeps follows from `key` and its number alone, so
        it is the same for any number of devices, hosts and chunks.
      grid: rows and columns of patches.

    Raises:
      InputError: none would stay, or the cells do not divide the grid.
    """
    count = drop.count(grid)

    def of_row(row):
        own = jax.random.fold_in(key, row)
        if drop.rule == "random":
            return jnp.sort(jnp.argsort(jax.random.bits(own, (grid[0] * grid[1],), jnp.uint32))[:count])
        return jnp.sort(_cells(own, drop.cell, grid)) if drop.rule == "grid" else _around(own, count, grid)

    return jax.vmap(of_row)(rows).astype(jnp.int32)


def take(x: Float[Array, "b n d"], index: Int[Array, "b m"]) -> Float[Array, "b m d"]:
    """The tokens at `index`, which ascends in each row and is within bounds (not checked)."""

    def of_row(x, index):
        return x.at[index].get(mode="promise_in_bounds", indices_are_sorted=True, unique_indices=True)

    return jax.vmap(of_row)(x, index)


def _cells(key, cell: int, grid: tuple[int, int]):
    """One random patch of every cell."""
    down, right = grid[0] // cell, grid[1] // cell
    row, column = jnp.divmod(jax.random.randint(key, (down, right), 0, cell**2, jnp.int32), cell)
    row, column = row + cell * jnp.arange(down)[:, None], column + cell * jnp.arange(right)
    return (row * grid[1] + column).reshape(-1)


def _around(key, count: int, grid: tuple[int, int]):
    """What stays around a block at a random place; the block's last row may be short, so that `count` is exact."""
    rows, columns = grid
    dropped = rows * columns - count
    height = max(min(math.ceil(dropped**0.5), rows), math.ceil(dropped / columns), 1)
    width = max(math.ceil(dropped / height), 1)
    top, left = jax.random.randint(key, (2,), 0, jnp.array([rows - height + 1, columns - width + 1]), jnp.int32)
    down, right = jnp.arange(rows)[:, None] - top, jnp.arange(columns) - left
    inside = (down >= 0) & (right >= 0) & (right < width) & (down * width + right < dropped)
    return jnp.argsort(inside.reshape(-1), stable=True)[:count]
