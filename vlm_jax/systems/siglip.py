"""SigLIP (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training")."""

import dataclasses

from flax import nnx

from vlm_jax.losses import contrastive
from vlm_jax.systems import base, two_tower


@dataclasses.dataclass(frozen=True, kw_only=True)
class Siglip(two_tower.TwoTower):
    """Two towers and an independent logistic loss for every pair of the global batch."""

    initial_scale: float = 10.0
    """Initial factor on the cosines (the learned parameter is its logarithm)."""
    initial_bias: float = -10.0
    """Initial bias on every logit. Far below zero, because nearly all pairs are negatives."""

    def build(self, *, rngs: nnx.Rngs) -> two_tower.Model:
        return two_tower.Model(self, initial_bias=self.initial_bias, rngs=rngs)

    def objective(
        self, model: two_tower.Model, batch: base.Batch, extra: base.PyTree, context: base.Context
    ) -> base.Objective:
        image, text, buffers = two_tower.embed(model, batch, context)
        bias = model.bias[...]
        loss = contrastive.sigmoid(image, text, model.scale, bias, ids=self.ids(batch["pairs"]), form=self.loss_form)
        return base.Objective(loss, {"scale": model.scale, "bias": bias} | two_tower.similarities(image, text), buffers=buffers)
