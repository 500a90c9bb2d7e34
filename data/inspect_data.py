"""Says what is in a source: how many records, which fields, how large images and how long captions are, how fast it is read.

    python data/inspect_data.py 'shards/train-{00000..00041}.tar'
    python data/inspect_data.py photos --picture photos.png --samples 24 --tokenizer captions.model --limit 0
    python data/inspect_data.py --recipe configs/demo.py --batch 17

With `--recipe`, a recipe or the folder of a run, it says which records make a global batch: the first has number 0, and step 1 trains
on it. `--help` lists every field. Exit code 2 and one line where a value cannot be used.
"""

import io
import os
import sys
from dataclasses import dataclass

import tqdm
import tyro
from PIL import Image

from vlm_jax import config as configs
from vlm_jax import errors, files
from vlm_jax.data import contact_sheet, inspection, sources, text
from vlm_jax.data import statistics as stats
from vlm_jax.evaluation import terminal


@dataclass(frozen=True)
class Arguments:
    """Says what is in a source."""

    source: tyro.conf.Positional[str] = ""
    """What to read, in any form of docs/data.md."""
    limit: int = 1000
    """Records to look at, evenly over the source; 0: all."""
    samples: int = 24
    """Images in the picture."""
    picture: str = ""
    """PNG file to draw samples with their captions into; empty: none."""
    tokenizer: str = ""
    """Vocabulary that counts the tokens of captions: a SentencePiece model or CLIP's merges."""
    recipe: str = ""
    """A recipe, or the folder of a run: says the records of one of its global batches, in place of a source."""
    batch: int = 0
    """Number of the global batch, the first is 0."""


def main() -> int:
    try:
        return _run(tyro.cli(Arguments, description=__doc__))
    except (errors.InputError, errors.InfrastructureError) as error:
        print(f"inspect_data: {error}", file=sys.stderr)
        return errors.exit_code(error)


def _run(arguments: Arguments) -> int:
    if bool(arguments.source) == bool(arguments.recipe):
        raise errors.InputError("source: name one, or a --recipe, and not both")
    for field in ("limit", "samples"):
        if getattr(arguments, field) < 0:
            raise errors.InputError(f"{field} {getattr(arguments, field)}: cannot be negative")
    return _batch(arguments.recipe, arguments.batch) if arguments.recipe else _survey(arguments)


def _batch(recipe: str, number: int) -> int:
    config = configs.of_checkpoint(recipe)[0] if os.path.isdir(recipe) else configs.load_recipe(recipe)[0]
    streams = {name: stream.prepared() for name, stream in config.streams.items()}
    print(f"global batch {number} of {recipe}, which step {number + 1} trains on: stream, row, record, key, place, caption")
    for row in inspection.batch(streams, number, batch_size=config.batch_size, seed=config.seed):
        cells = (row.stream, row.row, row.record, row.key, row.where, " ".join(row.text.split()))
        print("  ".join(terminal.plain(str(cell)) for cell in cells))
    return errors.DONE


def _survey(arguments: Arguments) -> int:
    source = sources.open_source(arguments.source, "source")
    tokenizer = text.Tokenizer(arguments.tokenizer, pad="zero").load() if arguments.tokenizer else None
    print(f"{arguments.source}: {source.fingerprint}")
    total = min(arguments.limit, len(source)) if arguments.limit else len(source)
    samples = arguments.samples if arguments.picture else 0
    with tqdm.tqdm(total=total, unit="records", mininterval=0.5, leave=False) as bar:
        found = inspection.survey(
            source, limit=arguments.limit, samples=samples, tokenizer=tokenizer, progress=lambda done: bar.update(done - bar.n)
        )
    print(stats.text(found.statistics))
    if source.classes is not None:
        names = [own[0] for own in source.classes.names]
        print(terminal.plain(f"classes     {len(names):,}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"))
    for reason, places in sorted(found.bad.items(), key=lambda item: -len(item[1]))[:10]:
        print(terminal.plain(f"bad         {len(places):,}: {reason}, such as {places[0]}"))
    if not found.bad:
        print(f"bad         none of {found.records:,} looked at")
    if found.statistics.examples:
        rate, megabytes = found.records / max(found.read_seconds, 1e-9), found.statistics.image_bytes / 1e6 / max(found.read_seconds, 1e-9)
        print(f"reading     {rate:,.0f} records/s, {megabytes:,.0f} MB/s, one at a time")
        print(f"decoding    {found.statistics.examples / max(found.decode_seconds, 1e-9):,.0f} images/s on one core, at their own size")
    if arguments.picture and found.images:
        sheet = contact_sheet.draw(found.images, found.captions)
        _write_picture(arguments.picture, sheet)
        print(f"picture     {arguments.picture}")
    return errors.DONE


def _write_picture(path: str, sheet: Image.Image) -> None:
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    try:
        files.write(path, out.getvalue())
    except OSError as error:
        raise errors.InputError(f"picture {path}: cannot be written ({error.strerror}); name a file in a folder that exists") from error


if __name__ == "__main__":
    sys.exit(main())
