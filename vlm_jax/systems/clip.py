"""CLIP (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision")."""

import dataclasses
import math

from flax import nnx

from vlm_jax.errors import InputError
from vlm_jax.losses import contrastive
from vlm_jax.systems import base, two_tower

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip(two_tower.TwoTower):
    """Two towers and a softmax over the similarities of the global batch, in both directions."""

    initial_scale: float = 1 / 0.07
    """Initial factor on the cosines (the learned parameter is its logarithm)."""
    max_scale: float = 100.0
    """The factor is kept at or below this after every update."""
    mean: tuple[float, float, float] = MEAN
    """Subtracted from RGB values in [0, 1]."""
    std: tuple[float, float, float] = STD
    """Divides RGB values after the mean is subtracted."""

    def __post_init__(self):
        super().__post_init__()
        if self.max_scale < self.initial_scale:
            raise InputError(f"system.max_scale {self.max_scale} is below initial_scale {self.initial_scale}")

    @property
    def bounds(self) -> tuple[base.Bound, ...]:
        return (base.Bound(r"^log_scale$", -math.inf, math.log(self.max_scale)),)

    def build(self, *, rngs: nnx.Rngs) -> two_tower.Model:
        return two_tower.Model(self, rngs=rngs)

    def objective(
        self, model: two_tower.Model, batch: base.Batch, extra: base.PyTree, context: base.Context
    ) -> base.Objective:
        image, text, buffers = two_tower.embed(model, batch, context)
        loss = contrastive.softmax(image, text, model.scale, ids=self.ids(batch["pairs"]), form=self.loss_form)
        return base.Objective(loss, {"scale": model.scale} | two_tower.similarities(image, text), buffers=buffers)
