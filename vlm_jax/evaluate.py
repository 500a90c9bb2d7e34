"""Evaluates a checkpoint: `python -m vlm_jax.evaluate --checkpoint runs/demo [--tasks held_out relations]`."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from vlm_jax import config as configs
from vlm_jax.errors import DONE, InputError
from vlm_jax.evaluation import suite as suites
from vlm_jax.training import checkpoint, goodput, sharding
from vlm_jax.training import log as logs
from vlm_jax.training import state as states


def main(arguments: Sequence[str]) -> int:
    """Parses the command line, loads and evaluates."""
    parser = argparse.ArgumentParser(
        prog="python -m vlm_jax.evaluate",
        description="Evaluates a checkpoint and writes evaluation.json and report.html.",
        epilog="Further --field value override the run's configuration, such as --evaluators.retrieval.data SHARDS, "
        "--batch-size 512 or --mesh.data 4. Exit codes: 0 done, 1 fault in code, 2 bad input or configuration, "
        "4 infrastructure, such as a damaged checkpoint.",
    )
    parser.add_argument("--checkpoint", required=True, metavar="WORKDIR|STEP_DIR", help="a run (its last step) or one checkpoint of it")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="evaluators of the run's configuration (default: all)")
    parser.add_argument("--weights", choices=("auto", "ema", "raw"), help="trained weights or their moving average (default: the run's)")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: the run's workdir)")
    parser.add_argument(
        "--allow-types", nargs="+", default=(), metavar="MODULE", help="modules outside vlm_jax whose types the configuration may name"
    )
    options, overrides = parser.parse_known_args(list(arguments))
    config, workdir, at = configs.of_checkpoint(options.checkpoint, allow=options.allow_types)
    if not config.mesh.fits(jax.device_count()):
        config = dataclasses.replace(config, mesh=sharding.Mesh())
    config = configs.parse(config, overrides, prog="python -m vlm_jax.evaluate", description=parser.description or "")
    unknown = sorted(set(options.tasks or ()) - set(config.evaluators))
    if unknown:
        raise InputError(f"tasks {', '.join(unknown)}: this run has {', '.join(config.evaluators) or 'no evaluators'}")

    mesh = config.mesh.make()
    model = states.Model.of(config.system)
    suite = suites.of(
        config.evaluators,
        model,
        mesh,
        stream=next(iter(config.streams.values())).kept(str(workdir)),
        batch_size=config.batch_size,
        precision=config.precision,
        weights=options.weights or config.weights,
        name=workdir.absolute().name,
        config=configs.to_json(config),
    )
    weights, step = checkpoint.load_weights(workdir, at, states.weights_of(model), mesh, on_corrupt=config.on_corrupt)
    out = Path(options.out or workdir)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out {out}: {error.strerror or error}") from None
    with jax.set_mesh(mesh):
        metrics = suite.run(
            step,
            weights,
            out,
            rows=[row for row in logs.read(workdir) if row["step"] <= step],
            attempts=goodput.read(workdir),
            names=options.tasks,
            pretrained=str(workdir / "checkpoints" / str(step)),
        )
    if jax.process_index() == 0:
        print(f"{workdir} at step {step}")
        for name, value in metrics.items():
            print(f"  {name:<44} {value:.4f}")
        print(f"evaluation  {out / 'evaluation.json'}\nreport      {out / 'report.html'}")
    return DONE


if __name__ == "__main__":
    configs.entry_point(main)
