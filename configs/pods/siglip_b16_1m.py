"""SigLIP B/16 with batches of 1,048,576: 4,096 pairs on each of 256 chips of v5e, the towers over chunks of them.

    python -m vlm_jax.plan configs/pods/siglip_b16_1m.py --topology v5e:16x16
    python -m vlm_jax.train configs/pods/siglip_b16_1m.py --workdir /mnt/runs/siglip_1m \\
        --data.train '/mnt/data/train-{00000..01023}.array_record' --data.val /mnt/data/val-00000.array_record

The largest batch of the paper's ablation (Zhai et al. 2023), where the sigmoid loss still trains and gains nothing over 32,768. Everything
else is configs/pods/siglip_b16_32k.py, and as many steps as 9e9 pairs make. Value and every gradient are those of the whole batch at once.
Planned (compiled, not run): 6.4 GB of 16 on each chip of v5e:16x16.
"""

import dataclasses
from pathlib import Path

from vlm_jax.config import Config, load_recipe


def config() -> Config:
    base, _ = load_recipe(str(Path(__file__).with_name("siglip_b16_32k.py")))
    optimizer = dataclasses.replace(base.optimizer, warmup="7%")
    return dataclasses.replace(
        base, workdir="", batch_size=1_048_576, microbatches=32, save_every=100, eval_every=500, optimizer=optimizer
    )
