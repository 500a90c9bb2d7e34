"""A small language model on your own texts: books, web pages, or the captions of image-text shards.

    python -m vlm_jax.train configs/lm_text.py --data.train 'books/*.txt' --data.val held_out.txt --workdir runs/lm
    python -m vlm_jax.train configs/lm_text.py --data.read captions \\
        --data.train 'shards/train-{00000..00003}.tar' --data.val shards/val-00000.tar --workdir runs/lm_captions

A LLaMA-like decoder (rotary positions, RMSNorm, gated MLPs; 256 wide, 4 blocks) on rows of 128 tokens of a vocabulary trained on the texts,
without padding between them. For a real run take `lm.gpt2` or `lm.llama`, longer rows and more steps.
"""

from vlm_jax.config import Config
from vlm_jax.data import text as tokenizers
from vlm_jax.data import texts
from vlm_jax.evaluation import perplexity
from vlm_jax.models import lm
from vlm_jax.systems import language_model
from vlm_jax.training import optimizer

WIDTH = 256
LENGTH = 128
VOCABULARY = 4096


def config() -> Config:
    return Config(
        steps=1000,
        batch_size=32,
        system=language_model.LanguageModel(
            lm=lm.Config(
                vocab_size=VOCABULARY,
                length=LENGTH,
                width=WIDTH,
                depth=4,
                mlp_dim=704,
                num_heads=4,
                norm="rms_norm",
                position="rotary",
                mlp="gated",
                activation="silu",
                bias="none",
                loop="unroll",
            )
        ),
        data=texts.Texts(
            train="",
            val="",
            tokenizer=tokenizers.Tokenizer(f"captions:{VOCABULARY}", length=LENGTH, begin="</s>"),
        ),
        optimizer=optimizer.AdamW(learning_rate=2e-3, warmup="5%", beta2=0.95, weight_decay=0.1),
        evaluators={"perplexity": perplexity.Perplexity()},
    )
