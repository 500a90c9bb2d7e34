"""SigLIP L/16 at 256 pixels with batches of 32,768, on 256 chips of v5e.

    python -m vlm_jax.plan configs/pods/siglip_l16_256.py --topology v5e:16x16
    python -m vlm_jax.train configs/pods/siglip_l16_256.py --workdir /mnt/runs/siglip_l16 \\
        --data.train '/mnt/data/train-{00000..01023}.array_record' --data.val /mnt/data/val-00000.array_record

The numbers of configs/pods/siglip_b16_32k.py with both towers of size L. The released weights (Zhai et al. 2023) have 80.5 % on ImageNet.
Planned (compiled, not run): 4.5 GB of 16 on each chip of v5e:16x16.
"""

import dataclasses
from pathlib import Path
from typing import Any

from vlm_jax.config import Config, load_recipe
from vlm_jax.models import text, vit

SIZE = 256


def config() -> Config:
    base, _ = load_recipe(str(Path(__file__).with_name("siglip_b16_32k.py")))
    system: Any = base.system
    data: Any = base.data
    towers = {
        "image": vit.preset("L/16", image_size=SIZE, pool="map", remat="full"),
        "text": text.preset(
            "L",
            vocab_size=system.text.vocab_size,
            length=system.text.length,
            projection_dim=1024,
            projection_bias="learned",
            remat="full",
        ),
    }
    return dataclasses.replace(
        base,
        workdir="",
        system=dataclasses.replace(system, **towers),
        data=dataclasses.replace(data, image=dataclasses.replace(data.image, size=SIZE)),
    )
