"""CLIPA's finish: the run of configs/pods/clipa_l16.py goes on for a little with images of 224 pixels and 32 tokens of text.

    python -m vlm_jax.plan configs/pods/clipa_l16_finish.py --topology v5e:16x16
    python -m vlm_jax.train configs/pods/clipa_l16_finish.py --init-from /mnt/runs/clipa --workdir /mnt/runs/clipa_224 \\
        --data.train '/mnt/data/train-{00000..01023}.array_record' --data.val /mnt/data/val-00000.array_record

Li et al. (2023) tune L/16 for 131 million pairs at a tenth of the learning rate, 8e-7 for every 256 pairs of a batch, after a warm-up of
26 million.
Planned (compiled, not run): 3.4 GB of 16 on each chip of v5e:16x16.
"""

import dataclasses
from pathlib import Path
from typing import Any

from vlm_jax.config import Config, load_recipe
from vlm_jax.models import text, vit

SIZE = 224


def config() -> Config:
    cheap, _ = load_recipe(str(Path(__file__).with_name("clipa_l16.py")))
    system: Any = cheap.system
    data: Any = cheap.data
    image: vit.Config = dataclasses.replace(system.image, image_size=SIZE, remat="full")
    words: text.Config = dataclasses.replace(system.text, remat="full")
    return dataclasses.replace(
        cheap,
        workdir="",
        steps="131e6 examples",
        save_every=1000,
        eval_every=2000,
        system=dataclasses.replace(system, image=image, text=words),
        data=dataclasses.replace(
            data,
            tokenizer=dataclasses.replace(data.tokenizer, length=32),
            image=dataclasses.replace(data.image, size=SIZE),
        ),
        optimizer=dataclasses.replace(cheap.optimizer, learning_rate=8e-7 * cheap.batch_size / 256, warmup="2.62e7 examples"),
    )
