"""CLIP on your own shards in two stages: most steps on half of the patches and short texts, the last ones on everything.

    python -m vlm_jax.train configs/clip_cheap.py \\
        --data.train 'shards/train-{00000..00003}.tar' --data.val shards/val-00000.tar --workdir runs/cheap
    python -m vlm_jax.train configs/clip_webdataset.py --init-from runs/cheap \\
        --data.train 'shards/train-{00000..00003}.tar' --data.val shards/val-00000.tar --workdir runs/finished \\
        --steps 100 --optimizer.learning-rate 3e-4

The numbers of configs/clip_webdataset.py, with half of the patches drawn at random for every picture and step (FLIP) and rows of 16
tokens for the text tower of 32 (CLIPA). This stage's evaluations see all patches, but its short texts.
"""

import dataclasses
from pathlib import Path

from vlm_jax.config import Config, load_recipe
from vlm_jax.ops import tokens


def config() -> Config:
    full, _ = load_recipe(str(Path(__file__).with_name("clip_webdataset.py")))
    return dataclasses.replace(
        full,
        workdir="",
        system=dataclasses.replace(full.system, image_tokens=tokens.Drop(keep=0.5)),
        data=dataclasses.replace(full.data, tokenizer=dataclasses.replace(full.data.tokenizer, length=16)),
    )
