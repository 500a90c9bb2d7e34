"""Flamingo on interleaved pages of the shapes world, between a frozen language model and a frozen image tower of our own.

    python -m vlm_jax.train configs/clip_webdataset.py --data.train shapes:train --data.val shapes:val --workdir runs/shapes_clip
    python -m vlm_jax.train configs/lm_text.py --data.train shapes:pages --data.val shapes:pages_val \\
        --data.tokenizer.path shapes:pages.model --system.lm.vocab-size 256 --workdir runs/shapes_lm
    python -m vlm_jax.train configs/flamingo_shapes.py --init-from 'image/ <- runs/shapes_clip' 'lm/ <- runs/shapes_lm'

Half of the pages give invented words to values of an attribute, which can only be told from the scenes before; the others have captions,
or questions with answers. Pairs of the shapes world come along with a weight of 0.2, as in the paper (Alayrac et al. 2022).
"""

import dataclasses
from pathlib import Path
from typing import Any

from vlm_jax.config import Config, load_recipe
from vlm_jax.data import images, pages, pipeline
from vlm_jax.data import text as tokenizers
from vlm_jax.evaluation import few_shot_captioning, few_shot_classification, vqa
from vlm_jax.layers import gated_cross_attention
from vlm_jax.models import resampler
from vlm_jax.systems import flamingo
from vlm_jax.training import optimizer

WIDTH = 192
LENGTH = 128
VOCABULARY = 256


def config() -> Config:
    folder = Path(__file__).parent
    clip: Any = load_recipe(str(folder / "clip_webdataset.py"))[0].system
    text: Any = load_recipe(str(folder / "lm_text.py"))[0].system
    language_model = dataclasses.replace(text.lm, vocab_size=VOCABULARY)
    tokenizer = tokenizers.Tokenizer("shapes:pages.model", length=LENGTH, begin="</s>")
    transform = images.Transform(size=64)
    asked = {"train": "shapes:train", "support": 256, "limit": 64, "shots": (0, 1, 2, 4, 8)}
    return Config(
        steps=2000,
        batch_size=16,
        system=flamingo.Flamingo(
            image=clip.image,
            lm=language_model,
            resampler=resampler.Config(width=WIDTH, latents=8, depth=2, num_heads=4, head_dim=48, mlp_dim=4 * WIDTH, loop="unroll"),
            cross=gated_cross_attention.Config(num_heads=4, head_dim=64, mlp_dim=4 * language_model.width),
            begin_id=1,
            end_id=1,
        ),
        data={
            "pages": pages.Pages(
                train="shapes:pages", val="shapes:pages_val", tokenizer=tokenizer, image=transform, images=12, next_image=0.5
            ),
            "pairs": pipeline.Pairs(
                train="shapes:train",
                val="shapes:val",
                tokenizer=tokenizers.Tokenizer("shapes:pages.model", length=32, begin="</s>"),
                image=transform,
            ),
        },
        optimizer=optimizer.AdamW(
            learning_rate=1e-3, schedule="constant", weight_decay=0.1, decay=r"^(cross|added).*(kernel|embedding)$"
        ),
        evaluators={
            "captions": few_shot_captioning.FewShotCaptioning(data="shapes:val", grammar="shapes", **asked),
            "questions": vqa.Vqa(data="shapes:val", **asked),
            "trained_pairs": few_shot_classification.FewShotClassification(
                data="shapes:trained_pairs", classes="shapes:classes.json", **asked | {"train": "shapes:trained_pairs", "shots": (0, 4)}
            ),
        },
    )
