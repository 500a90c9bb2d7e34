"""CyCLIP (Goel et al. 2022, "CyCLIP: Cyclic Contrastive Language-Image Pretraining")."""

import dataclasses

from vlm_jax.errors import InputError
from vlm_jax.losses import consistency, contrastive
from vlm_jax.systems import base, clip, two_tower


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cyclip(clip.Clip):
    """CLIP with two terms that make image and text embeddings interchangeable; both are about cosines and leave the scale alone."""

    in_modal: float = 0.25
    """Weight of the difference between cosines of images and cosines of their texts (lambda 1; 0 and cross_modal 0.5: C-CyCLIP)."""
    cross_modal: float = 0.25
    """Weight of the asymmetry of the cosines between images and texts (lambda 2; 0 and in_modal 0.5: I-CyCLIP)."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("in_modal", "cross_modal"):
            if getattr(self, name) < 0:
                raise InputError(f"system.{name} {getattr(self, name)}: a weight is not negative; 0 leaves the term out")

    def objective(
        self, model: two_tower.Model, batch: base.Batch, extra: base.PyTree, context: base.Context
    ) -> base.Objective:
        image, text, buffers = two_tower.embed(model, batch, context)
        pairs = contrastive.softmax(image, text, model.scale, ids=self.ids(batch["pairs"]), form=self.loss_form)
        in_modal, cross_modal = consistency.in_modal(image, text), consistency.cross_modal(image, text)
        loss = pairs + self.in_modal * in_modal + self.cross_modal * cross_modal
        terms = {"contrastive": pairs, "in_modal": in_modal, "cross_modal": cross_modal}
        return base.Objective(loss, terms | {"scale": model.scale} | two_tower.similarities(image, text), buffers=buffers)
