"""A recipe outside the package: towers so small that a test trains them in seconds. Data is given on the command line."""

from vlm_jax.config import Config
from vlm_jax.data import images, pipeline
from vlm_jax.data import text as tokenizers
from vlm_jax.evaluation import retrieval, zero_shot
from vlm_jax.models import text, vit
from vlm_jax.systems import clip
from vlm_jax.training import optimizer


def config() -> Config:
    tower = {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2, "projection_dim": 16}
    return Config(
        steps=6,
        batch_size=16,
        log_every=1,
        save_every=3,
        eval_every=0,
        system=clip.Clip(
            image=vit.Config(image_size=32, patch_size=8, **tower),
            text=text.Config(vocab_size=256, length=24, attention="causal", pool="eos", eos_id=1, **tower),
            initial_scale=10.0,
        ),
        data=pipeline.Pairs(
            train="",
            val="",
            tokenizer=tokenizers.Tokenizer("", length=24),
            image=images.Transform(size=32, resize_to=36, crop="random", flip=0.5),
        ),
        optimizer=optimizer.AdamW(learning_rate=1e-3, warmup=2, ema=0.9),
        evaluators={"val": retrieval.Retrieval(), "held_out": zero_shot.ZeroShot()},
    )
