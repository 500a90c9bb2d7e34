"""The results of evaluations as a file that others' scripts can read: records in the shape of CLIP_benchmark's."""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal


def record(
    dataset: str,
    task: str,
    metrics: Mapping[str, float],
    *,
    model: str,
    pretrained: str,
    step: int,
    weights: Literal["raw", "ema"],
    language: str = "en",
    chance: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """One evaluation.

    Args:
      dataset: its name.
      task: `zeroshot_classification` or `zeroshot_retrieval` (the `task` of an evaluator).
      metrics: as in `Result.metrics`; what is not a finite number is written as null.
      model: name of the model, such as that of its recipe.
      pretrained: where the weights are: the run or the checkpoint.
      step: updates that the weights have seen.
      weights: the trained weights or their moving average.
      language: of the captions and class names.
      chance: as in `Result.chance`.
    """
    return {
        "dataset": dataset,
        "model": model,
        "pretrained": pretrained,
        "task": task,
        "metrics": _finite(metrics),
        "language": language,
        "step": step,
        "weights": weights,
        "chance": _finite(chance or {}),
    }


def write_evaluation_json(path: str | os.PathLike, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes the list of records; a reader sees the old file or the new one, never a part."""
    write_text(path, json.dumps(list(records), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file at once: under another name first, then renamed. Characters that UTF-8 lacks become `?`."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(text.encode("utf-8", "replace"))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
