"""Flamingo on interleaved pages of the shapes world, between a frozen language model and a frozen image tower of our own.

    python -m vlm_jax.train configs/vit_shapes.py
    python -m vlm_jax.train configs/lm_shapes.py
    python -m vlm_jax.train configs/lm_shapes_long.py
    python -m vlm_jax.train configs/flamingo_shapes.py

After 47 minutes of two cores two thirds of its captions are right in shape and colour, and it learns words for shapes and colours from two
examples and more (docs/flamingo.md has the curves).

Half of the pages give invented words to values of an attribute, which can only be told from the scenes before; the others have captions,
or questions with answers. Pairs of the shapes world come along with a weight of 0.2, as in the paper (Alayrac et al. 2022). A text always
follows its image here, so that no token looks at the next one (`next_image`), as half of the paper's pages do.
"""

import dataclasses
from pathlib import Path
from typing import Any

from vlm_jax.config import Config, load_recipe
from vlm_jax.data import images, interleaved_shapes, pages, pipeline
from vlm_jax.evaluation import fast_binding, few_shot_captioning, few_shot_classification, vqa
from vlm_jax.layers import gated_cross_attention
from vlm_jax.models import resampler
from vlm_jax.systems import flamingo
from vlm_jax.training import optimizer

WIDTH = 128
ROW = 128
"""Tokens of a row of pages, which have up to eight images; prompts may be as long as the language model allows, with 32."""


def config() -> Config:
    folder = Path(__file__).parent
    clip: Any = load_recipe(str(folder / "vit_shapes.py"))[0].system
    language_model: Any = load_recipe(str(folder / "lm_shapes_long.py"))[0]
    lm, tokenizer = language_model.system.lm, dataclasses.replace(language_model.data.tokenizer, length=ROW)
    transform = images.Transform(size=64)
    asked = {"train": "shapes:train", "support": 256, "limit": 128, "shots": (0, 1, 2, 4, 8, 16, 32)}
    attributes = ("scene.objects.0.colour", "scene.objects.0.shape", "scene.objects.0.texture", "scene.background")
    bound = {"data": "shapes:trained_pairs", "labels": attributes, "shots": asked["shots"]}
    captions = few_shot_captioning.FewShotCaptioning(data="shapes:val", grammar="shapes", **asked)
    questions = vqa.Vqa(data="shapes:val", **asked)
    classes = few_shot_classification.FewShotClassification(
        data="shapes:trained_pairs", classes="shapes:classes.json", **asked | {"train": "shapes:trained_pairs", "shots": (0, 4, 16, 32)}
    )
    return Config(
        steps=1600,
        batch_size=16,
        eval_every=0,
        init_from=("image/ <- runs/vit_shapes", "lm/ <- runs/lm_shapes_long"),
        system=flamingo.Flamingo(
            image=clip.image,
            lm=lm,
            resampler=resampler.Config(width=WIDTH, latents=8, depth=2, num_heads=4, head_dim=32, mlp_dim=4 * WIDTH, loop="unroll"),
            cross=gated_cross_attention.Config(num_heads=4, head_dim=32, mlp_dim=4 * lm.width),
            mean=clip.mean,
            std=clip.std,
            begin_id=1,
            end_id=1,
        ),
        data={
            "pages": pages.Pages(
                train="shapes:pages", val="shapes:pages_val", tokenizer=tokenizer, image=transform, images=12, next_image=0.0
            ),
            "pairs": pipeline.Pairs(
                train="shapes:train", val="shapes:val", tokenizer=dataclasses.replace(tokenizer, length=32), image=transform
            ),
        },
        optimizer=optimizer.AdamW(
            learning_rate=1e-3, schedule="constant", weight_decay=0.1, decay=r"^(cross|added).*(kernel|embedding)$"
        ),
        evaluators={
            "captions": captions,
            "captions_similar": dataclasses.replace(captions, choice="similar"),
            "questions": questions,
            "questions_similar": dataclasses.replace(questions, choice="similar"),
            "trained_pairs": classes,
            "trained_pairs_similar": dataclasses.replace(classes, choice="similar"),
            "words": fast_binding.FastBinding(words=interleaved_shapes.WORDS, **bound),
            "new_words": fast_binding.FastBinding(words=interleaved_shapes.NEW_WORDS, **bound),
        },
    )
