"""CLIP B/16 at 224 pixels with batches of 32,768, on 256 chips of v5e or 64 of v4.

    python -m vlm_jax.plan configs/pods/clip_b16_32k.py --topology v5e:16x16
    python -m vlm_jax.train configs/pods/clip_b16_32k.py --workdir /mnt/runs/clip \\
        --data.train '/mnt/data/train-{00000..01023}.array_record' --data.val /mnt/data/val-00000.array_record

The paper (Radford et al. 2021): 32 epochs of 400 million pairs in batches of 32,768, learning rate 5e-4 after 2,000 steps of warm-up,
beta2 0.98, epsilon 1e-6, weight decay 0.2, random square crops, a text tower of width 512 on 77 tokens of a vocabulary of 49,408.
ImageNet without training on it: 68.6 % in the paper, 68.3 % with the released weights. Its activation, x sigmoid(1.702 x), is GELU
here, as all have it that came after.
Planned (compiled, not run): 5.0 GB of 16 on each chip of v5e:16x16, 19.2 GB of 32 on each of v4:4x4x4.
"""

from vlm_jax.config import Config
from vlm_jax.data import images, pipeline
from vlm_jax.data import text as tokenizers
from vlm_jax.evaluation import retrieval
from vlm_jax.models import text, vit
from vlm_jax.systems import clip
from vlm_jax.training import optimizer, sharding

LENGTH = 77
END = 49_407


def config() -> Config:
    return Config(
        steps="12.8e9 examples",
        batch_size=32_768,
        save_every=2000,
        eval_every=10_000,
        precision="bfloat16",
        system=clip.Clip(
            image=vit.preset(
                "B/16",
                pool="cls",
                class_token="positioned",
                pre_norm="layer_norm",
                patch_bias="none",
                norm_epsilon=1e-5,
                projection_dim=512,
                init="clip",
                remat="names",
            ),
            text=text.Config(
                vocab_size=END + 1,
                length=LENGTH,
                width=512,
                depth=12,
                mlp_dim=2048,
                num_heads=8,
                attention="causal",
                pool="eos",
                eos_id=END,
                norm_epsilon=1e-5,
                projection_dim=512,
                init="clip",
                remat="names",
            ),
        ),
        data=pipeline.Pairs(
            train="",
            val="",
            tokenizer=tokenizers.Tokenizer("bpe_simple_vocab_16e6.txt.gz", length=LENGTH),
            image=images.Transform(size=224, crop="random"),
        ),
        optimizer=optimizer.AdamW(learning_rate=5e-4, warmup=2000, beta2=0.98, epsilon=1e-6, weight_decay=0.2),
        mesh=sharding.Mesh(data=-1, fsdp=16),
        evaluators={"retrieval": retrieval.Retrieval()},
        workers=16,
    )
