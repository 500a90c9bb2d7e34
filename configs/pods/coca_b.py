"""CoCa-Base at 288 pixels with batches of 65,536, on 256 chips of v5e.

    python -m vlm_jax.plan configs/pods/coca_b.py --topology v5e:16x16
    python -m vlm_jax.train configs/pods/coca_b.py --workdir /mnt/runs/coca \\
        --data.train '/mnt/data/train-{00000..01023}.array_record' --data.val /mnt/data/val-00000.array_record

The paper (Yu et al. 2022): patches of 18 pixels, 256 queries of which a second pooler makes the embedding, 12 blocks of text and 12 over
text and image, 64 tokens of a vocabulary of 64,000, the caption's loss twice that of the pairs, 500,000 steps with Adafactor, weight decay
0.01, learning rate 8e-4 after 2 % of the steps. Half of each of its batches were names of JFT's classes in prompts, which are not public.
The learning rate falls along a cosine here and along a line there; the pass at 576 pixels that ends it is left out.
Planned (compiled, not run): 6.9 GB of 16 on each chip of v5e:16x16.
"""

from vlm_jax.config import Config
from vlm_jax.data import images, pipeline
from vlm_jax.data import text as tokenizers
from vlm_jax.evaluation import captioning, retrieval
from vlm_jax.models import attentional, captioner, vit
from vlm_jax.systems import coca
from vlm_jax.training import optimizer, sharding

VOCABULARY = 64_000
LENGTH = 64


def config() -> Config:
    return Config(
        steps=500_000,
        batch_size=65_536,
        microbatches=4,
        save_every=2000,
        eval_every=10_000,
        precision="bfloat16",
        system=coca.Coca(
            image=attentional.Config(
                tower=vit.preset("B/18", image_size=288, pool="none", remat="names"),
                width=768,
                num_heads=12,
                projection_dim=768,
            ),
            text=captioner.Config(
                vocab_size=VOCABULARY,
                length=LENGTH,
                width=768,
                depth=12,
                decoder_depth=12,
                mlp_dim=3072,
                num_heads=12,
                projection_dim=768,
                init="clip",
                remat="names",
            ),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        data=pipeline.Pairs(
            train="",
            val="",
            tokenizer=tokenizers.Tokenizer("vocabulary.model", length=LENGTH),
            image=images.Transform(size=288, crop="random_resized"),
        ),
        optimizer=optimizer.Adafactor(learning_rate=8e-4, warmup="2%", weight_decay=1e-2),
        mesh=sharding.Mesh(data=-1, fsdp=16),
        evaluators={"retrieval": retrieval.Retrieval(), "captions": captioning.Captioning()},
        workers=16,
    )
