"""CyCLIP on your own image-text shards: `configs/clip_webdataset.py` with the two consistency terms.

    python -m vlm_jax.train configs/cyclip.py \\
        --data.train 'shards/train-{00000..00003}.tar' --data.val shards/val-00000.tar --workdir runs/cyclip

The paper (Goel et al. 2022) trains CLIP's ResNet-50 on 2.6 million pairs of Conceptual Captions for 64 epochs with batches of 128, learning
rate 5e-4, weight decay 0.1 and 10,000 steps of warm-up, and weighs both terms with 0.25. With `--system.in-modal 0
--system.cross-modal 0` this is CLIP.
"""

import dataclasses
from pathlib import Path

from vlm_jax.config import Config, load_recipe
from vlm_jax.systems import cyclip


def config() -> Config:
    clip, _ = load_recipe(str(Path(__file__).with_name("clip_webdataset.py")))
    fields = {field.name: getattr(clip.system, field.name) for field in dataclasses.fields(clip.system)}
    return dataclasses.replace(clip, workdir="", system=cyclip.Cyclip(**fields))
