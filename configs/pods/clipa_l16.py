"""CLIPA's cheap stage: CLIP L/16 on images of 112 pixels, 49 patches, and 16 tokens of text, on 256 chips of v5e.

    python -m vlm_jax.plan configs/pods/clipa_l16.py --topology v5e:16x16
    python -m vlm_jax.train configs/pods/clipa_l16.py --workdir /mnt/runs/clipa \\
        --data.train '/mnt/data/train-{00000..01023}.array_record' --data.val /mnt/data/val-00000.array_record
    python -m vlm_jax.train configs/pods/clipa_l16_finish.py --init-from /mnt/runs/clipa --workdir /mnt/runs/clipa_224 \\
        --data.train '/mnt/data/train-{00000..01023}.array_record' --data.val /mnt/data/val-00000.array_record

Li et al. (2023, "An Inverse Scaling Law for CLIP Training"): the larger the towers, the fewer tokens they need for most of the training.
Their code takes batches of 32,768 to 65,536, a learning rate of 8e-6 for every 256 pairs of a batch, beta2 0.95, weight decay 0.2, fixed
sines and cosines as positions, crops of at least 40 % of an image, and embeddings of 768 for L/16; 2.56e9 pairs are 6.4 times LAION-400M.
The text tower keeps 32 positions, of which this stage trains the first 16.
Planned (compiled, not run): 3.1 GB of 16 on each chip of v5e:16x16.
"""

from vlm_jax.config import Config
from vlm_jax.data import images, pipeline
from vlm_jax.data import text as tokenizers
from vlm_jax.evaluation import retrieval
from vlm_jax.models import text, vit
from vlm_jax.systems import clip
from vlm_jax.training import optimizer, sharding

VOCABULARY = 32_000
BATCH = 32_768


def config() -> Config:
    return Config(
        steps="2.56e9 examples",
        batch_size=BATCH,
        save_every=2000,
        eval_every=10_000,
        precision="bfloat16",
        system=clip.Clip(
            image=vit.preset("L/16", image_size=112, pool="gap", positions="sincos2d", projection_dim=768, remat="names"),
            text=text.preset("L", vocab_size=VOCABULARY, length=32, projection_dim=768, remat="names"),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        data=pipeline.Pairs(
            train="",
            val="",
            tokenizer=tokenizers.Tokenizer("c4_en.model", length=16, pad="eos", case="lower"),
            image=images.Transform(size=112, crop="random_resized", min_scale=0.4, interpolation="bilinear"),
        ),
        optimizer=optimizer.AdamW(
            learning_rate=8e-6 * BATCH / 256, warmup="5.24e7 examples", beta2=0.95, weight_decay=0.2, moment_dtype="bfloat16"
        ),
        mesh=sharding.Mesh(data=-1, fsdp=16),
        evaluators={"retrieval": retrieval.Retrieval()},
        workers=16,
    )
