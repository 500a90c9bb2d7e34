"""A language model of the shapes world's pages, told in words: what a Flamingo of that world speaks with.

    python -m vlm_jax.train configs/lm_shapes.py

From told pages it learns captions, questions with answers, and to find out on a page what its invented words mean; this comes late, after
about 2,000 steps, and at once.
"""

import dataclasses
from pathlib import Path
from typing import Any

from vlm_jax.config import Config, load_recipe
from vlm_jax.data import text as tokenizers

VOCABULARY = 256


def config() -> Config:
    recipe = load_recipe(str(Path(__file__).with_name("lm_text.py")))[0]
    system: Any = recipe.system
    data: Any = recipe.data
    optimizer: Any = recipe.optimizer
    return dataclasses.replace(
        recipe,
        workdir="",
        steps=3000,
        system=dataclasses.replace(system, lm=dataclasses.replace(system.lm, vocab_size=VOCABULARY, width=128, mlp_dim=352)),
        optimizer=dataclasses.replace(optimizer, learning_rate=3e-3),
        data=dataclasses.replace(
            data,
            train="shapes:told_pages",
            val="shapes:told_pages_val",
            tokenizer=tokenizers.Tokenizer("shapes:pages.model", length=system.lm.length, begin="</s>"),
        ),
    )
