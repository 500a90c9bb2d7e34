"""CLIP on your own image-text shards, at the scale of a laptop.

    python -m vlm_jax.train configs/clip_webdataset.py \\
        --data.train 'shards/train-{00000..00003}.tar' --data.val shards/val-00000.tar --workdir runs/mine

Two small towers: a ViT (192 wide, 6 blocks, patches of 8 in 64 pixels with a convolutional stem) on random crops of 72, and a causal
text tower (192 wide, 4 blocks, 32 tokens of a vocabulary trained on the captions). For a real run take `vit.preset("B/16")`, a larger
batch and more steps.

CLIP's own vocabulary instead: --data.tokenizer.path bpe_simple_vocab_16e6.txt.gz --system.text.vocab-size 49408
--system.text.eos-id 49407
"""

from vlm_jax.config import Config
from vlm_jax.data import images, pipeline
from vlm_jax.data import text as tokenizers
from vlm_jax.evaluation import retrieval
from vlm_jax.models import text, vit
from vlm_jax.systems import clip
from vlm_jax.training import optimizer

WIDTH = 192
HEADS = 3
LENGTH = 32


def config() -> Config:
    return Config(
        steps=500,
        batch_size=128,
        system=clip.Clip(
            image=vit.Config(
                image_size=64,
                patch_size=8,
                stem="conv",
                stem_depth=1,
                width=WIDTH,
                depth=6,
                mlp_dim=4 * WIDTH,
                num_heads=HEADS,
                loop="unroll",
                projection_dim=WIDTH,
            ),
            text=text.Config(
                vocab_size=4096,
                length=LENGTH,
                width=WIDTH,
                depth=4,
                mlp_dim=4 * WIDTH,
                num_heads=HEADS,
                loop="unroll",
                attention="causal",
                pool="eos",
                eos_id=1,
                projection_dim=WIDTH,
            ),
        ),
        data=pipeline.Pairs(
            train="",
            val="",
            tokenizer=tokenizers.Tokenizer("captions:4096", length=LENGTH, case="lower"),
            image=images.Transform(size=64, resize_to=72, crop="random"),
        ),
        optimizer=optimizer.AdamW(learning_rate=1e-3, warmup="10%", beta2=0.98, weight_decay=0.1),
        evaluators={"retrieval": retrieval.Retrieval()},
    )
