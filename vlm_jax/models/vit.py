"""Vision Transformer (Dosovitskiy et al. 2021) in the variants of CLIP, SigLIP, big_vision, DeiT and DINOv2.

One pre-norm Transformer over patches; what the papers disagree on is a field of `Config`. `preset("B/16")` gives a
published size, the defaults the simplest tower: learned positions, no class token, the mean over patches.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlm_jax.errors import InputError
from vlm_jax.layers import attention, block, conv, initializers, linear, norm, pooling, stack
from vlm_jax.models import choices, sizes
from vlm_jax.ops import activations, patches, sharding, tokens
from vlm_jax.ops import positions as position_tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A ViT."""

    image_size: int
    """Height and width in pixels that the tower is made for; others are taken too, with resized positions."""
    patch_size: int
    """Height and width of a patch, in pixels."""
    width: int
    """Channels of a token."""
    depth: int
    """Number of blocks."""
    mlp_dim: int
    """Channels between the two layers of an MLP."""
    num_heads: int
    """Attention heads; they share `width` equally."""
    pool: Literal["cls", "gap", "map", "none"] = "gap"
    """From tokens to one vector: the class token, the mean over patches, attention with a learned probe, or not at all."""
    class_token: Literal["none", "positioned", "unpositioned"] = "none"
    """A learned token before the patches: with a position of its own (original ViT, CLIP, DeiT) or without (big_vision, DeiT III)."""
    registers: int = 0
    """Learned tokens without position or output, scratch space for attention (Darcet et al. 2024)."""
    positions: Literal["learned", "sincos2d"] = "learned"
    """A learned table, or fixed 2-D sines and cosines."""
    position_resize: position_tables.Resize = "bicubic"
    """How a learned table is resized for images of another size."""
    stem: Literal["patch", "conv"] = "patch"
    """Patches of pixels, or of features of residual 3x3 convolutions (the idea of SimVLM's stem, at strides 4, 8, ... `patch_size`)."""
    stem_channels: int = 64
    """Channels of the convolutional stem at stride 4; they double with every further stride."""
    stem_depth: int = 2
    """Residual convolutions at each stride of the convolutional stem."""
    border: Literal["refuse", "leave_out"] = "refuse"
    """Pixels on the right and below that make no whole patch: there may be none, or they are not looked at (SigLIP So400m/14 at 384)."""
    patch_bias: Literal["learned", "none"] = "learned"
    """Whether the patch embedding has a bias; CLIP's has none."""
    pre_norm: Literal["none", "layer_norm"] = "none"
    """A norm between positions and the first block; CLIP has one."""
    post_norm: Literal["layer_norm", "none"] = "layer_norm"
    """A norm after the last block; with pool "none" it may be left out, as in open_clip's CoCa."""
    activation: activations.Name = "gelu_tanh"
    """In the MLPs; pretrained weights need the one they were trained with."""
    norm_epsilon: float = 1e-6
    """Of every norm; CLIP has 1e-5, Hugging Face's ViT 1e-12."""
    qk_norm: attention.QKNorm = "none"
    """A norm of queries and keys in each head, for stability at large width."""
    layer_scale: float = 0.0
    """Initial value of a learned factor per channel on each branch of a block; 0 leaves the factor out."""
    representation_dim: int = 0
    """Channels of a tanh layer after pooling (original ViT's pre-logits, Hugging Face's pooler); 0 leaves it out."""
    projection_dim: int = 0
    """Channels of a final projection without bias, the embedding; 0 leaves it out."""
    loop: stack.Loop = "scan"
    """Whether the blocks are compiled as one in a loop, or unrolled: faster steps on CPU, longer compilation with depth."""
    remat: stack.Remat = "none"
    """What the backward pass computes again instead of keeping; see `layers.stack`."""
    init: initializers.Name = "big_vision"
    """Whose initial distributions."""

    def __post_init__(self):
        choices.check(self)
        sizes.check(width=self.width, depth=self.depth, mlp_dim=self.mlp_dim, num_heads=self.num_heads)
        if self.image_size < 1 or self.patch_size < 1:
            raise InputError(f"image_size {self.image_size}, patch_size {self.patch_size}: both must be at least 1")
        if min(self.registers, self.representation_dim, self.projection_dim) < 0:
            raise InputError(
                f"registers {self.registers}, representation_dim {self.representation_dim}, "
                f"projection_dim {self.projection_dim}: none may be negative, 0 leaves them out"
            )
        if self.stem_channels < 1 or self.stem_depth < 1:
            raise InputError(
                f"stem_channels {self.stem_channels}, stem_depth {self.stem_depth}: both must be at least 1"
            )
        patches.grid(self._side, self._side, self.patch_size)
        if self.pool == "cls" and self.class_token == "none":
            raise InputError("pool 'cls' has no token to take: set class_token to 'positioned' or 'unpositioned'")
        if self.positions == "sincos2d":
            if self.width % 4 or self.width < 8:
                raise InputError(f"width {self.width}: sincos2d positions need a multiple of 4, at least 8")
            if self.class_token == "positioned":
                raise InputError(
                    "class_token 'positioned' has no place in positions 'sincos2d': set it to 'unpositioned'"
                )
        if self.stem == "conv" and (self.patch_size < 4 or self.patch_size & (self.patch_size - 1)):
            raise InputError(f"patch_size {self.patch_size}: stem 'conv' has stride 4, 8, 16 or a higher power of two")
        if self.post_norm == "none" and self.pool != "none":
            raise InputError(f"post_norm 'none': what pool {self.pool!r} takes is normalised; set pool to 'none'")
        if self.pool == "none" and (self.representation_dim or self.projection_dim):
            raise InputError("pool 'none' gives no vector to project: leave representation_dim and projection_dim 0")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at `image_size`."""
        return patches.grid(self._side, self._side, self.patch_size)

    @property
    def _side(self) -> int:
        """Pixels of `image_size` that are looked at."""
        rest = self.image_size % self.patch_size if self.border == "leave_out" else 0
        return self.image_size - rest or self.image_size

    @property
    def output_dim(self) -> int:
        """Channels of the embedding."""
        return self.projection_dim or self.representation_dim or self.width

    @property
    def token_dim(self) -> int:
        """Channels of what `encode` gives."""
        return self.width

    def build(self, *, rngs: nnx.Rngs) -> "ViT":
        """A freshly initialised tower."""
        return ViT(self, rngs=rngs)

    def adapt(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Parameters by path of this tower at another image_size, made to fit: a learned table of positions is resized.

        Raises:
          InputError: the table is not that of a square grid.
        """
        if "positions" not in weights:
            return dict(weights)
        first = int(self.class_token == "positioned")
        table = weights["positions"]
        side = math.isqrt(max(table.shape[0] - first, 0))
        if side**2 + first != table.shape[0]:
            raise InputError(
                f"positions {table.shape[0]}: not those of a square grid with class_token {self.class_token!r}; "
                "set class_token as the weights have it"
            )
        resized = position_tables.resize_positions(table[first:], (side, side), self.grid, self.position_resize)
        return dict(weights) | {"positions": jnp.concatenate([table[:first], resized])}


