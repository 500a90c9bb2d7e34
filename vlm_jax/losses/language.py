"""Losses of the next token: the cross-entropy over a vocabulary whose logits never exist all at once.

The head is multiplied a block of words at a time. The first pass keeps of each token its largest logit, the sum of exponentials below it
and the logit of its label; the backward pass makes the logits again, and writes each block of the head's gradient once (the idea of Cut
Cross-Entropy, Wijmans et al. 2024). Over a mesh every device works on its own tokens and, where the mesh axis `model` divides the
vocabulary, on its own words; the head's gradient is exchanged once.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.ops import sharding

P = jax.P
CELLS = 1 << 25
"""Logits of a block: 128 MiB of float32 on a device."""
NARROWEST = 256
"""Words of a block, at least: of so many tokens, the logits take less than their hidden states do."""
LOWEST = -1e30
"""Below any logit, and finite: a maximum over nothing yet."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
    """What the logits of a token say of its label."""

    logit: Float[Array, "*b"]
    """Of the label."""
    log_normalizer: Float[Array, "*b"]
    """The logarithm of the sum of all exponentials; its square is what a z-loss adds (Chowdhery et al. 2022, PaLM)."""
    largest: Float[Array, "*b"]
    """Of all logits; without gradient."""

    @property
    def log_likelihood(self) -> Float[Array, "*b"]:
        """The logarithm of the label's probability."""
        return self.logit - self.log_normalizer

    @property
    def right(self) -> Bool[Array, "*b"]:
        """Whether no other word has a larger logit."""
        return self.logit >= self.largest


