"""An image tower that learned queries look at: tokens for a decoder, and one vector for the contrastive loss (Yu et al. 2022, CoCa)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from flax import nnx
from jaxtyping import Array, Float, Int

from vlm_jax.errors import InputError
from vlm_jax.layers import initializers, linear, norm, pooling
from vlm_jax.models import choices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """An image tower with attentional poolers."""

    tower: Any
    """What gives the tokens: vit.Config with pool "none", or convnet.Config without a projection."""
    width: int
    """Channels of the queries, and so of what a decoder sees."""
    num_heads: int = 8
    """Attention heads of a pooler; they share `width` equally."""
    queries: int = 256
    """Tokens that a decoder sees; with pool "single" one less."""
    pool: Literal["cascade", "parallel", "single"] = "cascade"
    """Where the embedding comes from. cascade: a second pooler with one query looks at what the first one gives (the paper); parallel: it
    looks at the tokens themselves; single: it is the first query of the one pooler, whose output is normalised (open_clip's weights)."""
    norm_epsilon: float = 1e-6
    """Of every norm of the poolers; open_clip has 1e-5."""
    projection_dim: int = 0
    """Channels of a final projection without bias, the embedding; 0 leaves it out."""
    init: initializers.Name = "big_vision"
    """Whose initial distributions; the queries have a variance of 1 in any case."""

    def __post_init__(self):
        choices.check(self)
        if not hasattr(self.tower, "token_dim"):
            raise InputError(f"tower {type(self.tower).__name__}: gives no tokens to look at; take vit.Config or convnet.Config")
        if getattr(self.tower, "pool", "none") != "none" or getattr(self.tower, "projection_dim", 0):
            raise InputError("tower: it pools or projects by itself; set its pool to 'none', where it has one, and projection_dim to 0")
        if min(self.width, self.num_heads) < 1 or self.width % self.num_heads:
            raise InputError(f"num_heads {self.num_heads} does not divide width {self.width}: every head has width / num_heads channels")
        least = 2 if self.pool == "single" else 1
        if self.queries < least or self.projection_dim < 0:
            raise InputError(
                f"queries {self.queries}, projection_dim {self.projection_dim}: at least {least} and 0 with pool {self.pool!r}"
            )

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.tower.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches, of a tower that has patches."""
        return self.tower.grid

    @property
    def output_dim(self) -> int:
        """Channels of the embedding."""
        return self.projection_dim or self.width

    def build(self, *, rngs: nnx.Rngs) -> "Attentional":
        """A freshly initialised tower with its poolers."""
        return Attentional(self, rngs=rngs)

    def adapt(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Parameters by path, those of the tower as its configuration adapts them.

        Raises:
          InputError: they cannot be made to fit.
        """
        own = {path.removeprefix("tower/"): x for path, x in weights.items() if path.startswith("tower/")}
        adapted = self.tower.adapt(own) if hasattr(self.tower, "adapt") else own
        return dict(weights) | {f"tower/{path}": x for path, x in adapted.items()}


class Attentional(nnx.Module):
    """Images to the tokens of a decoder and to one vector.

    Paths: `tower/...`, `pool/...`, `norm` (with pool "single"), `embedding_pool/...` (with the others), `projection`.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        init = (
            initializers.big_vision(width=width)
            if config.init == "big_vision"
            else initializers.clip_image(width=width, mlp_dim=width)
        )
        shared = {"num_heads": config.num_heads, "norm_epsilon": config.norm_epsilon, "initializers": init, "rngs": rngs}
        self.tower = config.tower.build(rngs=rngs)
        self.pool = pooling.AttentionalPooler(width, config.tower.token_dim, queries=config.queries, **shared)
        if config.pool == "single":
            self.norm = norm.LayerNorm(width, epsilon=config.norm_epsilon)
        else:
            context = width if config.pool == "cascade" else config.tower.token_dim
            self.embedding_pool = pooling.AttentionalPooler(width, context, queries=1, **shared)
        if config.projection_dim:
            self.projection = linear.Linear(
                width, config.projection_dim, kernel_init=init.projection, bias_init=None, rngs=rngs
            )

    def __call__(self, images: Float[Array, "b h w 3"], keep: Int[Array, "b m"] | None = None) -> Float[Array, "b e"]:
        """The embedding; `keep` as in vit.ViT."""
        return self.project(self.both(images, keep)[0])

    def pooled(self, images: Float[Array, "b h w 3"], keep: Int[Array, "b m"] | None = None) -> Float[Array, "b d"]:
        """What is projected to the embedding."""
        return self.both(images, keep)[0]

    def encode(self, images: Float[Array, "b h w 3"], keep: Int[Array, "b m"] | None = None) -> Float[Array, "b n d"]:
        """The tokens for a decoder."""
        return self.both(images, keep)[1]

    def both(
        self, images: Float[Array, "b h w 3"], keep: Int[Array, "b m"] | None = None
    ) -> tuple[Float[Array, "b d"], Float[Array, "b n d"]]:
        """What is projected to the embedding, and the tokens for a decoder."""
        tokens = self.tower.encode(images) if keep is None else self.tower.encode(images, keep)
        x = self.pool(tokens)
        if self.config.pool == "single":
            x = self.norm(x)
            return x[:, 0], x[:, 1:]
        return self.embedding_pool(x if self.config.pool == "cascade" else tokens)[:, 0], x

    def project(self, x: Float[Array, "b d"]) -> Float[Array, "b e"]:
        """The embedding, of what `both` gives."""
        return self.projection(x) if self.config.projection_dim else x
