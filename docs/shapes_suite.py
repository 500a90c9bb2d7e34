"""Evaluations of the demo beside those of its recipe: nearest neighbours, and what is lost on pairs that training never showed.

python data/make_shapes.py --out runs/more_shapes --seed 1 --one-object 2400 --two-objects 0
python -m vlm_jax.evaluate --checkpoint runs/demo --suite docs/shapes_suite.py --out runs/demo_more
"""

from collections.abc import Mapping
from typing import Any

from vlm_jax.evaluation import nearest_neighbours, robustness, zero_shot

TRAIN = "runs/more_shapes/train-*.array_record"
"""Pictures of one object, of the pairs of a shape and a colour that the demo was trained on; but not its pictures."""
TEST = "shapes:trained_pairs"
CLASSES = "shapes:classes.json"


def evaluators() -> Mapping[str, Any]:
    """By name."""
    return {
        "zero_shot": zero_shot.ZeroShot(data=TEST, classes=CLASSES),
        "neighbours": nearest_neighbours.NearestNeighbours(train=TRAIN, data=TEST, classes=CLASSES),
        "novel_pairs": robustness.Robustness(data=TEST, shifted={"held_out": "shapes:held_out"}, classes=CLASSES),
    }