def cross_entropy(
    hidden: Float[Array, "*b d"],
    head: Float[Array, "d v"],
    labels: Int[Array, "*b"],
    weights: Float[Array, "*b"],
    *,
    bias: Float[Array, " v"] | None = None,
    cells: int = CELLS,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The weighted sum of the cross-entropies of all tokens, in nats, and the sum of the weights: their ratio is the mean.

    Arguments as of `scores`. A token of weight 0 adds nothing, whatever its label; give labels that are to be ignored weight 0.
    """
    losses = -scores(hidden, head, labels, bias=bias, cells=cells).log_likelihood
    return weighted_sum(losses, weights), weights.sum()


def weighted_sum(values: Float[Array, "*b"], weights: Float[Array, "*b"]) -> Float[Array, ""]:
    """Of the values whose weight is not 0; the others may be anything."""
    counted = weights != 0
    return jnp.sum(jnp.where(counted, values, 0) * weights)


def scores(
    hidden: Float[Array, "*b d"],
    head: Float[Array, "d v"],
    labels: Int[Array, "*b"],
    *,
    bias: Float[Array, " v"] | None = None,
    cells: int = CELLS,
) -> Scores:
    """What the logits `hidden @ head + bias` say of each token's label.

    Args:
      hidden: the states of which the next tokens are predicted; over a mesh, the first axis is that of the batch.
      head: of the same dtype.
      labels: the words that are right. One that the vocabulary does not have gets NaN, and is noticed.
      cells: logits that exist at a time on a device.

    Logits and scores are float32, or float64 for float64 states; gradients have the dtypes of what they are of.
    """
    layout = _layout(hidden.shape[0] if hidden.ndim > 1 else 1, head.shape[1], cells)
    if bias is None:
        bias = jnp.zeros(head.shape[1], head.dtype)
    made: Any = _scores(layout, hidden, head, bias, labels)
    return Scores(*made)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How tokens and words are divided among devices."""

    rows: tuple[str, ...]
    """Mesh axes over which the first axis of the tokens is split."""
    words: tuple[str, ...]
    """Mesh axes over which the vocabulary is split."""
    cells: int


def _layout(rows: int, vocab_size: int, cells: int) -> _Layout:
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    free = {name for name, kind in kinds if kind != jax.sharding.AxisType.Manual and mesh.shape[name] > 1}
    batch = tuple(name for name in sharding.BATCH_AXES if name in free)
    if rows % math.prod(mesh.shape[name] for name in batch):
        batch = ()
    return _Layout(batch, ("model",) if "model" in free and vocab_size % mesh.shape["model"] == 0 else (), cells)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scores(layout, hidden, head, bias, labels):
    """(logit, log normalizer, largest), each [*b]."""
    return _forward(layout, hidden, head, bias, labels)[0]


def _forward(layout, hidden, head, bias, labels):
    fn = functools.partial(_scan_scores, layout)
    logit, top, total = _on_devices(layout, fn, "rhwr", "rrr")(hidden, head, bias, labels)
    return (logit, top + jnp.log(total), top), (hidden, head, bias, labels, top, total)


def _backward(layout, residuals, cotangents):
    fn = functools.partial(_scan_gradients, layout)
    by_logit, by_normalizer, _ = cotangents
    return *_on_devices(layout, fn, "rhwrrrrr", "rhw")(*residuals, by_logit, by_normalizer), None


_scores.defvjp(_forward, _backward)


def _scan_scores(layout, hidden, head, bias, labels):
    """Of the tokens of this device, over its words and then over those of all."""
    shape, hidden, labels = labels.shape, hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    first, size = _first_word(layout, head), _vocabulary(layout, head)
    wide = _wide(hidden)

    def block(carry, start, width):
        top, total, logit = carry
        logits = _logits(hidden, head, bias, start, width)
        own = _own(labels, first + start, width)
        highest = jnp.maximum(top, logits.max(1))
        total = total * jnp.exp(top - highest) + jnp.exp(logits - highest[:, None]).sum(1)
        return highest, total, logit + jnp.sum(logits, axis=1, where=own)

    n = len(labels)
    empty = (jnp.full(n, LOWEST, wide), jnp.zeros(n, wide), jnp.zeros(n, wide))
    top, total, logit = _over_blocks(layout, block, empty, n, head.shape[1])
    if layout.words:
        highest = jax.lax.pmax(top, layout.words)
        total, logit = jax.lax.psum((total * jnp.exp(top - highest), logit), layout.words)
        top = highest
    logit = jnp.where((labels >= 0) & (labels < size), logit, jnp.nan)
    return tuple(x.reshape(shape) for x in (logit, top, total))


def _scan_gradients(layout, hidden, head, bias, labels, top, total, by_logit, by_normalizer):
    """By hidden, head and bias."""
    shape, hidden = hidden.shape, hidden.reshape(-1, hidden.shape[-1])
    labels, top, total, by_logit, by_normalizer = (x.reshape(-1)[:, None] for x in (labels, top, total, by_logit, by_normalizer))
    first = _first_word(layout, head)
    factor = by_normalizer / total

    def block(carry, start, width):
        d_hidden, d_head, d_bias = carry
        logits = _logits(hidden, head, bias, start, width)
        own = _own(labels[:, 0], first + start, width)
        p = factor * jnp.exp(logits - top) + jnp.where(own, by_logit, 0)
        d_bias = jax.lax.dynamic_update_slice_in_dim(d_bias, p.sum(0).astype(bias.dtype), start, 0)
        p = p.astype(hidden.dtype)
        words = jax.lax.dynamic_slice_in_dim(head, start, width, 1)
        d_hidden = d_hidden + jnp.einsum("nv,dv->nd", p, words, preferred_element_type=d_hidden.dtype)
        d_words = jnp.einsum("nd,nv->dv", hidden, p, preferred_element_type=d_hidden.dtype).astype(head.dtype)
        return d_hidden, jax.lax.dynamic_update_slice_in_dim(d_head, d_words, start, 1), d_bias

    empty = (jnp.zeros(hidden.shape, _wide(hidden)), jnp.zeros(head.shape, head.dtype), jnp.zeros(bias.shape, bias.dtype))
    d_hidden, d_head, d_bias = _over_blocks(layout, block, empty, len(hidden), head.shape[1])
    if layout.words:
        d_hidden = jax.lax.psum(d_hidden, layout.words)
    if layout.rows:
        d_head, d_bias = jax.lax.psum((d_head, d_bias), layout.rows)
    return d_hidden.astype(hidden.dtype).reshape(shape), d_head, d_bias


def _over_blocks(layout: _Layout, block: Callable[[Any, Any, int], Any], carry: Any, tokens: int, words: int) -> Any:
    """`block(carry, first word, words)` over blocks of equal width in a loop, then over the rest."""
    widest = max(layout.cells // max(tokens, 1), NARROWEST)
    width = -(-words // -(-words // widest))
    if width >= NARROWEST:
        width = min(-(-width // NARROWEST) * NARROWEST, words)
    whole = words // width
    if whole == 1:
        carry = block(carry, 0, width)
    else:
        carry = jax.lax.fori_loop(0, whole, lambda i, carry: block(carry, i * width, width), carry)
    rest = words - whole * width
    return block(carry, whole * width, rest) if rest else carry


def _logits(hidden, head, bias, start, width):
    words = jax.lax.dynamic_slice_in_dim(head, start, width, 1)
    logits = jnp.einsum("nd,dv->nv", hidden, words, preferred_element_type=_wide(hidden))
    return logits + jax.lax.dynamic_slice_in_dim(bias, start, width, 0)


def _own(labels, start, width) -> Bool[Array, "n v"]:
    """Which words of a block are the labels."""
    return labels[:, None] == start + jnp.arange(width)


def _first_word(layout, head):
    """The number of this device's first word."""
    return jax.lax.axis_index(layout.words) * head.shape[1] if layout.words else 0


def _vocabulary(layout, head):
    return head.shape[1] * (jax.lax.axis_size(layout.words) if layout.words else 1)


def _on_devices(layout: _Layout, fn: Callable, inputs: str, outputs: str) -> Callable:
    """`fn` on every device with its rows (r), and with its words of the head (h) or of a vector (w), by a letter an argument."""
    if not layout.rows and not layout.words:
        return fn
    specs = {"r": P(layout.rows or None), "h": P(None, layout.words or None), "w": P(layout.words or None)}
    ins, outs = (tuple(specs[letter] for letter in letters) for letters in (inputs, outputs))
    # Loops' carries start equal on all devices and end different, which the check of varying axes refuses.
    return jax.shard_map(fn, in_specs=ins, out_specs=outs, axis_names={*layout.rows, *layout.words}, check_vma=False)


def _wide(x) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)
