"""Every image of a batch against every text, a block of logits at a time: the memory of the large-batch losses.

Each device holds its rows of the images and meets the texts of all devices, as columns, in blocks that are used and
forgotten; the backward pass computes them again (softmax) or finds its gradient made (sigmoid). One block of logits serves both
directions. How the columns come by is a `Layout`: gathered at once, passed around a ring of devices (the idea of
Inf-CL, Cheng et al. 2024, and of ring attention, Liu et al. 2023), or gathered along one mesh axis and passed along the other.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

P = jax.P
Marks = dict[str, Shaped[Array, " b"]]
"""What is known of rows, and travels with columns: `valid` (bool) and `ids` (int), both optional."""
LOWEST = -1e30
"""Below any logit, and finite: a maximum over nothing yet."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the rows of a device meet the columns of all."""

    ring: tuple[str, ...] = ()
    """Mesh axes along which columns are passed on, a device at a time. They come before `gather` in the batch's axes."""
    gather: tuple[str, ...] = ()
    """Mesh axes along which columns are gathered at once."""
    cells: int = 1 << 24
    """Logits that exist at a time: a panel of columns is cut in chunks of so many cells."""

    @property
    def axes(self) -> tuple[str, ...]:
        """Mesh axes over which the batch is split, the slow one first."""
        return self.ring + self.gather


def counted(
    own: Bool[Array, "b c"] | bool, rows: dict[str, Shaped[Array, " b"]], columns: dict[str, Shaped[Array, "c ..."]]
) -> Bool[Array, "b c"] | None:
    """Cells that are a pair or a negative: both sides valid, and not another row with the same id. None: all of them."""
    cells = []
    if "valid" in rows:
        cells.append(rows["valid"][:, None] & columns["valid"][None])
    if "ids" in rows:
        cells.append(own | (rows["ids"][:, None] != columns["ids"][None]))
    return functools.reduce(jnp.logical_and, cells) if cells else None


def number(marks: Marks, image: Float[Array, "b d"], axes: tuple[str, ...] = ()) -> Float[Array, ""] | int:
    """Valid rows of the global batch, at least 1."""
    if "valid" not in marks:
        return image.shape[0] * (jax.lax.axis_size(axes) if axes else 1)
    valid = marks["valid"].sum()
    return jnp.maximum(jax.lax.psum(valid, axes) if axes else valid, 1).astype(_wide(image))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def softmax(
    layout: Layout, image: Float[Array, "b d"], text: Float[Array, "b d"], scale: Float[Array, ""], marks: Marks
) -> Float[Array, ""]:
    """`losses.contrastive.softmax` over blocks."""
    return _softmax_forward(layout, image, text, scale, marks)[0]


def _softmax_forward(layout, image, text, scale, marks):
    fn = functools.partial(_softmax_value, layout)
    loss, rows, columns = _on_devices(layout, fn, "rrs r", "srr")(image, text, scale, marks)
    return loss, (image, text, scale, marks, rows, columns)


def _softmax_backward(layout, saved, cotangent):
    image, text, scale, marks, rows, columns = saved
    fn = functools.partial(_softmax_gradients, layout)
    gradients = _on_devices(layout, fn, "rrs rrr", "rrs")(image, text, scale, marks, rows, columns)
    return *((cotangent * g).astype(x.dtype) for g, x in zip(gradients, (image, text, scale), strict=True)), None


softmax.defvjp(_softmax_forward, _softmax_backward)


