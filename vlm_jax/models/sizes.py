"""Published sizes of Transformer towers (big_vision's names), shared by image and text."""

import dataclasses
from typing import Any

from vlm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Size:
    width: int
    depth: int
    mlp_dim: int
    num_heads: int


SIZES = {
    "mu": Size(32, 1, 128, 2),
    "Ti": Size(192, 12, 768, 3),
    "S": Size(384, 12, 1536, 6),
    "M": Size(512, 12, 2048, 8),
    "B": Size(768, 12, 3072, 12),
    "L": Size(1024, 24, 4096, 16),
    "So400m": Size(1152, 27, 4304, 16),
    "H": Size(1280, 32, 5120, 16),
    "g": Size(1408, 40, 6144, 16),
    "g-opt": Size(1536, 40, 6144, 16),
    "G": Size(1664, 48, 8192, 16),
}


def by_name(name: str) -> dict[str, Any]:
    """The fields of a size.

    Raises:
      InputError: no size has this name.
    """
    if name not in SIZES:
        raise InputError(f"size {name!r} is unknown: choose one of {', '.join(SIZES)}")
    return dataclasses.asdict(SIZES[name])


def check(*, width: int, depth: int, mlp_dim: int, num_heads: int) -> None:
    """Raises:
    InputError: no tower has this size.
    """
    for field, value in {"width": width, "depth": depth, "mlp_dim": mlp_dim, "num_heads": num_heads}.items():
        if value < 1:
            raise InputError(f"{field} {value}: must be at least 1")
    if width % num_heads:
        raise InputError(
            f"num_heads {num_heads} does not divide width {width}: every head has width / num_heads channels"
        )
