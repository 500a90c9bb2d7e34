"""The tiny recipe with a modified ResNet, in the form that open_clip can build, too."""

import dataclasses
from pathlib import Path
from typing import Any

from vlm_jax.config import Config, load_recipe
from vlm_jax.models import resnet
from vlm_jax.systems import clip


def config() -> Config:
    tiny, _ = load_recipe(str(Path(__file__).with_name("tiny_recipe.py")))
    towers: Any = tiny.system
    text = dataclasses.replace(towers.text, pool="last", eos_id=None, norm_epsilon=1e-5, activation="gelu")
    image = resnet.Config(image_size=32, layers=(1, 1, 1, 1), width=4, num_heads=2, projection_dim=16)
    data: Any = tiny.data
    data = dataclasses.replace(data, image=dataclasses.replace(data.image, resize_to=0))
    return dataclasses.replace(tiny, workdir="", system=clip.Clip(image=image, text=text, initial_scale=10.0), data=data, evaluators={})
