"""SigLIP B/16 at 224 pixels with batches of 32,768, on 256 chips of v5e or 64 of v4.

    python -m vlm_jax.plan configs/pods/siglip_b16_32k.py --topology v5e:16x16
    python -m vlm_jax.train configs/pods/siglip_b16_32k.py --workdir /mnt/runs/siglip \\
        --data.train '/mnt/data/train-{00000..01023}.array_record' --data.val /mnt/data/val-00000.array_record

The paper (Zhai et al. 2023): both towers of size B, images resized to a square, 64 lower-case tokens of a vocabulary of 32,000, learning
rate 1e-3, weight decay 1e-4, beta2 0.95, gradients clipped at 1, batches of 32,768, beyond which it found no gain. Its English B/16 saw
9e9 pairs; the released weights have 76.0 % on ImageNet without training on it. 20,000 steps of warm-up are those of SigLIP 2.
Planned (compiled, not run): 5.2 GB of 16 on each chip of v5e:16x16, 17.9 GB of 32 on each of v4:4x4x4.
"""

from vlm_jax.config import Config
from vlm_jax.data import images, pipeline
from vlm_jax.data import text as tokenizers
from vlm_jax.evaluation import retrieval
from vlm_jax.models import text, vit
from vlm_jax.systems import siglip
from vlm_jax.training import optimizer, sharding

VOCABULARY = 32_000
LENGTH = 64


def config() -> Config:
    return Config(
        steps="9e9 examples",
        batch_size=32_768,
        save_every=2000,
        eval_every=10_000,
        precision="bfloat16",
        system=siglip.Siglip(
            image=vit.preset("B/16", pool="map", remat="names"),
            text=text.preset(
                "B", vocab_size=VOCABULARY, length=LENGTH, projection_dim=768, projection_bias="learned", remat="names"
            ),
        ),
        data=pipeline.Pairs(
            train="",
            val="",
            tokenizer=tokenizers.Tokenizer("c4_en.model", length=LENGTH, pad="eos", case="lower", punctuation="strip"),
            image=images.Transform(size=224, resize="squash"),
        ),
        optimizer=optimizer.AdamW(learning_rate=1e-3, warmup=20_000, beta2=0.95, weight_decay=1e-4),
        mesh=sharding.Mesh(data=-1, fsdp=16),
        evaluators={"retrieval": retrieval.Retrieval()},
        workers=16,
    )