def _softmax_value(layout, image, text, scale, marks):
    """The loss, and for every own row and column its largest logit and sum of exponentials below that.

    The two are kept apart: their logarithm's sum would cost the probabilities as many digits as the largest logit has before the point.
    """
    b, wide = image.shape[0], _wide(image)

    def block(carry, columns, sums, own):
        *rows, matching = carry
        logits = scale * _dot(image, columns["text"])
        allowed = counted(own, marks, columns)
        if allowed is not None:
            # A row's own cell stays, so that no sum is empty; the row's weight says whether it counts.
            logits = jnp.where(allowed | own, logits, -jnp.inf)
        matching = matching + jnp.sum(logits, axis=1, where=own)
        return (*_add_exponentials(rows, logits, axis=1), matching), _add_exponentials(sums, logits, axis=0)

    def empty(n):
        return jnp.full(n, LOWEST, wide), jnp.zeros(n, wide)

    (*rows, matching), columns = _visit(layout, block, (*empty(b), jnp.zeros(b, wide)), {"text": text} | marks, empty)
    if layout.gather:
        top, total = columns
        highest = jax.lax.pmax(top, layout.gather)
        total = _home(layout, total * jnp.exp(top - highest))
        columns = (jax.lax.dynamic_slice_in_dim(highest, jax.lax.axis_index(layout.gather) * b, b), total)
    terms = (rows[0] + jnp.log(rows[1]) + columns[0] + jnp.log(columns[1])) / 2 - matching
    loss = _over_devices(layout, jnp.sum(terms, where=marks.get("valid"))) / number(marks, image, layout.axes)
    return loss, tuple(rows), columns


def _softmax_gradients(layout, image, text, scale, marks, rows, columns):
    """Of the loss by image, text and scale."""
    wide = _wide(image)
    valid = marks.get("valid", jnp.ones(len(image), bool)).astype(wide)
    top, factor = rows[0][:, None], (valid / rows[1] / 2)[:, None]
    columns = {"text": text, "top": columns[0], "factor": valid / columns[1] / 2} | marks

    def block(carry, columns, gradient, own):
        d_image, d_scale = carry
        cosines = _dot(image, columns["text"])
        logits = scale * cosines
        allowed = counted(own, marks, columns)
        if allowed is not None:
            logits = jnp.where(allowed | own, logits, -jnp.inf)
        p = factor * jnp.exp(logits - top) + columns["factor"] * jnp.exp(logits - columns["top"])
        p = p - (own * valid[:, None] if "valid" in marks else own)
        d_scale = d_scale + jnp.sum(p * cosines)
        d_image, gradient = _add_products(layout, p, image, columns["text"], d_image, gradient)
        return (d_image, d_scale), gradient

    def empty(n):
        return jnp.zeros((n, text.shape[1]), wide)

    (d_image, d_scale), d_text = _visit(layout, block, (empty(len(image)), jnp.zeros((), wide)), columns, empty)
    n = number(marks, image, layout.axes)
    return scale / n * d_image, scale / n * _home(layout, d_text), _over_devices(layout, d_scale) / n


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sigmoid(
    layout: Layout,
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    marks: Marks,
) -> Float[Array, ""]:
    """`losses.contrastive.sigmoid` over blocks."""
    fn = functools.partial(_sigmoid_value, layout)
    return _on_devices(layout, fn, "rrss r", "s")(image, text, scale, bias, marks)


def _sigmoid_forward(layout, image, text, scale, bias, marks):
    fn = functools.partial(_sigmoid_value_and_gradients, layout)
    loss, *gradients = _on_devices(layout, fn, "rrss r", "srrss")(image, text, scale, bias, marks)
    return loss, [g.astype(x.dtype) for g, x in zip(gradients, (image, text, scale, bias), strict=True)]


def _sigmoid_backward(layout, gradients, cotangent):
    return *((cotangent * g).astype(g.dtype) for g in gradients), None


sigmoid.defvjp(_sigmoid_forward, _sigmoid_backward)


def _sigmoid_cells(image, columns, scale, bias, marks, own):
    """Cosines, logits with the sign that makes large ones bad, and which cells count."""
    cosines = _dot(image, columns["text"])
    sign = jnp.where(own, -1, 1).astype(cosines.dtype)
    return cosines, sign, sign * (scale * cosines + bias), counted(own, marks, columns)


