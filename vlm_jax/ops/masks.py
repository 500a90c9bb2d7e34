"""Attention masks: True where a query may attend to a key. Shapes broadcast to [b, heads, t, s]; combine with `&`."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def causal(t: int) -> Bool[Array, "1 1 t t"]:
    """Every token sees itself and what comes before it."""
    return jnp.tri(t, dtype=bool)[None, None]


def segments(numbers: Int[Array, "b t"]) -> Bool[Array, "b 1 t t"]:
    """Every token sees those of its own segment: of a row that holds several documents."""
    return (numbers[:, :, None] == numbers[:, None, :])[:, None]


def keys(present: Bool[Array, "b s"]) -> Bool[Array, "b 1 1 s"]:
    """Every token sees the keys that are present: no padding."""
    return present[:, None, None, :]


def not_padding(tokens: Int[Array, "b t"], pad_id: int) -> Bool[Array, "b t"]:
    """Which tokens are text."""
    return tokens != pad_id


def image_index(is_image: Bool[Array, "b t"], look: Literal["previous", "next"] = "previous") -> Int[Array, "b t"]:
    """The image that each token looks at, from 1; 0: none (Alayrac et al. 2022, Flamingo, section 2.1 and appendix A.2).

    previous: the last one up to the token; next: the first one from the token on. An image's own token looks at it.

    Args:
      is_image: where the tokens are that stand for images.
    """
    before = jnp.cumsum(is_image, axis=1, dtype=jnp.int32)
    if look == "previous":
        return before
    after = before + ~is_image
    return jnp.where(after <= before[:, -1:], after, 0)


def images(
    index: Int[Array, "b t"],
    count: int,
    tokens: int,
    *,
    seen: Literal["one", "all_previous"] = "one",
    segments: tuple[Int[Array, "b t"], Int[Array, "b n"]] | None = None,
) -> Bool[Array, "b 1 t s"]:
    """Every text token sees the visual tokens of its image, or of that and of all images before it; s = count tokens.

    Args:
      index: as `image_index` gives it.
      count: images of a row, n.
      tokens: visual tokens of an image.
      segments: of text tokens and of images, where a row holds several documents; no token sees the images of another one.
    """
    own, numbers = index[:, :, None], jnp.arange(1, count + 1)
    mask = (own == numbers) if seen == "one" else (own >= numbers)
    if segments is not None:
        mask = mask & (segments[0][:, :, None] == segments[1][:, None, :])
    return jnp.repeat(mask, tokens, axis=-1)[:, None]


def class_token_last(present: Bool[Array, "b t"], seen: Literal["correct", "legacy"] = "correct") -> Bool[Array, "b 1 u u"]:
    """Causal text, and after it a class token, which sees itself and the text; no text sees it (Yu et al. 2022, CoCa); u = t + 1.

    Args:
      present: which tokens are text.
      seen: correct: the class token does not see what is not present; legacy: what is hidden is one place too far to the right, and
        from every token, as open_clip's released weights were trained. To text before padding that makes no difference.
    """
    b, t = present.shape
    always = jnp.ones((b, 1), bool)
    causal_text = jnp.tri(t + 1, dtype=bool)
    if seen == "legacy":
        return (causal_text & jnp.concatenate([always, present], axis=1)[:, None])[:, None]
    shown = jnp.concatenate([present, always], axis=1)[:, None]
    return (causal_text & (shown | (jnp.arange(t + 1) < t)[:, None]))[:, None]
