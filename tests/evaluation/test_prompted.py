"""Prompts that were cut are told."""

import logging

import numpy as np

from vlm_jax.evaluation import few_shot_prompts as prompts
from vlm_jax.evaluation import prompted


def test_examples_without_room_are_told(caplog):
    rows = [prompts.Tokens(np.zeros(4, np.int32), [0], left_out) for left_out in (0, 3, 1)]
    with caplog.at_level(logging.WARNING):
        prompted._tell(rows[:1], 104)
        assert not caplog.records
        prompted._tell(rows, 104)
    assert "2 of 3 prompts have no room for all their examples in 104 tokens: on average 2.0 of the first ones" in caplog.text
