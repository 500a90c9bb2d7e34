"""LiT on your own image-text shards: a text tower for the image tower of another run, which stays as it is.

    python -m vlm_jax.train configs/lit.py --init-from 'image/ <- runs/mine' --workdir runs/lit \\
        --data.train 'shards/train-{00000..00003}.tar' --data.val shards/val-00000.tar

The towers are those of `configs/clip_webdataset.py`. The paper (Zhai et al. 2022) locks ViTs trained on ImageNet-21k or JFT; its public
models learn a text tower on YFCC100M and CC12M with learning rate 1e-3 and weight decay 1e-4.
"""

import dataclasses
from pathlib import Path
from typing import Any

from vlm_jax.config import Config, load_recipe
from vlm_jax.systems import lit


def config() -> Config:
    clip, _ = load_recipe(str(Path(__file__).with_name("clip_webdataset.py")))
    towers: Any = clip.system
    system = lit.Lit(image=towers.image, text=towers.text, mean=towers.mean, std=towers.std)
    return dataclasses.replace(clip, workdir="", system=system)
