"""Weights between two models: `python -m vlm_jax.convert interpolate FIRST SECOND TARGET` (WiSE-FT and PAINT).

With evaluators the coefficient is chosen on their data, as PAINT does, and the curve is drawn; without, it is given.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from vlm_jax import config as configs
from vlm_jax import files, imported
from vlm_jax.errors import DONE, InputError
from vlm_jax.evaluation import base, report
from vlm_jax.evaluation import suite as suites
from vlm_jax.training import merging, sharding, tree
from vlm_jax.training import state as states

PROG = "python -m vlm_jax.convert interpolate"
HALF = 0.5
"""WiSE-FT's coefficient where there is nothing to choose by."""


def main(arguments: Sequence[str]) -> int:
    """Parses the command line, merges, chooses and writes."""
    options, overrides = _parser().parse_known_args(list(arguments))
    target = Path(options.target)
    imported.check_target(target)
    if options.coefficient is not None and options.tasks:
        raise InputError("coefficient: give it, or --tasks to choose it by, not both")
    coefficients = sorted(set(options.coefficients))
    if not all(0 <= c <= 1 for c in [*coefficients, options.coefficient or 0]):
        raise InputError(f"coefficients {coefficients}: from 0, the first model, to 1, the second")
    first, second = (imported.load(path, weights=options.weights) for path in (options.first, options.second))
    config = first.config
    if options.suite:
        config = dataclasses.replace(config, evaluators=configs.load_suite(options.suite))
    config = configs.parse(config, overrides, prog=PROG, description="")
    merging.check([tree.flatten(source.variables) for source in (first, second)])
    evaluators = _evaluators(config, options.tasks or ())
    scores = _scores(first, second, config, evaluators, coefficients) if evaluators else {}
    if scores:
        chosen = merging.best(coefficients, list(scores.values()))
    else:
        chosen = HALF if options.coefficient is None else options.coefficient
    note = f"interpolated: {1 - chosen:g} of {options.first} (step {first.step}), {chosen:g} of {options.second} (step {second.step})"
    merged = _merged(first, second, chosen)
    target.mkdir(parents=True, exist_ok=True)
    imported.save(
        dataclasses.replace(first, variables=merged, step=second.step, notes=(*first.notes, note), results=()), target
    )
    print(note)
    if scores:
        _write_curve(target, config, coefficients, scores, chosen, note)
        print(_table(coefficients, scores, chosen))
        print(f"curve       {target / 'interpolation.json'}\nreport      {target / 'report.html'}")
    print(f"checkpoint  {target}")
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Writes a checkpoint with weights between those of two models of the same shapes, every tensor interpolated.",
        epilog="Further --field value override FIRST's configuration, such as --evaluators.retrieval.data SHARDS. "
        "Choose on validation data that is not reported later. Exit codes: 0 done, 1 fault in code, 2 bad input.",
    )
    for name, text in (("first", "such as the zero-shot model"), ("second", "such as the fine-tuned one")):
        parser.add_argument(name, metavar=name.upper(), help=f"a model as convert reads it, {text}")
    parser.add_argument("target", metavar="TARGET", help="a directory that does not exist yet, or is empty")
    parser.add_argument(
        "--coefficient", type=float, metavar="C", help=f"share of SECOND, 0 to 1 (default: {HALF}, WiSE-FT's)"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="NAME",
        help="choose the coefficient with the best mean over these evaluators",
    )
    parser.add_argument(
        "--suite",
        metavar="FILE.py",
        help="evaluators from a Python file with evaluators() -> {name: evaluator}, instead of FIRST's own",
    )
    parser.add_argument(
        "--coefficients",
        nargs="+",
        type=float,
        metavar="C",
        default=[i / 10 for i in range(11)],
        help="to choose from (default: 0, 0.1, ..., 1)",
    )
    parser.add_argument(
        "--weights", choices=("auto", "ema", "raw"), default="auto", help="of runs of ours (default: the run's)"
    )
    return parser


def _evaluators(config: configs.Config, names: Sequence[str]) -> Mapping[str, Any]:
    unknown = sorted(set(names) - set(config.evaluators))
    if unknown:
        raise InputError(f"tasks {', '.join(unknown)}: there are {', '.join(config.evaluators) or 'no evaluators'}")
    return {name: config.evaluators[name] for name in names}


def _merged(first: imported.Source, second: imported.Source, coefficient: float) -> dict[str, Any]:
    a, b = (tree.flatten(jax.tree.map(jnp.asarray, source.variables)) for source in (first, second))
    return jax.device_get(tree.unflatten(merging.interpolate(a, b, coefficient)))


def _scores(
    first: imported.Source,
    second: imported.Source,
    config: configs.Config,
    evaluators: Mapping[str, Any],
    coefficients: Sequence[float],
) -> dict[str, list[float]]:
    """For each evaluator the first of its metrics, by which it is judged, at all coefficients."""
    model, mesh = states.Model.of(config.system), sharding.Mesh().make()
    stream: Any = next(iter(config.streams.values()))
    evaluators = suites.filled(evaluators, stream)
    compiled, tokenizer = base.Compiled(model.graphdef, mesh), stream.tokenizer.load()
    scores: dict[str, list[float]] = {}
    with jax.set_mesh(mesh):
        for coefficient in tqdm.tqdm(coefficients, desc="coefficients", disable=None):
            variables = states.cast(_merged(first, second, coefficient), jnp.dtype(config.precision))
            subject = base.Subject(compiled, variables, stream.image.evaluation(), tokenizer, config.batch_size)
            for name, evaluator in evaluators.items():
                metric, value = next(iter(evaluator(subject).metrics.items()))
                scores.setdefault(f"{name} {metric}", []).append(value)
    return scores


def _write_curve(
    target: Path,
    config: configs.Config,
    coefficients: Sequence[float],
    scores: Mapping[str, Sequence[float]],
    chosen: float,
    note: str,
) -> None:
    """The curve as JSON, and as a picture in a report."""
    mean = [float(x) for x in np.mean(list(scores.values()), 0)]
    lines = {name: list(zip(coefficients, values, strict=True)) for name, values in {**scores, "mean": mean}.items()}
    at = list(coefficients).index(chosen)
    result = base.Result(
        metrics={name.replace(" ", "_"): values[at] for name, values in scores.items()} | {"mean": mean[at]},
        figures={"curve": base.Lines("share of the second model", "score", lines, chosen=chosen)},
        note=note,
    )
    content = {"coefficients": list(coefficients), "chosen": chosen, "mean": mean, "scores": scores}
    files.write_text(target / "interpolation.json", json.dumps(content, indent=2) + "\n")
    report.write(
        target / "report.html",
        title=target.absolute().name,
        config=configs.to_json(config),
        metrics_history=[],
        results={"interpolation": result},
        environment=suites.environment(sharding.Mesh().make()),
    )


def _table(coefficients: Sequence[float], scores: Mapping[str, Sequence[float]], chosen: float) -> str:
    rows = ["share   " + "  ".join(scores)]
    for i, coefficient in enumerate(coefficients):
        cells = "  ".join(f"{values[i]:>{len(name)}.4f}" for name, values in scores.items())
        rows.append(f"{coefficient:<6g}  {cells}" + ("  chosen" if coefficient == chosen else ""))
    return "\n".join(rows)
