"""Flamingo-3B: cross-attention before each of the 24 blocks of a frozen language model, on 256 chips of v5e.

    python -m vlm_jax.plan configs/pods/flamingo_3b.py --topology v5e:16x16
    python -m vlm_jax.train configs/pods/flamingo_3b.py --workdir /mnt/runs/flamingo \\
        --init-from 'image/ <- /mnt/runs/so400m' 'lm/ <- /mnt/runs/lm' \\
        --data.pages.train '/mnt/pages/train-{00000..01023}.tar' --data.pairs.train '/mnt/pairs/train-{00000..01023}.array_record' \\
        --data.video.train '/mnt/clips/train-{00000..00255}.tar'

Alayrac et al. (2022): a language model of 24 blocks of width 2048, a resampler of 6 blocks of width 1536 to 64 visual tokens, rows of 256
tokens with 5 images, pairs and clips of 8 frames with 32 tokens, AdamW with learning rate 1e-4 after 5000 steps, decay 0.1 but for the
resampler, losses weighed 1, 0.2 and 0.03. They have an NFNet-F6 at 320 pixels; here is the image tower of siglip_so400m14.py, of the same
size, at 224. The batch sizes are ours. Frozen weights are kept in bfloat16, without gradient and moments, over the fsdp axis.
Planned (compiled, not run): 3.9 GB of 16 on each chip of v5e:16x16.
"""

from vlm_jax.config import Config
from vlm_jax.data import clips, images, pages, pipeline
from vlm_jax.data import text as tokenizers
from vlm_jax.layers import gated_cross_attention
from vlm_jax.models import lm, resampler, vit
from vlm_jax.systems import flamingo
from vlm_jax.training import optimizer, sharding

WIDTH = 2048
VISUAL = 1536
VOCABULARY = 32_000


def config() -> Config:
    transform = images.Transform(size=224, resize="squash")
    short = {"train": "", "val": "", "tokenizer": tokenizers.Tokenizer("c4_en.model", length=32), "image": transform}
    return Config(
        steps=500_000,
        batch_size=1024,
        save_every=2000,
        eval_every=0,
        precision="bfloat16",
        frozen_dtype="bfloat16",
        system=flamingo.Flamingo(
            image=vit.preset("So400m/14", pool="map", remat="names"),
            lm=lm.Config(
                vocab_size=VOCABULARY,
                length=2048,
                width=WIDTH,
                depth=24,
                mlp_dim=4 * WIDTH,
                num_heads=16,
                norm="rms_norm",
                position="rotary",
                bias="none",
                head="untied",
                remat="names",
            ),
            resampler=resampler.Config(width=VISUAL, mlp_dim=4 * VISUAL, frames=8, remat="names"),
            cross=gated_cross_attention.Config(num_heads=16, head_dim=128, mlp_dim=4 * WIDTH),
            end_id=1,
        ),
        data={
            "pages": pages.Pages(
                train="",
                val="",
                tokenizer=tokenizers.Tokenizer("c4_en.model", length=256),
                image=transform,
                images=5,
                next_image=0.5,
            ),
            "pairs": pipeline.Pairs(**short, batch_size=2048),
            "video": clips.Clips(**short, batch_size=256),
        },
        optimizer=optimizer.AdamW(
            learning_rate=1e-4,
            schedule="constant",
            warmup=5000,
            weight_decay=0.1,
            decay=r"^(cross|added).*(kernel|embedding)$",
        ),
        mesh=sharding.Mesh(data=-1, fsdp=16),
        workers=16,
    )
