"""The evaluators of a run: one model, compiled once, evaluated again and again, and what is written of it."""

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import vlm_jax
from vlm_jax.data import places
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, embeddings, records, report
from vlm_jax.evaluation import classes as classes_lib
from vlm_jax.training import goodput
from vlm_jax.training import state as states

DATA = ("data", "train", "validation", "shifted")
"""Fields of evaluators that name data."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """Runs evaluators and keeps `evaluation.json` and `report.html` of a workdir."""

    evaluators: Mapping[str, Any]
    """By name; the name becomes the data set's in the results."""
    compiled: base.Compiled
    transform: Any
    """The evaluation form of the training transform."""
    tokenizer: Any
    batch_size: int
    dtype: Any
    """What the model computes in."""
    weights: str
    """`raw`, `ema` or `auto`."""
    model: str
    """Name for the results."""
    config: Mapping[str, Any]
    """The resolved configuration as JSON, for the report."""

    def run(
        self,
        step: int,
        state: states.State,
        workdir: Path,
        *,
        rows: Sequence[Mapping[str, Any]] = (),
        attempts: Sequence[goodput.Attempt] = (),
        names: Sequence[str] | None = None,
        pretrained: str = "",
        pieces: embeddings.Pieces | None = None,
    ) -> dict[str, float]:
        """Evaluates and writes; returns all metrics as `<evaluator>/<metric>`.

        Every process calls it; the first one writes.

        Args:
          state: at least `params`, `frozen`, `buffers` and `average`.
          rows: lines of metrics.jsonl, for the curves of the report.
          attempts: starts of the run, for where its time went.
          names: which evaluators; None for all.
          pretrained: for the records; by default the workdir.
          pieces: where embeddings are kept while this runs; None: nowhere.
        """
        chosen = {name: self.evaluators[name] for name in (self.evaluators if names is None else names)}
        subject = self.subject(state, pieces)
        results = {name: evaluator(subject) for name, evaluator in chosen.items()}
        metrics = {f"{name}/{key}": value for name, result in results.items() for key, value in result.metrics.items()}
        if jax.process_index() == 0:
            used = "ema" if self.weights != "raw" and state["average"] else "raw"
            made = [
                records.record(
                    name,
                    chosen[name].task,
                    result.metrics,
                    model=self.model,
                    pretrained=pretrained or str(workdir),
                    step=step,
                    weights=used,
                    chance=result.chance,
                    intervals=result.intervals,
                    blind=result.blind,
                    note=result.note,
                    made_of=made_of(self.config, chosen[name], step, used),
                )
                for name, result in results.items()
            ]
            records.write_evaluation_json(workdir / "evaluation.json", made)
            report.write(
                workdir / "report.html",
                title=self.model,
                config=self.config,
                metrics_history=[*rows, {"step": step, **metrics}],
                results=results,
                environment=environment(self.compiled.mesh) | {"weights": used, "step": step},
                goodput=attempts,
            )
        return metrics

    def subject(self, state: states.State, pieces: embeddings.Pieces | None = None) -> base.Subject:
        """The model with these weights, as evaluators take it; arguments as of `run`."""
        variables = states.cast(states.variables(state, self.weights), self.dtype)
        return base.Subject(self.compiled, variables, self.transform, self.tokenizer, self.batch_size, pieces)


def check(evaluators: Mapping[str, Any]) -> None:
    """Opens the data and the class files that evaluators name, before a model is loaded for them.

    Raises:
      InputError: one is missing or malformed; names the evaluator.
    """
    for name, evaluator in evaluators.items():
        try:
            opened = {field: evaluator.open(data, field) for field, data in data_of(evaluator)}
            if getattr(evaluator, "classes", "") and "data" in opened:
                classes_lib.read(evaluator.classes, opened["data"])
        except InputError as error:
            raise InputError(f"evaluators.{name}.{error}") from error


def data_of(evaluator: Any) -> list[tuple[str, str]]:
    """The data that an evaluator names, with the field that names it."""
    found = []
    for field in DATA:
        value = getattr(evaluator, field, "")
        several = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else [value]
        found += [(field, text) for text in several if text and isinstance(text, str)]
    return found


def made_of(config: Mapping[str, Any], evaluator: Any, step: int, weights: str) -> str:
    """A hash of all that the numbers of an evaluator follow from.

    Args:
      config: the resolved configuration of the run as JSON.
      evaluator: with its data filled in.
      weights: `raw` or `ema`.
    """
    run = {name: config.get(name) for name in ("system", "data", "seed", "steps", "precision", "optimizer", "init_from")}
    opened = [evaluator.open(data, field) for field, data in data_of(evaluator)]
    named = [[source.fingerprint, embeddings.of_records(source)] for source in opened]
    lists = [places.locate(part, "classes") for part in getattr(evaluator, "classes", "").split("::") if part]
    files = embeddings.of_files([path for path in lists if os.path.isfile(path)])
    told = [vlm_jax.__version__, run, repr(evaluator), named, files, step, weights]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]


def environment(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Versions and devices."""
    import flax
    import numpy
    import optax

    return {
        "vlm_jax": vlm_jax.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "mesh": ", ".join(f"{name} {size}" for name, size in mesh.shape.items()),
    }


def of(
    evaluators: Mapping[str, Any],
    model: states.Model,
    mesh: jax.sharding.Mesh,
    *,
    stream: Any,
    batch_size: int,
    precision: str,
    weights: str,
    name: str,
    config: Mapping[str, Any],
) -> Suite:
    """The suite of a run.

    Args:
      stream: the data stream whose transform and tokenizer the model was trained with; its `val` is what evaluators without
        data of their own evaluate.
    """
    return Suite(
        filled(evaluators, stream),
        base.Compiled(model.graphdef, mesh),
        stream.image.evaluation(),
        stream.tokenizer.load(),
        batch_size,
        jnp.dtype(precision),
        weights,
        name,
        config,
    )


def filled(evaluators: Mapping[str, Any], stream: Any) -> dict[str, Any]:
    """The evaluators, those without data of their own with the stream's validation data."""
    return {name: e if e.data else e.on_validation(stream) for name, e in evaluators.items()}
