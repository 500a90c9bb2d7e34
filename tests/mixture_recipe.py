"""A mixture of three sources, and a stream of two joined ones, out of the world that $WORLD names; nothing is evaluated."""

import dataclasses
import os

import tiny_recipe

from vlm_jax.config import Config
from vlm_jax.data import mixtures


def config() -> Config:
    tiny, world = tiny_recipe.config(), os.environ["WORLD"]
    pairs = dataclasses.replace(
        tiny.data,
        train=f"{world}/train-*.array_record",
        val=f"{world}/val-*.array_record",
        tokenizer=dataclasses.replace(tiny.data.tokenizer, path=f"{world}/tokenizer.model"),
    )
    mixed = mixtures.Mixture(
        {
            "scenes": pairs,
            "single": dataclasses.replace(pairs, train=f"{world}/trained_pairs-*.array_record", caption="key"),
            "relations": dataclasses.replace(pairs, train=f"{world}/relations-*.array_record", image=pairs.image.evaluation()),
        },
        {"scenes": 6, "single": 3, "relations": 1},
    )
    more = dataclasses.replace(
        pairs, train=f"{world}/held_out-*.array_record::{world}/relations-*.array_record", batch_size=12, caption="first"
    )
    return dataclasses.replace(tiny, data={"pairs": mixed, "more": more}, evaluators={})
