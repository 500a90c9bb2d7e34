"""Contrastive losses over all pairs of a global batch: exact in value and every gradient, in memory that fits.

Each loss is defined by its formula. Over a mesh, or for many pairs, the same number is computed by one of the forms of
`losses.panels`; docs/contrastive.md says where each is best, and `choose` is the rule.
"""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.errors import InputError
from vlm_jax.losses import panels
from vlm_jax.ops import sharding

Form = Literal["auto", "formula", "gathered", "ring", "hybrid"]
"""How the pairs are computed, with the same value and gradients. formula: all logits at once, split as the compiler likes;
gathered: each device holds its images against the gathered texts, a block of logits at a time; ring: the texts are passed from
device to device; hybrid: gathered along the mesh axis fsdp, passed along data; auto: `choose` decides."""

FORMULA_LOGITS = 1 << 22
"""On one device the formula is the fastest form; up to so many logits (16 MiB of float32) its memory is small, too."""
GATHERED_BYTES = 1 << 30
"""Most that gathered columns and their float32 gradients may take on a device."""
RING_ROWS = 4096
"""From so many rows a device, arithmetic takes longer than passing the columns on (b > peak flops / link bytes a second, v5e)."""


def softmax(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    scale: Float[Array, ""],
    *,
    valid: Bool[Array, " b"] | None = None,
    ids: Int[Array, " b"] | None = None,
    form: Form = "auto",
) -> Float[Array, ""]:
    """Symmetric InfoNCE (Radford et al. 2021, figure 3): the mean of both cross-entropies over the global batch.

    Args:
      image: L2-normalised embeddings, row i belongs to row i of `text`.
      text: L2-normalised embeddings of the same dtype.
      scale: the factor on the cosines, exp of the learned parameter (not its logarithm).
      valid: rows that count, as pairs and as negatives; all by default. Without any the loss is zero.
      ids: rows with the same id are not negatives of one another; each is still its own pair.
      form: see `Form`.

    Logits and the loss are float32, or float64 for float64 embeddings; gradients have the dtype of the embeddings.

    Raises:
      InputError: the mesh does not allow the form.
    """
    layout, marks = _layout(image, form), _marks(valid, ids)
    if layout is None:
        return _softmax_formula(image, text, scale, marks)
    return panels.softmax(layout, image, text, scale, marks)


def sigmoid(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    *,
    valid: Bool[Array, " b"] | None = None,
    ids: Int[Array, " b"] | None = None,
    form: Form = "auto",
) -> Float[Array, ""]:
    """Sigmoid loss (Zhai et al. 2023, equation 1): one logistic loss per pair, summed over all pairs, over the batch size.

    Arguments and errors as in `softmax`; `bias` is added to every logit. The sum is divided by the number of valid rows, not by its square.
    """
    layout, marks = _layout(image, form), _marks(valid, ids)
    if layout is None:
        return _sigmoid_formula(image, text, scale, bias, marks)
    return panels.sigmoid(layout, image, text, scale, bias, marks)


def choose(pairs: int, width: int, sizes: Sequence[int], itemsize: int = 4) -> Literal["formula", "gathered", "ring", "hybrid"]:
    """The form that `auto` stands for.

    Gathering is fastest while what it gathers fits. Beyond, the ring costs no time where a device has rows enough to compute with
    while the next columns arrive; where it has not, two batch axes make the ring shorter.

    Args:
      pairs: rows of the global batch.
      width: of the embeddings.
      sizes: of the batch axes of the mesh, (data, fsdp).
      itemsize: bytes of a number of the embeddings.
    """
    devices = math.prod(sizes)
    if devices == 1:
        return "formula" if pairs**2 <= FORMULA_LOGITS else "gathered"
    if pairs * width * (itemsize + 4) <= GATHERED_BYTES:
        return "gathered"
    return "hybrid" if min(sizes) > 1 and pairs // devices < RING_ROWS else "ring"


def _layout(image, form: Form) -> panels.Layout | None:
    """How columns travel; None: the formula."""
    mesh, axes = jax.sharding.get_abstract_mesh(), sharding.batch_axes()
    if form == "auto":
        pairs, width = image.shape
        form = choose(pairs, width, [mesh.shape[name] for name in axes], image.dtype.itemsize)
    if form == "formula":
        return None
    axes = tuple(name for name in axes if mesh.shape[name] > 1)
    if form == "hybrid" and len(axes) < 2:
        raise InputError(
            f"loss form 'hybrid' passes along the mesh axis data and gathers along fsdp, but the mesh is {dict(mesh.shape)}: "
            "make both larger than 1, or choose 'ring' or 'gathered'"
        )
    if form == "gathered":
        return panels.Layout(gather=axes)
    return panels.Layout(ring=axes) if form == "ring" else panels.Layout(ring=axes[:1], gather=axes[1:])


def _marks(valid, ids) -> panels.Marks:
    return {name: x for name, x in (("valid", valid), ("ids", ids)) if x is not None}


def _dot(a, b):
    """All inner products of rows, accumulated in at least float32."""
    return jnp.einsum("id,jd->ij", a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _softmax_formula(image, text, scale, marks):
    own = jnp.eye(len(image), dtype=bool)
    logits = scale * _dot(image, text)
    allowed = panels.counted(own, marks, marks)
    if allowed is not None:
        # An invalid row keeps its own cell, so that no sum is empty, and has no weight.
        logits = jnp.where(allowed | own, logits, -jnp.inf)
    rows, columns = jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)
    terms = (rows + columns) / 2 - jnp.diagonal(logits)
    return jnp.sum(terms, where=marks.get("valid")) / panels.number(marks, image)


def _sigmoid_formula(image, text, scale, bias, marks):
    own = jnp.eye(len(image), dtype=bool)
    logits = scale * _dot(image, text) + bias
    terms = jax.nn.softplus(jnp.where(own, -logits, logits))
    return jnp.sum(terms, where=panels.counted(own, marks, marks)) / panels.number(marks, image)
