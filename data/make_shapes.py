"""Writes the shapes world as a data set, or draws its contact sheet.

    python data/make_shapes.py --out shapes                                  # 22,752 scenes, about 15 seconds
    python data/make_shapes.py --out shapes --one-object 4000 --workers 2
    python data/make_shapes.py --contact-sheet docs/images/shapes.png

`--help` lists every field. Exit code 2 and one line where a value cannot be used.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from vlm_jax import errors
from vlm_jax.data import shapes


@dataclass(frozen=True)
class Arguments:
    """Writes the shapes world as ArrayRecord shards, or draws its contact sheet."""

    out: Path | None = None
    """New folder for the data set."""
    contact_sheet: Path | None = None
    """New or old PNG file for the contact sheet."""
    workers: int = 0
    """Processes that render beside this one; the bytes do not depend on it."""
    world: Annotated[shapes.World, tyro.conf.arg(name="")] = field(default_factory=shapes.World)


def main() -> int:
    try:
        return _run(tyro.cli(Arguments, description=__doc__))
    except errors.InputError as error:
        print(f"make_shapes: {error}", file=sys.stderr)
        return errors.BAD_INPUT


def _run(arguments: Arguments) -> int:
    if arguments.out is None and arguments.contact_sheet is None:
        raise errors.InputError("out: name a new folder for the data set, or a contact-sheet to draw")
    if arguments.workers < 0:
        raise errors.InputError(f"workers {arguments.workers}: is negative; give 0 or more")
    if arguments.contact_sheet is not None:
        sheet = shapes.contact_sheet(arguments.world.seed, arguments.world.image_size)
        try:
            arguments.contact_sheet.parent.mkdir(parents=True, exist_ok=True)
            sheet.quantize(256).save(arguments.contact_sheet, "PNG", optimize=True)
        except (OSError, ValueError) as error:
            raise errors.InputError(f"contact-sheet {arguments.contact_sheet}: cannot be written ({error})") from error
        print(f"contact sheet: {arguments.contact_sheet}")
    if arguments.out is not None:
        start = time.perf_counter()
        folder = shapes.make(arguments.out, arguments.world, arguments.workers)
        seconds = time.perf_counter() - start
        total = sum(arguments.world.size(split) for split in shapes.SPLITS)
        for split in shapes.SPLITS:
            print(f"{split}: {arguments.world.size(split):,} scenes in {folder}/{split}-*.array_record")
        print(f"also in {folder}: classes.json tokenizer.model manifest.json")
        print(f"{total:,} scenes in {seconds:.1f} s, {total / seconds:,.0f} a second written")
    return errors.DONE


if __name__ == "__main__":
    sys.exit(main())
