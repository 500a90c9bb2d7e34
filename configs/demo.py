"""CLIP on the embedded shapes world: under four minutes on two CPU cores.

    python -m vlm_jax.train configs/demo.py

Makes 20,000 small pictures with captions once, trains a convolutional image tower and a text tower on them, and asks for what
training never showed: 16 of the 64 pairs of a shape and a colour. A model that guesses names 1.6 % of them, one that reads only
the colour 12.5 %.
"""

from vlm_jax.config import Config
from vlm_jax.data import images, pipeline
from vlm_jax.data import text as tokenizers
from vlm_jax.evaluation import retrieval, zero_shot
from vlm_jax.models import convnet, text
from vlm_jax.systems import clip
from vlm_jax.training import optimizer

BLIND = "A model that reads only the colour reaches 12.5 %."
OBJECTS = "A model that knows which objects there are, but not how they stand, reaches R@1 of 25 %."


def config() -> Config:
    return Config(
        steps=900,
        batch_size=64,
        eval_every="25%",
        save_every="50%",
        system=clip.Clip(
            initial_scale=10.0,
            image=convnet.Config(image_size=64, channels=(64, 128), depth=(2, 2), projection_dim=128),
            text=text.Config(
                vocab_size=256, length=24, width=128, depth=2, mlp_dim=512, num_heads=4, pool="mean", padding_mask="pad", pad_id=0,
                loop="unroll",
                projection_dim=128,
            ),
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
        ),
        data=pipeline.Pairs(
            train="shapes:train",
            val="shapes:val",
            tokenizer=tokenizers.Tokenizer("shapes:tokenizer.model", length=24),
            image=images.Transform(size=64),
        ),
        optimizer=optimizer.AdamW(learning_rate=2e-3, warmup="5%", beta2=0.95, weight_decay=1e-4),
        evaluators={
            "held_out": zero_shot.ZeroShot(data="shapes:held_out", classes="shapes:classes.json", note=BLIND),
            "trained_pairs": zero_shot.ZeroShot(data="shapes:trained_pairs", classes="shapes:classes.json", note=BLIND),
            "relations": retrieval.Retrieval(data="shapes:relations", note=OBJECTS),
        },
    )
