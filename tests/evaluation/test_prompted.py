"""Prompts that were cut are told: in the log, and in what an evaluation says of itself."""

import logging

import numpy as np

from vlm_jax.evaluation import few_shot_prompts as prompts
from vlm_jax.evaluation import prompted
from vlm_jax.models import generation


def made(shots, asked=9):
    chunks = tuple(prompts.Chunk("Output: red", i if shots else None) for i in range(shots or prompts.TEXT_ONLY))
    return prompts.Prompt(chunks, prompts.Chunk("Output:", asked))


def test_examples_without_room_are_told(caplog):
    form = generation.PromptForm(image_id=256, chunk_end_id=257, length=104, visual=(2, 4))
    model = prompted.Prompted(None, form, np.zeros((10, 2, 4)))
    rows = [prompts.Tokens(np.zeros(4, np.int32), [0], left_out) for left_out in (0, 3, 1)]
    with caplog.at_level(logging.WARNING):
        model._note([made(0)], rows[:1], 104)
        assert not caplog.records and model.told == ""
        model._note([made(8, asked) for asked in range(3)], rows, 104)
        model._note([made(2), made(2)], rows[1:], 104)  # before answers of two lengths
    assert "2 of 3 prompts have no room for all their examples in 104 tokens: on average 2.0 of the first ones" in caplog.text
    assert model.told == "Left out for want of room, on average: 3.0 at 2 shots, 1.3 at 8 shots (prompts of 104 tokens)."
    assert model.got(made(8, 0)) == made(8, 0)
    assert model.got(made(8, 1)).examples == made(8).examples[3:] and model.got(made(8, 1)).query == made(8, 1).query
