"""Losses on the geometry of a batch: cosines that shall not depend on which modality asks (Goel et al. 2022, CyCLIP).

Both compare matrices of all pairs, b x b. Their squared norms are inner products of second moments, d x d, so neither matrix is ever
formed, and over a mesh only the moments are summed.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def cross_modal(image: Float[Array, "b d"], text: Float[Array, "b d"]) -> Float[Array, ""]:
    """How far the matrix of cosines is from symmetric (CyCLIP, equation 3): the sum over all j, k of (i_j t_k - i_k t_j)^2, over b.

    Args:
      image: L2-normalised embeddings of the global batch; row i belongs to row i of `text`.
      text: L2-normalised embeddings of the same dtype.

    The loss is float32, or float64 for float64 embeddings. With S = I T', ||S - S'||^2 = 2 <I'I, T'T> - 2 <T'I, (T'I)'>.
    """
    mixed = _moment(text, image)
    return 2 * (_inner(_moment(image, image), _moment(text, text)) - _inner(mixed, mixed.T)) / len(image)


def in_modal(image: Float[Array, "b d"], text: Float[Array, "b d"]) -> Float[Array, ""]:
    """How far cosines between images are from those between their texts (CyCLIP, equation 4): the sum of (i_j i_k - t_j t_k)^2, over b.

    Arguments and dtypes as in `cross_modal`. ||I I' - T T'||^2 = ||I'I||^2 + ||T'T||^2 - 2 ||T'I||^2.
    """
    own, other, mixed = _moment(image, image), _moment(text, text), _moment(text, image)
    return (_inner(own, own) + _inner(other, other) - 2 * _inner(mixed, mixed)) / len(image)


def _moment(a, b):
    """a' b, over the whole batch; the losses are small differences of large sums, so nothing is rounded on the way."""
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum("bi,bj->ij", a.astype(dtype), b.astype(dtype), precision="highest")


def _inner(a, b):
    return jnp.einsum("ij,ij->", a, b, precision="highest")
