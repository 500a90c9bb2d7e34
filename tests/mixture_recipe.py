"""Two streams of two joined sources each, out of the world that $WORLD names; nothing is evaluated."""

import dataclasses
import os

import tiny_recipe

from vlm_jax.config import Config


def config() -> Config:
    tiny, world = tiny_recipe.config(), os.environ["WORLD"]
    pairs = dataclasses.replace(
        tiny.data,
        train=f"{world}/train-*.array_record::{world}/trained_pairs-*.array_record",
        val=f"{world}/val-*.array_record",
        tokenizer=dataclasses.replace(tiny.data.tokenizer, path=f"{world}/tokenizer.model"),
    )
    more = dataclasses.replace(
        pairs, train=f"{world}/held_out-*.array_record::{world}/relations-*.array_record", batch_size=12, caption="first"
    )
    return dataclasses.replace(tiny, data={"pairs": pairs, "more": more}, evaluators={})
