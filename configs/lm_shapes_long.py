"""The language model of the shapes world on longer pages: room for 32 examples and a question after them.

    python -m vlm_jax.train configs/lm_shapes.py
    python -m vlm_jax.train configs/lm_shapes_long.py

Rows are 640 tokens in place of 128, and pages have up to 36 scenes. To learn on short rows first is cheaper: to find out what a word means
comes late (configs/lm_shapes.py), and a step on long rows takes twice the time for the same number of tokens.
"""

import dataclasses
from pathlib import Path
from typing import Any

from vlm_jax.config import Config, load_recipe

LENGTH = 640


def config() -> Config:
    recipe = load_recipe(str(Path(__file__).with_name("lm_shapes.py")))[0]
    system: Any = recipe.system
    data: Any = recipe.data
    optimizer: Any = recipe.optimizer
    return dataclasses.replace(
        recipe,
        workdir="",
        steps=500,
        batch_size=8,
        init_from=("runs/lm_shapes",),
        system=dataclasses.replace(system, lm=dataclasses.replace(system.lm, length=LENGTH)),
        optimizer=dataclasses.replace(optimizer, learning_rate=1e-3),
        data=dataclasses.replace(
            data,
            train="shapes:long_told_pages",
            val="shapes:long_told_pages_val",
            tokenizer=dataclasses.replace(data.tokenizer, length=LENGTH),
        ),
    )
