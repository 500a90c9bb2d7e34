"""The results of evaluations as a file that others' scripts can read: records in the shape of CLIP_benchmark's."""

import csv
import io
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

COLUMNS = ("dataset", "model", "pretrained", "task", "metric", "value", "low", "high", "chance", "blind", "step", "weights", "language")
"""Of a CSV with one line for each metric."""


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
    intervals: Mapping[str, tuple[float, float]] | None = None,
    blind: Mapping[str, float] | None = None,
    note: str = "",
    made_of: str = "",
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
      intervals: as in `Result.intervals`; written as [low, high].
      blind: as in `Result.blind`.
      note: as in `Result.note`: what the numbers were taken from, such as features before the projection.
      made_of: a hash of all that the numbers follow from; equal ones need not be computed again.
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
        "intervals": {name: list(_finite(dict(zip("lh", span, strict=True))).values()) for name, span in (intervals or {}).items()},
        "blind": _finite(blind or {}),
        "note": note,
        "made_of": made_of,
    }


def write_evaluation_json(path: str | os.PathLike, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes the list of records; a reader sees the old file or the new one, never a part."""
    write_text(path, json.dumps(list(records), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_evaluation_json(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a file; none where there is no such file, or another one."""
    try:
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        return [record for record in found if {"dataset", "metrics", "task"} <= record.keys()]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def write_csv(path: str | os.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one line for each metric of each record; a reader sees the old file or the new one."""
    text = io.StringIO()
    lines = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    lines.writeheader()
    for record in records:
        for metric, value in record["metrics"].items():
            low, high = record.get("intervals", {}).get(metric, ("", ""))
            beside = {kind: record.get(kind, {}).get(metric, "") for kind in ("chance", "blind")}
            row: dict[Any, Any] = {**record, **beside, "metric": metric, "value": value, "low": low, "high": high}
            lines.writerow(row)
    write_text(path, text.getvalue())


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
