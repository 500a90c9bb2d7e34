"""The modified ResNets of OpenAI's CLIP and open_clip: their names, and the fields of vision_cfg."""

from typing import Any

from vlm_jax.models import resnet
from vlm_jax.models.convert import layout
from vlm_jax.models.convert.mapping import ARRAY, LINEAR, Kind, Leaf, Table

HEAD_WIDTH = 64
COUNTERS = r".*\.num_batches_tracked"
"""Of batches that a norm has seen; nothing is computed from them."""
_CONV: Kind = (Leaf(".weight", ("/kernel",), lambda x: (x.transpose(2, 3, 1, 0),), lambda x: x.transpose(3, 2, 0, 1)),)
_NORM: Kind = (
    Leaf(".weight", ("/scale",)),
    Leaf(".bias", ("/bias",)),
    Leaf(".running_mean", ("/mean",)),
    Leaf(".running_var", ("/variance",)),
)


def table(config: resnet.Config) -> Table:
    """All names of the tower."""
    lines: list[tuple[str, str, Kind]] = []

    def add(conv: str, norm: str, path: str) -> None:
        lines.extend([(conv, path, _CONV), (norm, f"{path}/norm", _NORM)])

    for i in (1, 2, 3):
        add(f"conv{i}", f"bn{i}", f"stem{i}")
    for stage, depth in enumerate(config.layers):
        for block in range(depth):
            theirs, ours = f"layer{stage + 1}.{block}", f"stage{stage + 1}/bottleneck{block + 1}"
            for i in (1, 2, 3):
                add(f"{theirs}.conv{i}", f"{theirs}.bn{i}", f"{ours}/conv{i}")
            if block == 0:
                add(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}/shortcut")
    lines.append(("attnpool.positional_embedding", "pool/positions", ARRAY))
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "c_proj": "out"}
    return (*lines, *((f"attnpool.{theirs}", f"pool/{ours}", LINEAR) for theirs, ours in names.items()))


def read(vision: layout.Fields, dim: int) -> resnet.Config:
    """The tower that vision_cfg describes; `layers` is a list there.

    Raises:
      InputError: a field is not known, or has a value that no tower has.
    """
    fields = vision.filled(width=64, head_width=HEAD_WIDTH, image_size=224)
    fields.only("layers", "width", "head_width", "image_size", "patch_size", "mlp_ratio")
    first, second, third, fourth = (int(depth) for depth in fields.values("layers", 4))
    width = fields.integer("width")
    return resnet.Config(
        image_size=fields.integer("image_size"),
        layers=(first, second, third, fourth),
        width=width,
        num_heads=max(32 * width // fields.integer("head_width"), 1),
        projection_dim=dim,
    )


def to_json(config: resnet.Config) -> dict[str, Any]:
    """The fields of vision_cfg."""
    return {
        "image_size": config.image_size,
        "layers": list(config.layers),
        "width": config.width,
        "head_width": config.features // config.num_heads,
        "patch_size": None,
    }
