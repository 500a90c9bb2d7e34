"""How fast training data is made: images a second and core of the whole pipeline, beside decoding and resizing alone.

    python benchmarks/input.py
    python benchmarks/input.py --images 'shards/train-{00000..00003}.tar' --size 224

Prints and keeps (docs/input.json) a row for each container (tar, ArrayRecord), decoder (Pillow, simplejpeg) and place of the work
(threads of the process, worker processes). Cost is CPU time, of all threads and processes together, so other programs of the
machine disturb it little; everything is measured in turn, round after round, and what is told are medians. Ten minutes on two cores.

Goal: at least 0.8 of the ideal, 1 / (decode and resize + 60 microseconds).
"""

import collections
import dataclasses
import io
import json
import multiprocessing
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from vlm_jax import errors
from vlm_jax.data import decoding, images, pipeline, records, sources, text, vocabulary

DOCS = Path(__file__).resolve().parents[1] / "docs"
COPIES = 8
"""Of every image in the shards: a shuffle of fewer than two thousand records costs more than of millions."""
POLLS = 5
"""Tenths of a second without a move that are rest."""
OVERHEAD = 60e-6
"""Seconds of an image beside its decoding that the goal allows."""
PLACES = {"0 threads": (0, 0), "2 threads": (0, 2), "2 processes": (2, 1)}
"""Workers and threads; without threads the batch is built when it is asked for."""


@dataclass(frozen=True)
class Arguments:
    """Measures the input pipeline."""

    images: str = ""
    """Images to take, in any form of docs/data.md; empty: 340 x 256 pixels, drawn and stored as JPEG, 25 kB each."""
    size: int = 224
    """Side that they are made."""
    count: int = 512
    """Images of a round."""
    rounds: int = 7
    """Of which the medians are told."""
    out: Path = DOCS / "input.json"
    """Where the rows are kept."""


@dataclass(frozen=True)
class Row:
    """One way to make batches; rates are images a second and core."""

    container: str
    decoder: str
    place: str
    size: int
    decode: float
    """Decoding alone."""
    transform: float
    """Decoding and resizing."""
    pipeline: float
    """Reading, decoding, resizing, tokenising, collating, passing on."""
    of_ideal: float
    """Rate of the pipeline over 1 / (seconds of decoding and resizing + 60 microseconds), median over the rounds."""


def main() -> int:
    try:
        return _run(tyro.cli(Arguments, description=__doc__))
    except errors.InputError as error:
        print(f"input: {error}", file=sys.stderr)
        return errors.BAD_INPUT


