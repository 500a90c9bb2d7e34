"""Says what a recipe takes of a slice of TPUs before one is rented: `python -m vlm_jax.plan RECIPE --topology v5e:16x16`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from vlm_jax import config as configs
from vlm_jax import files
from vlm_jax.errors import DONE, InputError
from vlm_jax.planning import page, plan, search, words
from vlm_jax.training import tpu

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
    slices = f"-{options.slices}-slices" if options.slices > 1 else ""
    out = Path(options.out or f"plans/{name}/{options.topology.replace(':', '-')}{slices}")
    tpu.sides(options.topology)
    _write([], out)
    if options.search:
        found = search.search(config, name, target, say=_say, keep=lambda found: _write(found, out), vary=options.vary)
        print(f"\n{words.table(found)}\nthe first: {found[0].flags or 'the recipe'}")
    else:
        found = [search.with_change(config, name, target, say=_say)]
        print(words.report(found[0]))
    _write(found, out)
    print(f"\n{out / 'plan.json'}\n{out / 'plan.html'}")
    return DONE


def _say(line: str) -> None:
    print(line, flush=True)


def _write(found: Sequence[plan.Plan], out: Path) -> None:
    """What there is: nothing yet, which only makes the folder, one plan, or the neighbours that a search has compiled so far."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if found:
            files.write_text(out / "plan.json", json.dumps([plan.to_json(each) for each in found], indent=1) + "\n")
            files.write_text(out / "plan.html", page.page(found))
    except OSError as error:
        raise InputError(f"out {out}: {error.strerror or error}; choose another --out") from None


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
        "--search",
        action="store_true",
        help=f"compile some ten neighbours of the recipe ({', '.join(search.FIELDS)}) and print them, best first",
    )
    parser.add_argument(
        "--vary",
        nargs="+",
        default=search.FIELDS,
        choices=search.FIELDS,
        metavar="FIELD",
        help="what the search varies (default: all four)",
    )
    parser.add_argument(
        "--efficiency", type=float, default=plan.EFFICIENCY, metavar="SHARE", help="of the peak, for the roofline (default: %(default)s)"
    )
    parser.add_argument("--examples", type=int, metavar="N", help="examples of an epoch, where durations are in epochs")
    parser.add_argument("--out", metavar="DIR", help="for plan.json and plan.html (default: plans/<recipe>/<topology>)")
    return parser


if __name__ == "__main__":
    configs.entry_point(main)
