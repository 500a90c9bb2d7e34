"""How much faster texts are generated behind a cache of keys and values than by reading everything again for each token.

    python benchmarks/generation.py

Prints and keeps (docs/generation.json) for each way of choosing the seconds of 64 new tokens after prompts of 16, with a cache and
without one. Both are compiled, take turns, and what is told are medians of their times and of the ratios within a turn, so other
programs of the machine disturb it little. Two minutes on two cores.

Goal: 5 times faster.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlm_jax.models import generation, lm
from vlm_jax.ops import rows

DOCS = Path(__file__).resolve().parents[1] / "docs"
BATCH, PROMPT, NEW, TURNS = 8, 16, 64, 5
CONFIG = lm.llama(
    "7B", vocab_size=1024, length=PROMPT + NEW, width=128, depth=4, mlp_dim=384, num_heads=4, num_kv_heads=2, head="tied"
)
DECODINGS = {
    "greedy": generation.Decoding(max_new_tokens=NEW, min_new_tokens=NEW),
    "sample": generation.Decoding(strategy="sample", max_new_tokens=NEW, min_new_tokens=NEW, top_p=0.9),
    "beam 3": generation.Decoding(strategy="beam", max_new_tokens=NEW, min_new_tokens=NEW, beams=3),
}


class Whole(NamedTuple):
    """In place of a cache all tokens, which are read again for each new one."""

    tokens: Any
    lengths: Any

    def take(self, numbers: Any) -> "Whole":
        return Whole(*(rows.take(x, numbers) for x in self))


def start_again(model: lm.LM, prompts: Any, lengths: Any) -> tuple[Any, Whole]:
    known = Whole(jnp.pad(prompts, ((0, 0), (0, NEW))), lengths)
    return last_logits(model, known), known


def step_again(model: lm.LM, known: Whole, last: Any) -> tuple[Any, Whole]:
    tokens = jnp.where(jnp.arange(PROMPT + NEW) == known.lengths[:, None], last[:, None], known.tokens)
    known = Whole(tokens, known.lengths + 1)
    return last_logits(model, known), known


def last_logits(model: lm.LM, known: Whole) -> Any:
    hidden = model.hidden(known.tokens)
    return model.logits(jnp.take_along_axis(hidden, (known.lengths - 1)[:, None, None], 1)[:, 0])


def main() -> None:
    graphdef, weights = nnx.split(CONFIG.build(rngs=nnx.Rngs(0)))
    prompts = np.random.RandomState(0).randint(2, CONFIG.vocab_size, (BATCH, PROMPT)).astype(np.int32)
    lengths = np.random.RandomState(1).randint(1, PROMPT + 1, BATCH).astype(np.int32)
    table = []
    for name, decoding in DECODINGS.items():

        def cached(weights, decoding=decoding):
            model = nnx.merge(graphdef, weights)
            logits, cache = model.start(prompts, lengths, NEW - 1)
            return generation.generate(model.step, cache, logits, decoding, end_id=1, pad_id=0, key=jax.random.key(0))

        def again(weights, decoding=decoding):
            model = nnx.merge(graphdef, weights)
            logits, known = start_again(model, prompts, jnp.asarray(lengths))

            def step(known, last):
                return step_again(model, known, last)

            return generation.generate(step, known, logits, decoding, end_id=1, pad_id=0, key=jax.random.key(0))

        both = [jax.jit(fn).lower(weights).compile() for fn in (cached, again)]
        same = bool((both[0](weights).tokens == both[1](weights).tokens).all())
        times = [[seconds(fn, weights) for fn in both] for _ in range(TURNS)]
        fast, slow = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(turn[1] / turn[0] for turn in times)
        table.append({"strategy": name, "cached_s": fast, "again_s": slow, "ratio": ratio, "same_tokens": same})
        print(f"{name}: {fast:.2f} s with a cache, {slow:.2f} s without, {ratio:.1f} times faster (goal 5); same tokens: {same}")
    setting = {"batch": BATCH, "prompt": PROMPT, "new": NEW, "width": CONFIG.width, "depth": CONFIG.depth, "turns": TURNS}
    (DOCS / "generation.json").write_text(json.dumps({"setting": setting, "rows": table}, indent=1) + "\n")


def seconds(fn: Any, weights: Any) -> float:
    began = time.perf_counter()
    jax.block_until_ready(fn(weights))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
