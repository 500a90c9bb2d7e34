"""Says what a recipe takes of a slice of TPUs before one is rented: `python -m vlm_jax.plan RECIPE --topology v5e:16x16`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from vlm_jax import config as configs
from vlm_jax import files
from vlm_jax.errors import DONE, InputError
from vlm_jax.planning import page, plan, search, words

PROG = "python -m vlm_jax.plan"
DESCRIPTION = (
    "Compiles the train step of a recipe for a topology, on this machine and without a TPU, and says what it takes of memory, "
    "arithmetic and exchange. Nothing is run, and no data is read."
)


def main(arguments: Sequence[str]) -> int:
    """Parses the command line, compiles, prints and writes."""
    options, overrides = _parser().parse_known_args(list(arguments))
    default, description = configs.load_recipe(options.recipe)
    config = configs.parse(default, overrides, prog=f"{PROG} {options.recipe}", description=description)
    name, target = Path(options.recipe).stem, search.Target(options.topology, options.slices, options.efficiency, options.examples)
    out = Path(options.out or f"plans/{name}")
    if options.search:
        found = search.search(config, name, target, say=print)
        print(f"\n{words.table(found)}")
        written = {"search": [plan.to_json(each) for each in found]}
    else:
        made = search.with_change(config, name, target, say=print)
        print(words.report(made))
        found, written = [made], plan.to_json(made)
    try:
        out.mkdir(parents=True, exist_ok=True)
        files.write_text(out / "plan.json", json.dumps(written, indent=1) + "\n")
        files.write_text(out / "plan.html", page.page(found))
    except OSError as error:
        raise InputError(f"out {out}: {error.strerror or error}; choose another --out") from None
    print(f"\n{out / 'plan.json'}\n{out / 'plan.html'}")
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description=DESCRIPTION,
        allow_abbrev=False,
        epilog="Further --field value override the recipe, as in vlm_jax.train: --mesh.fsdp 16, --microbatches 4, "
        "--system.image.remat full. Compiling takes minutes.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a Python file with config(), such as configs/pods/siglip_b16_32k.py")
    parser.add_argument(
        "--topology", required=True, metavar="v5e:16x16", help="chips by generation (v4, v5e, v5p, v6e) and sides of the slice"
    )
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="slices of that topology, with `data` between them (default: 1)")
    parser.add_argument(
        "--search", action="store_true", help="compile neighbours of the recipe (remat, mesh, chunks, batch) and print them, best first"
    )
    parser.add_argument(
        "--efficiency", type=float, default=plan.EFFICIENCY, metavar="SHARE", help="of the peak, for the roofline (default: %(default)s)"
    )
    parser.add_argument("--examples", type=int, metavar="N", help="examples of an epoch, where durations are in epochs")
    parser.add_argument("--out", metavar="DIR", help="for plan.json and plan.html (default: plans/<recipe>)")
    return parser


if __name__ == "__main__":
    configs.entry_point(main)
