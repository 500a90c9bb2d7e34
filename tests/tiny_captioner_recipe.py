"""A CoCa outside the package, so small that a test trains it in seconds. Data is given on the command line."""

from vlm_jax.config import Config
from vlm_jax.data import images, pipeline
from vlm_jax.data import text as tokenizers
from vlm_jax.evaluation import captioning
from vlm_jax.models import attentional, captioner, convnet
from vlm_jax.systems import coca
from vlm_jax.training import optimizer


def config() -> Config:
    return Config(
        steps=4,
        batch_size=8,
        log_every=1,
        eval_every=0,
        save_every=0,
        system=coca.Coca(
            image=attentional.Config(
                tower=convnet.Config(image_size=32, channels=(8,), depth=(1,)), width=16, num_heads=2, queries=4, projection_dim=8
            ),
            text=captioner.Config(
                vocab_size=256, length=25, width=16, depth=1, decoder_depth=1, mlp_dim=32, num_heads=2, loop="unroll", projection_dim=8
            ),
            initial_scale=10.0,
        ),
        data=pipeline.Pairs(
            train="", val="", tokenizer=tokenizers.Tokenizer("", length=25, begin="</s>"), image=images.Transform(size=32)
        ),
        optimizer=optimizer.AdamW(learning_rate=1e-3, warmup=1),
        evaluators={"captions": captioning.Captioning(grammar="shapes", limit=12)},
    )
