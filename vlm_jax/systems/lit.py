"""LiT (Zhai et al. 2022, "LiT: Zero-Shot Transfer with Locked-image text Tuning")."""

import dataclasses

from vlm_jax.systems import clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lit(clip.Clip):
    """CLIP's loss on a text tower and a scale, against an image tower that stays as it was: no gradient, no moments, no decay.

    The image tower comes from elsewhere: `--init-from 'image/ <- PATH'`. It has no projection, as a rule; the text tower then has the
    width of the image tower as its `projection_dim`.
    """

    frozen: str = r"^image/"
    """Regular expression over parameter paths that are locked; `(?!)` unlocks all."""
    initial_scale: float = 10.0
    """Initial factor on the cosines (the learned parameter is its logarithm)."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from RGB values in [0, 1]; as the image tower was trained with."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divides RGB values after the mean is subtracted."""
