"""SigLIP So400m/14 at 224 pixels with batches of 32,768, on 256 chips of v5e.

    python -m vlm_jax.plan configs/pods/siglip_so400m14.py --topology v5e:16x16
    python -m vlm_jax.train configs/pods/siglip_so400m14.py --workdir /mnt/runs/so400m \\
        --data.train '/mnt/data/train-{00000..01023}.array_record' --data.val /mnt/data/val-00000.array_record

The numbers of configs/pods/siglip_b16_32k.py with both towers shape-optimised (width 1152, MLP 4304, 27 blocks, heads of 72). The
released weights (Zhai et al. 2023) have 82.0 % on ImageNet. Neither width divides by 256: over an fsdp axis of so many devices most of the
state would stay whole. Over 16 everything divides, and no array larger than 1 MB is held whole.
Planned (compiled, not run): 5.8 GB of 16 on each chip of v5e:16x16.
"""

import dataclasses
from pathlib import Path
from typing import Any

from vlm_jax.config import Config, load_recipe
from vlm_jax.models import text, vit


def config() -> Config:
    base, _ = load_recipe(str(Path(__file__).with_name("siglip_b16_32k.py")))
    system: Any = base.system
    towers = {
        "image": vit.preset("So400m/14", pool="map", remat="full"),
        "text": text.preset(
            "So400m",
            vocab_size=system.text.vocab_size,
            length=system.text.length,
            projection_dim=1152,
            projection_bias="learned",
            remat="full",
        ),
    }
    return dataclasses.replace(base, workdir="", system=dataclasses.replace(system, **towers))
