"""CLIP on your own image-text shards, at the scale of a laptop.

    python -m vlm_jax.train configs/clip_webdataset.py \\
        --data.train 'shards/train-{00000..00003}.tar' --data.val shards/val-00000.tar --workdir runs/mine

Two small towers: a ViT (192 wide, 6 blocks, patches of 8 in 64 pixels, random crops of 72) and a causal text tower (192 wide, 4
blocks, 32 tokens). For real runs take `vit.preset("B/16")`, a larger batch and more steps; every number is a flag.
"""

from vlm_jax.config import Config
from vlm_jax.data import images, pipeline, text as tokenizers
from vlm_jax.evaluation import retrieval
from vlm_jax.models import text, vit
from vlm_jax.systems import clip
from vlm_jax.training import optimizer


def config() -> Config:
    return Config(
        steps=500,
        batch_size=128,
        eval_every="50%",
        save_every="50%",
        system=clip.Clip(
            image=vit.Config(
                image_size=64, patch_size=8, width=192, depth=6, mlp_dim=768, num_heads=3, projection_dim=192
            ),
            text=text.Config(
                vocab_size=49408, length=32, width=192, depth=4, mlp_dim=768, num_heads=3, attention="causal", pool="eos", eos_id=49407,
                projection_dim=192,
            ),
        ),
        data=pipeline.Pairs(
            train="",
            val="",
            tokenizer=tokenizers.Tokenizer("/work/shared/data/tokenizers/bpe_simple_vocab_16e6.txt.gz", length=32),
            image=images.Transform(size=64, resize_to=72, crop="random"),
        ),
        optimizer=optimizer.AdamW(learning_rate=1e-3, warmup=50, beta2=0.98, weight_decay=0.1),
        evaluators={"retrieval": retrieval.Retrieval(data="")},
    )
