"""The Flamingo recipe of the shapes world with parts so small that a test trains it. Data is given on the command line."""

import dataclasses
from pathlib import Path
from typing import Any

from vlm_jax.config import Config, load_recipe
from vlm_jax.evaluation import fast_binding
from vlm_jax.models import vit


def config() -> Config:
    shapes, _ = load_recipe(str(Path(__file__).parents[1] / "configs" / "flamingo_shapes.py"))
    system: Any = shapes.system
    system = dataclasses.replace(
        system,
        image=vit.Config(image_size=32, patch_size=16, width=16, depth=1, mlp_dim=16, num_heads=2, loop="unroll"),
        lm=dataclasses.replace(system.lm, width=16, depth=1, mlp_dim=16, num_heads=2),
        resampler=dataclasses.replace(system.resampler, width=16, latents=2, depth=1, num_heads=2, head_dim=8, mlp_dim=16),
        cross=dataclasses.replace(system.cross, num_heads=2, head_dim=8, mlp_dim=16),
    )
    streams: Any = shapes.data
    transform = dataclasses.replace(streams["pages"].image, size=32)
    data = {name: dataclasses.replace(stream, image=transform) for name, stream in streams.items()}
    small: dict[str, Any] = {"support": 16, "limit": 8, "shots": (0, 2)}
    bound: dict[str, Any] = {"limit": 0, "labels": ("scene.background",), "episodes": 8, "shots": (0, 2)}
    evaluators = {
        name: dataclasses.replace(evaluator, **(bound if isinstance(evaluator, fast_binding.FastBinding) else small))
        for name, evaluator in shapes.evaluators.items()
        if "similar" not in name
    }
    return dataclasses.replace(
        shapes, workdir="", init_from=(), steps=2, batch_size=8, log_every=1, eval_every=0, system=system, data=data, evaluators=evaluators
    )
