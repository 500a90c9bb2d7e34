"""SigLIP on the embedded shapes world: the demo's towers and data, with the sigmoid loss.

    python -m vlm_jax.train configs/siglip.py

Every pair of the batch is its own yes or no. The bias starts at -10, because nearly all of them are no.
"""

import dataclasses
from pathlib import Path
from typing import Any

from vlm_jax.config import Config, load_recipe
from vlm_jax.systems import siglip


def config() -> Config:
    demo, _ = load_recipe(str(Path(__file__).with_name("demo.py")))
    clip: Any = demo.system
    system = siglip.Siglip(image=clip.image, text=clip.text, mean=clip.mean, std=clip.std)
    return dataclasses.replace(demo, workdir="", system=system)
