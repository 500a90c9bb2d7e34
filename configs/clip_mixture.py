"""CLIP on two sources of your own in set shares: `configs/clip_webdataset.py` with a mixture.

    python -m vlm_jax.train configs/clip_mixture.py \\
        --data.parts.web.train 'shards/train-{00000..00003}.tar' --data.parts.web.val shards/val-00000.tar \\
        --data.parts.photos.train photos --data.parts.photos.val photos_val --data.weights.web 3 --workdir runs/mixture

Captions of the web are mended and taken at random, those of the photos are taken as they are; the vocabulary is trained on both. Another
part is another entry here. The log has examples and epochs of each part.
"""

import dataclasses
from pathlib import Path

from vlm_jax.config import Config, load_recipe
from vlm_jax.data import mixtures


def config() -> Config:
    clip, _ = load_recipe(str(Path(__file__).with_name("clip_webdataset.py")))
    web = dataclasses.replace(clip.data, clean="whitespace")
    mixture = mixtures.Mixture({"web": web, "photos": clip.data}, weights={"web": 2.0, "photos": 1.0})
    return dataclasses.replace(clip, workdir="", data=mixture)
