"""The tiny recipe, whose data does something to one process at one record: $FAIL says what, $FAIL_IN which process."""

import dataclasses
import os
import signal
import threading

import tiny_recipe

from vlm_jax.config import Config
from vlm_jax.data import pipeline

STEP = 8


def _fail(index: int, row):
    """Called for every example, in order of position."""
    if index == STEP * 16 + 15 and os.environ.get("JAX_PROCESS_ID") == os.environ.get("FAIL_IN", "1"):
        match os.environ.get("FAIL"):
            case "crash":
                raise RuntimeError("a loader with a fault")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "stuck":
                threading.Event().wait()
    return row


class Failing(pipeline.Pairs):
    """Pairs, until one of them is reached."""

    def examples(self, seed: int):
        examples = super().examples(seed)
        return dataclasses.replace(examples, rows=examples.rows.map_with_index(_fail))


def config() -> Config:
    tiny = tiny_recipe.config()
    fields = {field.name: getattr(tiny.data, field.name) for field in dataclasses.fields(tiny.data)}
    return dataclasses.replace(tiny, data=Failing(**fields))