def _run(arguments: Arguments) -> int:
    for field in ("size", "count", "rounds"):
        if getattr(arguments, field) < 1:
            raise errors.InputError(f"{field} {getattr(arguments, field)}: must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments, Path(folder))
    print(markdown(rows))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    print(arguments.out)
    return errors.DONE


def measure(arguments: Arguments, folder: Path) -> list[Row]:
    """Makes shards of the images in a folder, and measures every way to read them."""
    examples = list(_examples(arguments))
    shards = _written(examples, folder)
    tokenizer = text.Tokenizer(str(folder / "captions.model"), 64)
    Path(tokenizer.path).write_bytes(vocabulary.train([e["captions"][0] for e in examples], 300))
    batch_size = min(64, len(examples))
    decoders = ("pillow", "simplejpeg") if decoding.chosen("auto") == "simplejpeg" else ("pillow",)
    alone: dict[str, Callable[[], object]] = {}
    made: dict[tuple[str, str, str], pipeline.BatchIterator] = {}
    for decoder in decoders:
        transform = images.Transform(size=arguments.size, decoder=decoder)
        alone[f"decode {decoder}"] = lambda decoder=decoder: _each(decoding.load(e["image"], decoder=decoder) for e in examples)
        rng = np.random.default_rng(0)
        alone[f"transform {decoder}"] = lambda t=transform, rng=rng: _each(t(e["image"], rng) for e in examples)
        for container, pattern in shards.items():
            stream = pipeline.Pairs(pattern, pattern, tokenizer, transform)
            for place, (workers, threads) in PLACES.items():
                made[container, decoder, place] = pipeline.train_iterator(
                    {"pairs": stream}, batch_size=batch_size, seed=0, workers=workers, threads=threads
                )
    batches = max(1, len(examples) // batch_size)
    seconds: dict[object, list[float]] = {name: [] for name in [*alone, *made]}
    try:
        for turn in range(arguments.rounds + 1):  # the first one warms up
            for name, work in alone.items():
                seconds[name].append(_seconds(work) / len(examples))
            for key, iterator in made.items():
                seconds[key].append(_seconds(lambda it=iterator: [next(it) for _ in range(batches)]) / (batches * batch_size))
            print(f"round {turn} of {arguments.rounds}", file=sys.stderr, flush=True)
    finally:
        for iterator in made.values():
            iterator.close()
    rate = {name: 1 / statistics.median(found[1:]) for name, found in seconds.items()}
    rows = []
    for container, decoder, place in made:
        pairs = zip(seconds[f"transform {decoder}"][1:], seconds[container, decoder, place][1:], strict=True)
        of_ideal = statistics.median((alone_ + OVERHEAD) / whole for alone_, whole in pairs)
        rates = rate[f"decode {decoder}"], rate[f"transform {decoder}"], rate[container, decoder, place]
        rows.append(Row(container, decoder, place, arguments.size, *rates, of_ideal))
    return rows


def _each(made: Iterable[object]) -> None:
    """Makes all, one after the other; where they were kept, most of the time could be that of the memory for them."""
    collections.deque(made, maxlen=0)


def markdown(rows: list[Row]) -> str:
    """The rows as a table for docs/data.md."""
    lines = [
        "| container | decoder | work of | decode | and resize | whole pipeline | of the ideal |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rates = " | ".join(f"{rate:,.0f}" for rate in (row.decode, row.transform, row.pipeline))
        lines.append(f"| {row.container} | {row.decoder} | {row.place} | {rates} | {row.of_ideal:.2f} |")
    return "\n".join(lines)


def _examples(arguments: Arguments) -> Iterator[sources.Example]:
    if arguments.images:
        source = sources.open_source(arguments.images, "images")
        for index in range(min(arguments.count, len(source))):
            example = source[index]
            yield {"key": f"{index:07d}", "image": example["image"], "captions": example["captions"] or ["an image"]}
        return
    for index in range(arguments.count):
        rng = np.random.default_rng(index)
        octaves = [Image.fromarray(rng.integers(0, 256, (side * 3 // 4, side, 3), np.uint8)) for side in (8, 32, 128, 340)]
        large = [np.asarray(octave.resize((340, 256), Image.Resampling.BICUBIC), np.float32) for octave in octaves]
        mixed = sum(weight * octave for weight, octave in zip((0.5, 0.3, 0.14, 0.06), large, strict=True))
        out = io.BytesIO()
        Image.fromarray(np.asarray(mixed, np.uint8)).save(out, "JPEG", quality=90)
        yield {"key": f"{index:07d}", "image": out.getvalue(), "captions": [f"clouds of colours, number {index}, not a photograph"]}


def _written(examples: list[sources.Example], folder: Path) -> dict[str, str]:
    """Patterns of the same examples in each container."""
    copies = [{**example, "key": f"{copy}{example['key']}"} for copy in range(COPIES) for example in examples]
    records.write(str(folder / "train"), copies, 1)
    with tarfile.open(folder / "train.tar", "w") as tar:
        for example in copies:
            for suffix, content in (("jpg", example["image"]), ("txt", example["captions"][0].encode())):
                member = tarfile.TarInfo(f"{example['key']}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return {"tar": str(folder / "train.tar"), "ArrayRecord": str(folder / "train-*.array_record")}


def _seconds(work: Callable[[], object]) -> float:
    """CPU time of this process and its workers for the work, from rest to rest: what was read ahead before is read ahead again."""
    before = _rest()
    work()
    return _rest() - before


def _rest() -> float:
    """CPU time so far, when nothing has moved for a while: a busy machine may leave a worker waiting for its turn."""
    spent, still = _spent(), 0
    while still < POLLS:
        time.sleep(0.1)
        later = _spent()
        still = still + 1 if later - spent < 0.002 else 0
        spent = later
    return spent


def _spent() -> float:
    ticks = 0
    for child in multiprocessing.active_children():
        try:
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
