"""Writes any source as ArrayRecord shards: tars, tables, folders, arrays, TensorFlow Datasets (docs/data.md).

    python data/to_array_record.py 'shards/train-{00000..00041}.tar' packed/train --workers 8
    python data/to_array_record.py photos packed/photos --longest 512 --dedup pixels

Beside the shards: TARGET.sha256 with their checksums (`sha256sum -c`), TARGET.failures.jsonl with the records that were left out and
why, TARGET.html with counts, sizes, caption lengths and samples. A run that was stopped goes on with the same command, and
writes the same bytes. `--help` lists every field. Exit code 2 and one line where a value cannot be used.
"""

import dataclasses
import sys
import time
from dataclasses import dataclass, field
from typing import Annotated

import tqdm
import tyro

from vlm_jax import errors, files
from vlm_jax.data import conversion, images, sources
from vlm_jax.data import statistics as stats

SAMPLES = 24
"""Images on the page."""


@dataclass(frozen=True)
class Arguments:
    """Writes any source as ArrayRecord shards."""

    source: tyro.conf.Positional[str]
    """What to read, in any form of docs/data.md."""
    target: tyro.conf.Positional[str]
    """Where to write: TARGET-00000-of-00004.array_record and so on."""
    options: Annotated[conversion.Conversion, tyro.conf.arg(name="")] = field(default_factory=conversion.Conversion)
    workers: int = 0
    """Processes that read, decode and write beside this one; the bytes do not depend on it."""


def main() -> int:
    try:
        return _run(tyro.cli(Arguments, description=__doc__))
    except (errors.InputError, errors.InfrastructureError) as error:
        print(f"to_array_record: {error}", file=sys.stderr)
        return errors.exit_code(error)
    except KeyboardInterrupt:
        print("to_array_record: interrupted; the same command goes on", file=sys.stderr)
        return errors.PREEMPTED


def _run(arguments: Arguments) -> int:
    from vlm_jax.evaluation import data_page, terminal  # not in the workers, which import this file: they need no JAX

    source = sources.open_source(arguments.source, "source")
    print(f"{arguments.source}: {source.fingerprint}")
    began = time.perf_counter()
    with tqdm.tqdm(total=len(source), unit="records", mininterval=0.5) as bar:

        def tell(done: int, total: int, word: str) -> None:
            if bar.desc != f"{word}: ":
                bar.set_description(word)
                bar.reset(total)
                bar.initial = bar.n = done
            bar.update(done - bar.n)

        def present(result: conversion.Result) -> None:
            facts = {"source": arguments.source, "data": source.fingerprint, **dataclasses.asdict(arguments.options)}
            facts["shards"] = len(result.paths)
            shown = [(images.decode(example["image"]), example["captions"]) for example in conversion.samples(result.paths, SAMPLES)]
            page = data_page.page(arguments.target, result.statistics, reasons=result.reasons, facts=facts, samples=shown)
            files.write_text(f"{arguments.target}.html", page)

        result = conversion.convert(
            source, arguments.target, arguments.options, workers=arguments.workers, progress=tell, present=present
        )
    seconds = time.perf_counter() - began
    print(stats.text(result.statistics))
    for reason, count in result.reasons.most_common(10):
        print(f"left out    {count:,}: {terminal.plain(reason)}")
    print(f"shards      {len(result.paths)}, {result.resumed} of them from before: {arguments.target}-*.array_record")
    print(f"checksums   {arguments.target}.sha256")
    print(f"failures    {arguments.target}.failures.jsonl")
    print(f"page        {arguments.target}.html")
    print(f"{len(source):,} records in {seconds:.1f} s")
    return errors.DONE


if __name__ == "__main__":
    sys.exit(main())