def _sigmoid_value(layout, image, text, scale, bias, marks):
    def block(total, columns, sums, own):
        _, _, logits, allowed = _sigmoid_cells(image, columns, scale, bias, marks, own)
        return total + jnp.sum(jax.nn.softplus(logits), where=allowed), sums

    total, _ = _visit(layout, block, jnp.zeros((), _wide(image)), {"text": text} | marks, lambda n: ())
    return _over_devices(layout, total) / number(marks, image, layout.axes)


def _sigmoid_value_and_gradients(layout, image, text, scale, bias, marks):
    wide = _wide(image)

    def block(carry, columns, gradient, own):
        total, d_image, d_scale, d_bias = carry
        cosines, sign, logits, allowed = _sigmoid_cells(image, columns, scale, bias, marks, own)
        total = total + jnp.sum(jax.nn.softplus(logits), where=allowed)
        p = sign * jax.nn.sigmoid(logits)
        p = p if allowed is None else jnp.where(allowed, p, 0)
        d_scale, d_bias = d_scale + jnp.sum(p * cosines), d_bias + jnp.sum(p)
        d_image, gradient = _add_products(layout, p, image, columns["text"], d_image, gradient)
        return (total, d_image, d_scale, d_bias), gradient

    def empty(n):
        return jnp.zeros((n, text.shape[1]), wide)

    zero = jnp.zeros((), wide)
    (total, d_image, d_scale, d_bias), d_text = _visit(
        layout, block, (zero, empty(len(image)), zero, zero), {"text": text} | marks, empty
    )
    n = number(marks, image, layout.axes)
    total, d_scale, d_bias = (_over_devices(layout, x) / n for x in (total, d_scale, d_bias))
    return total, scale / n * d_image, scale / n * _home(layout, d_text), d_scale, d_bias


def _add_products(layout, p, image, text, d_image, d_text):
    """Gradients by the rows and by some columns, after another block's derivatives `p` by the logits."""
    p = p.astype(image.dtype)
    d_image = d_image + _times(p, text)
    if not layout.ring and text.shape[0] == image.shape[0] * (jax.lax.axis_size(layout.gather) if layout.gather else 1):
        # A panel in one block: p is made once, and the texts let go before the second product (v5e, 32,768 pairs: 0.19 ms for
        # 0.27, 76 MB for 101). In loops it costs time.
        p, d_image = jax.lax.optimization_barrier((p, d_image))
    return d_image, d_text + _times(p.T, image)


