"""Contrastive losses over all pairs of a global batch, as a formula for one device and exact over a mesh."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.ops import sharding

P = jax.P
Form = Literal["auto", "formula", "gathered"]
"""How the pairs are computed. formula: all on every device that the compiler chooses; gathered: each device holds its
rows against the gathered columns; auto: gathered where the batch is split over devices, else the formula."""


def softmax(
    image: Float[Array, "b d"], text: Float[Array, "b d"], scale: Float[Array, ""], *, form: Form = "auto"
) -> Float[Array, ""]:
    """Symmetric InfoNCE (Radford et al. 2021, figure 3): the mean of both cross-entropies over the global batch.

    Args:
      image: L2-normalised embeddings, row i belongs to row i of `text`.
      text: L2-normalised embeddings.
      scale: the factor on the cosines, exp of the learned parameter (not its logarithm).
      form: see `Form`. Every form has the same value and gradients.

    Logits and the loss are float32, or float64 for float64 embeddings.
    """
    return _dispatch(_softmax_formula, _softmax_gathered, form)(image, text, scale)


def sigmoid(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    *,
    form: Form = "auto",
) -> Float[Array, ""]:
    """Sigmoid loss (Zhai et al. 2023, equation 1): one logistic loss per pair, summed over all pairs, over the batch size.

    Arguments as in `softmax`; `bias` is added to every logit. The sum is divided by b, not by b squared.
    """
    return _dispatch(_sigmoid_formula, _sigmoid_gathered, form)(image, text, scale, bias)


def _dispatch(formula: Callable, gathered: Callable, form: Form) -> Callable:
    axes = sharding.batch_axes()
    if form == "formula" or not axes:
        return formula
    mesh = jax.sharding.get_abstract_mesh()
    if form == "auto" and all(mesh.shape[name] == 1 for name in axes):
        return formula

    def sharded(image, text, *scalars):
        specs = (P(axes), P(axes), *(P() for _ in scalars))
        return jax.shard_map(lambda *local: gathered(axes, *local), in_specs=specs, out_specs=P())(image, text, *scalars)

    return sharded


def _dot(a, b):
    """All inner products of rows, accumulated in at least float32."""
    return jnp.einsum("id,jd->ij", a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _matched(a, b):
    """The inner products of matching rows."""
    return jnp.einsum("id,id->i", a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _softmax_formula(image, text, scale):
    logits = scale * _dot(image, text)
    rows, columns = jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)
    return jnp.mean((rows + columns) / 2 - jnp.diagonal(logits))


def _softmax_gathered(axes, image, text, scale):
    """One panel of logits, local images against all texts, serves both directions.

    Sums down the columns need the other devices' rows: they add up their exponentials around a shared maximum.
    """
    logits = scale * _dot(image, jax.lax.all_gather(text, axes, tiled=True))
    rows = jax.nn.logsumexp(logits, axis=1)
    top = jax.lax.pmax(jax.lax.stop_gradient(logits.max(axis=0)), axes)
    columns = top + jnp.log(jax.lax.psum(jnp.exp(logits - top).sum(axis=0), axes))
    # Taken from the panel, not computed again, so that a confident pair's gradients cancel to the last bit.
    first = jax.lax.axis_index(axes) * len(rows)
    matching = jnp.take_along_axis(logits, first + jnp.arange(len(rows))[:, None], axis=1)[:, 0]
    return jax.lax.pmean(jnp.mean(rows / 2 - matching), axes) + jnp.mean(columns) / 2


def _sigmoid_pairs(image, text, columns, scale, bias):
    """Sum over all cells. softplus(-x) = softplus(x) - x: every cell counts as a negative, then positives lose their logit."""
    logits = scale * _dot(image, columns) + bias
    return jnp.sum(jax.nn.softplus(logits)) - jnp.sum(scale * _matched(image, text) + bias)


def _sigmoid_formula(image, text, scale, bias):
    return _sigmoid_pairs(image, text, text, scale, bias) / image.shape[0]


def _sigmoid_gathered(axes, image, text, scale, bias):
    columns = jax.lax.all_gather(text, axes, tiled=True)
    return jax.lax.psum(_sigmoid_pairs(image, text, columns, scale, bias), axes) / columns.shape[0]
