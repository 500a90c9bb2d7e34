"""SigLIP on your own image-text shards, at the scale of a laptop: the towers of configs/clip_webdataset.py as SigLIP has them.

    python -m vlm_jax.train configs/siglip.py \\
        --data.train 'shards/train-{00000..00003}.tar' --data.val shards/val-00000.tar --workdir runs/mine

Every pair of the batch is its own yes or no, so captions that many images share cost more than with the softmax. Images are pooled by
attention, the text tower sees all tokens and its last one, texts are padded with their end. The bias starts near minus the logarithm
of the batch size, where a model that knows nothing has it: the published -10 fits batches of exp(10) = 22,000, and with 128 pairs it
makes both towers forget first what tells examples apart.
"""

import dataclasses
from pathlib import Path
from typing import Any

from vlm_jax.config import Config, load_recipe
from vlm_jax.systems import siglip


def config() -> Config:
    base, _ = load_recipe(str(Path(__file__).with_name("clip_webdataset.py")))
    clip: Any = base.system
    data: Any = base.data
    return dataclasses.replace(
        base,
        workdir="",
        system=siglip.Siglip(
            image=dataclasses.replace(clip.image, pool="map", projection_dim=0),
            text=dataclasses.replace(clip.text, attention="bidirectional", pool="last", eos_id=None, projection_bias="learned"),
            initial_bias=-5.0,
        ),
        data=dataclasses.replace(data, tokenizer=dataclasses.replace(data.tokenizer, pad="eos")),
    )