def _visit(
    layout: Layout,
    block: Callable[[Any, dict[str, Array], Any, Bool[Array, "b c"] | bool], tuple[Any, Any]],
    carry: Any,
    columns: dict[str, Shaped[Array, "b ..."]],
    empty: Callable[[int], Any],
) -> tuple[Any, Any]:
    """Leads all columns past the rows of this device.

    Args:
      block: (carry, some columns, sums over rows for these columns, which cells are pairs, or False for none) to the next
        (carry, sums).
      columns: this device's columns.
      empty: sums for so many columns, before any row has been added.

    Returns: the last carry, and the sums for the columns that are gathered here: of this device's rows only along `gather`, of
      all rows along `ring`.
    """
    b = _rows(columns)
    if layout.gather:
        columns = jax.tree.map(lambda x: jax.lax.all_gather(x, layout.gather, tiled=True), columns)
    n = _rows(columns)
    rows = (jax.lax.axis_index(layout.axes) if layout.axes else 0) * b + jnp.arange(b)
    panel = functools.partial(_panel, block, size=min(n, max(layout.cells // b, 1)))

    def pairs_from(first):
        return lambda start, c: rows[:, None] == (first + start + jnp.arange(c))[None]

    if not layout.ring:
        return panel(carry, columns, empty(n), pairs_from(0))
    ring = jax.lax.axis_size(layout.ring)
    onwards = functools.partial(jax.lax.ppermute, axis_name=layout.ring, perm=[(i, (i + 1) % ring) for i in range(ring)])

    def step(state, _):
        """Sums arrive for the columns that came during the last step, and more columns come during this one."""
        carry, columns, sums = state
        coming, sums = jax.tree.map(onwards, (columns, sums))
        carry, sums = panel(carry, columns, sums, lambda start, c: False)
        return (carry, coming, sums), None

    # Only the first panel holds this device's pairs; the loop is spared looking for them.
    coming = jax.tree.map(onwards, columns)
    carry, sums = panel(carry, columns, empty(n), pairs_from(jax.lax.axis_index(layout.ring) * n))
    (carry, _, sums), _ = jax.lax.scan(step, (carry, coming, sums), length=ring - 1)
    return carry, jax.tree.map(onwards, sums)


def _panel(block: Callable, carry: Any, columns: dict[str, Array], sums: Any, pairs: Callable, *, size: int) -> tuple[Any, Any]:
    """All columns of a panel: chunks of equal size in a loop, then the rest. `pairs`: (first column, columns) to cells."""
    n = _rows(columns)
    whole = n // size * size

    def one(carry, inputs):
        start, columns, sums = inputs
        return block(carry, columns, sums, pairs(start, size))

    def cut(x):
        return x[:whole].reshape(whole // size, size, *x.shape[1:])

    if n == size:
        return block(carry, columns, sums, pairs(0, n))
    carry, done = jax.lax.scan(one, carry, (jnp.arange(0, whole, size), *jax.tree.map(cut, (columns, sums))))
    done = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), done)
    if whole == n:
        return carry, done
    rest, sums_of_rest = jax.tree.map(lambda x: x[whole:], (columns, sums))
    carry, last = block(carry, rest, sums_of_rest, pairs(whole, n - whole))
    return carry, jax.tree.map(lambda x, y: jnp.concatenate([x, y]), done, last)


def _on_devices(layout: Layout, fn: Callable, inputs: str, outputs: str) -> Callable:
    """`fn` on every device with its rows (r) or the same scalar (s), by a letter an argument."""
    if not layout.axes:
        return fn
    specs = {"r": P(layout.axes), "s": P()}
    ins = tuple(specs[letter] for letter in inputs.replace(" ", ""))
    outs = specs[outputs] if len(outputs) == 1 else tuple(specs[letter] for letter in outputs)
    # The loops' carries start equal on all devices and end different, which the check of varying axes refuses.
    return jax.shard_map(fn, in_specs=ins, out_specs=outs, check_vma=False)


def _over_devices(layout: Layout, x: Array) -> Array:
    return jax.lax.psum(x, layout.axes) if layout.axes else x


def _home(layout: Layout, sums: Float[Array, "n ..."]) -> Float[Array, "b ..."]:
    """Sums of the gathered columns to the devices that own them."""
    return jax.lax.psum_scatter(sums, layout.gather, tiled=True) if layout.gather else sums


def _add_exponentials(running, logits, axis):
    """A running maximum and the sum of exponentials below it, after another block."""
    top, total = running
    highest = jnp.maximum(top, logits.max(axis))
    return highest, total * jnp.exp(top - highest) + jnp.exp(logits - jnp.expand_dims(highest, axis)).sum(axis)


def _rows(columns: dict[str, Array]) -> int:
    return next(iter(columns.values())).shape[0]


def _wide(x) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def _dot(a: Float[Array, "b d"], b: Float[Array, "c d"]) -> Float[Array, "b c"]:
    """All inner products of rows, accumulated in at least float32."""
    return jnp.einsum("id,jd->ij", a, b, preferred_element_type=_wide(a))


def _times(a: Float[Array, "b c"], b: Float[Array, "c d"]) -> Float[Array, "b d"]:
    return jnp.einsum("ij,jd->id", a, b, preferred_element_type=_wide(a))