def preset(name: str, *, image_size: int = 224, **overrides) -> Config:
    """A published size by its name, such as "B/16": Ti S M B L So400m H g G, and the patch size.

    Raises:
      InputError: the name is no such pair.
    """
    size, slash, patch_size = name.partition("/")
    if not slash or not patch_size.isdecimal():
        raise InputError(f"ViT {name!r}: write a size and a patch size, such as B/16")
    return dataclasses.replace(
        Config(image_size=image_size, patch_size=int(patch_size), **sizes.by_name(size)), **overrides
    )


class ViT(nnx.Module):
    """Images to tokens, and to one vector.

    Paths: `stem/...` (with stem "conv"), `patch_embed` (kernel [p, d], bias), `class_token` [1, d], `registers` [r, d], `positions` [n, d]
    (the class token's first), `pre_norm`, `blocks/...` (leading axis: depth), `norm`, `head/...` (with pool "map"),
    `representation`, `projection`.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        init = (
            initializers.big_vision(width=width)
            if config.init == "big_vision"
            else initializers.clip_image(width=width, mlp_dim=config.mlp_dim)
        )
        patch_dim = 3 * config.patch_size**2
        if config.stem == "conv":
            strides = config.patch_size.bit_length() - 2
            patch_dim = config.stem_channels * 2 ** (strides - 1)
            self.stem = conv.Stages(
                tuple(config.stem_channels * 2**i for i in range(strides)),
                (config.stem_depth,) * strides,
                activation=config.activation,
                norm_epsilon=config.norm_epsilon,
                rngs=rngs,
            )
        self.patch_embed = linear.Linear(
            patch_dim,
            width,
            kernel_init=init.patch,
            bias_init=nnx.initializers.zeros if config.patch_bias == "learned" else None,
            rngs=rngs,
        )
        if config.class_token != "none":
            self.class_token = nnx.Param(init.class_token(rngs.params(), (1, width), jnp.float32))
        if config.registers:
            self.registers = nnx.Param(init.class_token(rngs.params(), (config.registers, width), jnp.float32))
        if config.positions == "learned":
            rows = config.grid[0] * config.grid[1] + (config.class_token == "positioned")
            self.positions = nnx.Param(init.positions(rngs.params(), (rows, width), jnp.float32))
        if config.pre_norm == "layer_norm":
            self.pre_norm = norm.LayerNorm(width, epsilon=config.norm_epsilon)
        self.blocks = stack.build(
            lambda rngs: block.Block(
                width,
                config.num_heads,
                config.mlp_dim,
                activation=config.activation,
                norm_epsilon=config.norm_epsilon,
                qk_norm=config.qk_norm,
                layer_scale=config.layer_scale,
                initializers=init,
                rngs=rngs,
            ),
            config.depth,
            rngs=rngs,
        )
        if config.post_norm == "layer_norm":
            self.norm = norm.LayerNorm(width, epsilon=config.norm_epsilon)
        if config.pool == "map":
            self.head = pooling.AttentionPool(
                width,
                config.num_heads,
                config.mlp_dim,
                activation=config.activation,
                norm_epsilon=config.norm_epsilon,
                initializers=init,
                rngs=rngs,
            )
        if config.representation_dim:
            self.representation = linear.Linear(
                width, config.representation_dim, kernel_init=init.projection, rngs=rngs
            )
        if config.projection_dim:
            self.projection = linear.Linear(
                config.representation_dim or width,
                config.projection_dim,
                kernel_init=init.projection,
                bias_init=None,
                rngs=rngs,
            )

    def __call__(
        self, images: Float[Array, "b h w 3"], keep: Int[Array, "b m"] | None = None
    ) -> Float[Array, "b e"]:
        """The embedding: tokens, pooled and projected.

        Args:
          keep: ascending indices of the patches that are encoded, row-major; None: all. The others are left out after the
            stem and the positions, and are not pooled either; class token and registers always stay.

        Raises:
          InputError: the patch does not divide the images, or `pool` is "none".
        """
        x = self.pooled(images, keep)
        return self.projection(x) if self.config.projection_dim else x

    def pooled(
        self, images: Float[Array, "b h w 3"], keep: Int[Array, "b m"] | None = None
    ) -> Float[Array, "b d"]:
        """What is projected to the embedding: one vector an image, after the layer of `representation_dim` if there is one.

        Raises:
          InputError: the patch does not divide the images, or `pool` is "none".
        """
        x = self.hidden(images, keep)
        if self.config.pool == "cls":
            x = self.norm(x[:, 0])
        elif self.config.pool == "gap":
            x = self.norm(x)[:, self._leading :].mean(1)
        elif self.config.pool == "map":
            x = self.head(self._output(self.norm(x)))
        else:
            raise InputError("pool 'none' makes no embedding: call encode, or set pool to 'cls', 'gap' or 'map'")
        return jnp.tanh(self.representation(x)) if self.config.representation_dim else x

    def encode(
        self, images: Float[Array, "b h w 3"], keep: Int[Array, "b m"] | None = None
    ) -> Float[Array, "b n d"]:
        """Tokens after the final norm, if there is one: the class token if there is one, then the patches, row-major.

        Raises:
          InputError: the patch does not divide the images.
        """
        x = self.hidden(images, keep)
        return self._output(self.norm(x) if self.config.post_norm == "layer_norm" else x)

    def hidden(
        self, images: Float[Array, "b h w 3"], keep: Int[Array, "b m"] | None = None
    ) -> Float[Array, "b n d"]:
        """Tokens after the last block, before the final norm: class token, registers, patches."""
        x = sharding.shard_batch(self.embed(images, keep))
        return stack.apply(self.blocks, x, loop=self.config.loop, remat=self.config.remat)

    def embed(
        self, images: Float[Array, "b h w 3"], keep: Int[Array, "b m"] | None = None
    ) -> Float[Array, "b n d"]:
        """Tokens before the first block: class token, registers, patches, with positions."""
        if self.config.border == "leave_out":
            h, w = (side - side % self.config.patch_size for side in images.shape[1:3])
            images = images[:, :h, :w]
        grid = patches.grid(images.shape[1], images.shape[2], self.config.patch_size)
        if self.config.stem == "conv":
            x = self.stem(images, remat=self.config.remat)
            x = x.reshape(x.shape[0], -1, x.shape[-1])
        else:
            x = patches.patchify(images, self.config.patch_size)
        x = self.patch_embed(x)
        first = [self.class_token[...]] if self.config.class_token != "none" else []
        registers = [self.registers[...]] if self.config.registers else []
        if self.config.positions == "sincos2d":
            table = position_tables.sincos2d(*grid, self.config.width)
        else:
            table = self.positions[...]
            if self.config.class_token == "positioned":
                first, table = [first[0] + table[:1]], table[1:]
            table = position_tables.resize_positions(table, self.config.grid, grid, self.config.position_resize)
        x = x + table.astype(x.dtype)
        x = x if keep is None else tokens.take(x, keep)
        extra = [jnp.broadcast_to(y.astype(x.dtype), (x.shape[0], *y.shape)) for y in first + registers]
        x = jnp.concatenate([*extra, x], axis=1) if extra else x
        return self.pre_norm(x) if self.config.pre_norm == "layer_norm" else x

    @property
    def _leading(self) -> int:
        """Tokens before the patches."""
        return (self.config.class_token != "none") + self.config.registers

    def _output(self, x):
        """Without the registers."""
        if not self.config.registers:
            return x
        return jnp.concatenate([x[:, : self._leading - self.config.registers], x[:, self._leading :]], axis=1)
