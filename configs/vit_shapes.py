"""The demo with a vision transformer for its image tower: what a Flamingo of the shapes world looks through.

    python -m vlm_jax.train configs/vit_shapes.py

Data, text tower, steps and evaluations are those of configs/demo.py. A convolutional stem makes 16 patches of a picture, which four blocks
look at.
"""

import dataclasses
from pathlib import Path
from typing import Any

from vlm_jax.config import Config, load_recipe
from vlm_jax.models import vit
from vlm_jax.training import optimizer

WIDTH = 128


def config() -> Config:
    demo = load_recipe(str(Path(__file__).with_name("demo.py")))[0]
    system: Any = demo.system
    image = vit.Config(
        image_size=64,
        patch_size=16,
        stem="conv",
        stem_depth=1,
        width=WIDTH,
        depth=4,
        mlp_dim=4 * WIDTH,
        num_heads=4,
        loop="unroll",
        projection_dim=128,
    )
    return dataclasses.replace(
        demo,
        workdir="",
        system=dataclasses.replace(system, image=image),
        optimizer=optimizer.AdamW(learning_rate=1e-3, warmup="5%", beta2=0.98, weight_decay=0.1),
    )
