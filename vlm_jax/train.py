"""Trains a recipe: `python -m vlm_jax.train configs/demo.py [--steps 500 ...]`; `--help` after the recipe lists every field."""

from collections.abc import Sequence
from pathlib import Path

from vlm_jax import config as configs
from vlm_jax import run
from vlm_jax.errors import DONE, InputError
from vlm_jax.training import processes

USAGE = """usage: python -m vlm_jax.train RECIPE [--field value ...] [--dry-run] [--help]

RECIPE is a Python file with a function config(), such as configs/demo.py.
--help after a recipe lists its fields with type, default and meaning.
--dry-run builds everything, runs one step, prints sizes, and leaves nothing behind.
exit codes: 0 done, 1 fault in code, 2 bad input or configuration, 3 preempted, 4 infrastructure"""


def main(arguments: Sequence[str]) -> int:
    """Parses the command line, builds and runs."""
    if not arguments:
        raise InputError("no recipe is named; python -m vlm_jax.train --help says how")
    if arguments[0] in ("-h", "--help"):
        print(USAGE)
        return DONE
    recipe, *overrides = arguments
    default, description = configs.load_recipe(recipe)
    chosen = [argument for argument in overrides if argument != "--dry-run"]
    config = configs.parse(default, chosen, prog=f"python -m vlm_jax.train {recipe}", description=description)
    found = processes.start()
    compiled = processes.keep_compiled(Path(config.workdir)) if "--dry-run" not in overrides else ""
    built = run.Run.build(config, name=Path(recipe).stem)
    print(found + (f"; compiled programs are kept in {compiled}" if compiled else ""))
    if "--dry-run" in overrides:
        built.try_out()
    else:
        built.train()
    return DONE


if __name__ == "__main__":
    configs.entry_point(main)
