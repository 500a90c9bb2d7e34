"""LiT: a text tower of size B for a locked ViT-B/16, with batches of 16,384, on 64 chips of v5e.

    python -m vlm_jax.plan configs/pods/lit_b16.py --topology v5e:8x8
    python -m vlm_jax.train configs/pods/lit_b16.py --init-from 'image/ <- big_vision:B_16.npz' --workdir /mnt/runs/lit \\
        --data.train '/mnt/data/train-{00000..01023}.array_record' --data.val /mnt/data/val-00000.array_record

The public models of Zhai et al. (2022) lock a ViT-B/16 trained on ImageNet-21k and train on YFCC100M and CC12M, about 20 epochs in batches
of 16,384, texts of 16 tokens, learning rate 1e-3, weight decay 1e-4, gradients clipped at 1; with BERT as text tower they have
73.9 % on ImageNet. Here the text tower is SigLIP's and starts from nothing. Locked weights are kept in bfloat16, without moments.
Planned (compiled, not run): 2.1 GB of 16 on each chip of v5e:8x8.
"""

from vlm_jax.config import Config
from vlm_jax.data import images, pipeline
from vlm_jax.data import text as tokenizers
from vlm_jax.evaluation import retrieval
from vlm_jax.models import text, vit
from vlm_jax.systems import lit
from vlm_jax.training import optimizer, sharding

LENGTH = 16


def config() -> Config:
    return Config(
        steps=60_000,
        batch_size=16_384,
        save_every=2000,
        eval_every=10_000,
        precision="bfloat16",
        frozen_dtype="bfloat16",
        system=lit.Lit(
            image=vit.preset("B/16", pool="cls", class_token="positioned", activation="gelu"),
            text=text.preset("B", vocab_size=32_000, length=LENGTH, projection_dim=768, remat="names"),
        ),
        data=pipeline.Pairs(
            train="",
            val="",
            tokenizer=tokenizers.Tokenizer("c4_en.model", length=LENGTH, pad="eos", case="lower"),
            image=images.Transform(size=224, resize="squash"),
        ),
        optimizer=optimizer.AdamW(learning_rate=1e-3, warmup="3%", weight_decay=1e-4),
        mesh=sharding.Mesh(data=-1, fsdp=8),
        evaluators={"retrieval": retrieval.Retrieval()},
        workers=16,
    )
