"""The evaluators of a run: one model, compiled once, evaluated again and again, and what is written of it."""

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vlm_jax.evaluation import base, records, report
from vlm_jax.training import goodput
from vlm_jax.training import state as states


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
    ) -> dict[str, float]:
        """Evaluates and writes; returns all metrics as `<evaluator>/<metric>`.

        Every process calls it; the first one writes.

        Args:
          state: at least `params`, `frozen`, `buffers` and `average`.
          rows: lines of metrics.jsonl, for the curves of the report.
          attempts: starts of the run, for where its time went.
          names: which evaluators; None for all.
          pretrained: for the records; by default the workdir.
        """
        chosen = {name: self.evaluators[name] for name in (self.evaluators if names is None else names)}
        variables = states.cast(states.variables(state, self.weights), self.dtype)
        subject = base.Subject(self.compiled, variables, self.transform, self.tokenizer, self.batch_size)
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


def environment(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Versions and devices."""
    import flax
    import numpy
    import optax

    import vlm_jax

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
        {key: e if e.data else dataclasses.replace(e, data=stream.val) for key, e in evaluators.items()},
        base.Compiled(model.graphdef, mesh),
        stream.image.evaluation(),
        stream.tokenizer.load(),
        batch_size,
        jnp.dtype(precision),
        weights,
        name,
        config,
    )
