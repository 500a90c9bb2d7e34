"""How fast the shapes world is rendered and written, on one core.

    python benchmarks/shapes.py

Goals: 3,000 one-object scenes a second rendered (drawn from the seed, and painted), 1,000 written (with captions,
questions, masks, PNG and ArrayRecord).
"""

import tempfile
import time
from collections.abc import Callable

from vlm_jax.data import records, shapes

SCENES = 4_000


def main() -> None:
    config = shapes.World(two_objects=0)
    print(f"rendered: {_rate(_render):,.0f} one-object scenes a second (goal 3,000)")
    with tempfile.TemporaryDirectory() as folder:
        examples = (shapes.example(config, "train", index) for index in range(SCENES))
        rate = _rate(lambda: records.write(f"{folder}/train", examples, 1))
    print(f"written:  {rate:,.0f} one-object scenes a second (goal 1,000)")


def _render() -> None:
    for index in range(SCENES):
        rng = shapes.generator(0, "train", index)
        shapes.render(shapes.scene(rng, shapes.draw_labels(rng, 1, shapes.TRAINED)))


def _rate(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return SCENES / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
