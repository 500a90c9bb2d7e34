"""Conversion of any source to ArrayRecord shards: in parallel, resumable, with what was left out and why.

Every shard holds a stretch of the source and follows from it alone, so any number of workers writes the same bytes, and a run that was
killed goes on with the shards that it lacks. Until all are there they lie in `TARGET.unfinished`.
"""

import collections
import concurrent.futures.process
import contextlib
import dataclasses
import fcntl
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from PIL import Image

from vlm_jax import errors, files
from vlm_jax.data import decoding, duplicates, processes, records, sources
from vlm_jax.data import statistics as stats

RECORDS = 10_000
"""In a shard, where their number is not given."""
_STOP = -(2**62)
"""Of the counter of records: no worker goes on."""
_LONGEST_JPEG = 65_500
"""Sides that libjpeg writes."""


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What becomes of the images and records of a source."""

    longest: int = 0
    """Images with a longer side become so long, with antialiasing; 0: any length."""
    shortest: int = 0
    """Images whose shorter side is longer become so short there; 0: any length."""
    encode: Literal["keep", "jpeg", "png", "webp"] = "keep"
    """Form in which images are stored. Those that have it already, and are not resized, keep their bytes; keep: all of those, and
    resized ones become JPEG."""
    quality: int = 92
    """Of JPEG and WebP, 1 to 100."""
    dedup: duplicates.Sameness = "none"
    """Leave out images that came before: with equal bytes, with equal pixels, or perceptual, which finds other sizes and qualities of
    an image, and sometimes another image. The source is read twice then."""
    shards: int = 0
    """Number of files; 0: one for every 10,000 records."""
    max_pixels: int = decoding.MAX_PIXELS
    """Width times height above which an image is left out."""

    def __post_init__(self):
        for field in ("longest", "shortest", "shards"):
            if getattr(self, field) < 0:
                raise errors.InputError(f"{field} {getattr(self, field)}: cannot be negative")
        if self.longest and self.shortest:
            raise errors.InputError(f"longest {self.longest} and shortest {self.shortest}: give one of them")
        if not 1 <= self.quality <= 100:
            raise errors.InputError(f"quality {self.quality}: from 1 to 100")
        if self.max_pixels < 1:
            raise errors.InputError(f"max_pixels {self.max_pixels}: must be at least 1")


@dataclasses.dataclass(frozen=True)
class Result:
    """What was written."""

    paths: list[str]
    statistics: stats.Statistics
    reasons: collections.Counter[str]
    """Records that were left out, by reason, numbers in it left open."""
    resumed: int
    """Shards that an earlier run had made."""


Progress = Callable[[int, int, str], None]
"""Is told how many records are done, of how many, and what is done to them."""


def convert(
    source: sources.Source,
    target: str,
    conversion: Conversion,
    *,
    workers: int = 0,
    progress: Progress | None = None,
    present: Callable[[Result], None] | None = None,
) -> Result:
    """Writes `target-00000-of-00004.array_record` and so on, `target.sha256` (for `sha256sum -c`) and `target.failures.jsonl`.

    Args:
      workers: processes beside this one, which then only waits; 0: none.
      present: writes what else belongs to the target, before the checksums, which say that all is there.

    Raises:
      InputError: the target is there, was begun with other data or settings, or cannot be written; no record can be used.
    """
    if workers < 0:
        raise errors.InputError(f"workers {workers}: cannot be negative")
    count = len(source)
    shards = conversion.shards or -(-count // RECORDS)
    if shards > count:
        raise errors.InputError(f"shards {shards}: the source has {count} records; write at most {count} shards")
    work = Path(f"{target}.unfinished")
    plan = {"data": source.fingerprint, "conversion": dataclasses.asdict(conversion), "shards": shards, "format": 1}
    with _begun(work, target, plan):
        stretches, resumed = _converted(source, work, shards, conversion, workers, progress or (lambda *_: None))
        return _finish(work, target, stretches, resumed, present or (lambda _: None))


def _converted(
    source: sources.Source, work: Path, shards: int, conversion: Conversion, workers: int, tell: Progress
) -> tuple[list["_Stretch"], int]:
    """All stretches, written, and how many of them an earlier run had written."""
    count = len(source)
    bounds = [count * i // shards for i in range(shards + 1)]
    stretches = [_Stretch(work, i, *span, conversion) for i, span in enumerate(itertools.pairwise(bounds))]
    same: dict[int, str] = {}
    if conversion.dedup != "none":
        _all(source, stretches, _Stretch.find, workers, tell, "reading")
        same = _repeated(source, stretches)
        stretches = [dataclasses.replace(s, same={i: same[i] for i in range(s.first, s.last) if i in same}) for s in stretches]
    resumed = sum(stretch.written for stretch in stretches)
    _all(source, stretches, _Stretch.write, workers, tell, "writing")
    return stretches, resumed


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """The records of one shard."""

    work: Path
    number: int
    first: int
    last: int
    conversion: Conversion
    same: dict[int, str] = dataclasses.field(default_factory=dict)
    """Records that repeat an image, with the key of the first that has it."""

    @property
    def shard(self) -> Path:
        return self.work / f"{self.number:05d}.array_record"

    @property
    def facts(self) -> Path:
        """What is known of the shard, written after it."""
        return self.work / f"{self.number:05d}.json"

    @property
    def fingerprints(self) -> Path:
        return self.work / f"{self.number:05d}.fingerprints.json"

    @property
    def found(self) -> bool:
        return self.fingerprints.is_file()

    @property
    def written(self) -> bool:
        return self.facts.is_file()

    def find(self, source: sources.Source, count: Callable[[], None]) -> None:
        """Keeps the fingerprint of every image; null where there is none."""
        found: list[str | None] = []
        for index in range(self.first, self.last):
            try:
                data = source[index].get("image")
                found.append(duplicates.fingerprint(data, self.conversion.dedup) if isinstance(data, bytes) else None)
            except records.RecordError:
                found.append(None)
            count()
        files.write_text(self.fingerprints, json.dumps(found))

    def write(self, source: sources.Source, count: Callable[[], None]) -> None:
        """Writes the shard, then its facts."""
        unfinished = self.shard.with_suffix(f".{os.getpid()}.part")
        facts, failures = stats.Statistics(), []
        writer = array_record_module.ArrayRecordWriter(str(unfinished), records.WRITER_OPTIONS)
        try:
            for index in range(self.first, self.last):
                key = ""
                try:
                    if index in self.same:
                        raise _Repeated(f"repeats the image of {self.same[index]}")
                    example = source[index]
                    key = str(example.get("key", ""))
                    example, size = converted(example, self.conversion)
                    writer.write(_encoded(example))
                    facts.add(example, *size)
                except records.RecordError as error:
                    where = source.where(index)
                    reason = str(error).removeprefix(f"{where}: ")
                    kind = "repeats an image" if isinstance(error, _Repeated) else records.kind(reason)
                    failures.append({"record": index, "where": where, "key": key, "reason": reason, "kind": kind})
                count()
        finally:
            writer.close()
        digest = hashlib.sha256()
        with open(unfinished, "rb") as file:
            while block := file.read(2**22):
                digest.update(block)
        os.replace(unfinished, self.shard)
        summary = {"sha256": digest.hexdigest(), "statistics": facts.to_json(), "failures": failures}
        files.write_text(self.facts, json.dumps(summary))


class _Repeated(records.RecordError):
    """An image that came before."""


def converted(example: sources.Example, conversion: Conversion) -> tuple[sources.Example, tuple[int, int]]:
    """The example as it is stored, and width and height of its image, which is decoded whole in any case.

    Raises:
      RecordError: no image or a broken one, captions that are no strings, or neither a caption, nor a label, nor a question.
    """
    data, captions = example.get("image"), example.get("captions")
    if not isinstance(data, bytes) or not data:
        raise records.RecordError("has no image")
    if not isinstance(captions, list | tuple) or not all(isinstance(caption, str) for caption in captions):
        raise records.RecordError("its captions are no list of strings")
    if not captions and not any(field in example for field in ("label", "labels", "question")):
        raise records.RecordError("has neither a caption, nor a label, nor a question")
    image = decoding.load(data, conversion.max_pixels)
    small = _shrunk(image, conversion)
    wanted = conversion.encode
    if wanted == "keep":
        wanted = stats.form(data).lower() if small is image else "jpeg"
    if small is not image or wanted != stats.form(data).lower():
        if wanted == "jpeg" and max(small.size) > _LONGEST_JPEG:
            raise records.RecordError(f"image of {small.width} x {small.height}: too long for a JPEG; store it as png")
        if wanted == "webp" and max(small.size) > 16383:
            raise records.RecordError(f"image of {small.width} x {small.height}: too long for WebP; store it as png")
        out = io.BytesIO()
        small.save(out, wanted.upper(), **({} if wanted == "png" else {"quality": conversion.quality}))
        data = out.getvalue()
    return {**example, "captions": list(captions), "image": data}, small.size


def _shrunk(image: Image.Image, conversion: Conversion) -> Image.Image:
    limit, side = (conversion.longest, max(image.size)) if conversion.longest else (conversion.shortest, min(image.size))
    if not limit or side <= limit:
        return image
    return image.resize([max(1, round(length * limit / side)) for length in image.size], Image.Resampling.BICUBIC)


def _encoded(example: sources.Example) -> bytes:
    try:
        return records.encode(example)
    except (TypeError, ValueError, OverflowError) as error:
        raise records.RecordError(f"cannot be stored: {error}") from error


# ------------------------------------------------------------------------------------------------ all shards


@contextlib.contextmanager
def _begun(work: Path, target: str, plan: dict[str, Any]) -> Iterator[None]:
    """Makes the folder of what is unfinished, or checks that the one there is of the same plan; holds it against other processes."""
    checksums = Path(f"{target}.sha256")
    if checksums.exists():
        raise errors.InputError(f"target {target}: is written already, {checksums} has its checksums; choose another one")
    kept = work / "plan.json"
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("w")
    except OSError as error:
        raise errors.InputError(f"target {target}: {work} cannot be written ({error.strerror}); choose another target") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not kept.is_file():
                files.write_text(kept, json.dumps(plan))
            before = json.loads(kept.read_text())
        except BlockingIOError:
            raise errors.InputError(f"target {target}: another process is writing it; wait for it, or choose another one") from None
        except ValueError as error:
            raise errors.InputError(f"target {target}: {kept} is damaged ({error}); remove {work}") from error
        changed = [name for name in plan if before.get(name) != plan[name]]
        if changed:
            other = ", ".join(changed)
            raise errors.InputError(f"target {target}: {work} was begun with another {other}; remove it, or choose another target")
        yield


def _repeated(source: sources.Source, stretches: Sequence[_Stretch]) -> dict[int, str]:
    """Records whose image an earlier record has, with the key of that one."""
    first: dict[str, int] = {}
    repeats: dict[int, int] = {}
    for stretch in stretches:
        for index, found in enumerate(json.loads(stretch.fingerprints.read_text()), start=stretch.first):
            if found is not None and first.setdefault(found, index) != index:
                repeats[index] = first[found]
    names = {index: str(source[index].get("key", index)) for index in set(repeats.values())}
    return {index: names[original] for index, original in repeats.items()}


def _all(source: sources.Source, stretches: Sequence[_Stretch], make: Callable, workers: int, tell: Progress, word: str) -> None:
    """Calls `make` for the stretches for which it was not yet done."""
    left = [s for s in stretches if not (s.found if make is _Stretch.find else s.written)]
    total = stretches[-1].last
    done = total - sum(s.last - s.first for s in left)
    tell(done, total, word)
    if not workers or not left:
        counted = itertools.count(done + 1)
        for stretch in left:
            make(stretch, source, lambda: tell(next(counted), total, word))
        return
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", done)
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(left)), context, _start, (source, counter)) as pool:
        futures = [pool.submit(_work, make, stretch) for stretch in left]
        try:
            left_over = set(futures)
            while left_over:
                done_now, left_over = concurrent.futures.wait(left_over, 0.2, concurrent.futures.FIRST_COMPLETED)
                for future in done_now:
                    future.result()
                tell(counter.value, total, word)
        except concurrent.futures.process.BrokenProcessPool as error:
            raise errors.InfrastructureError("a worker was killed, perhaps for want of memory; the same command goes on") from error
        except BaseException:
            counter.value = _STOP
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    tell(total, total, word)


_worker: tuple[sources.Source, Any] | None = None
"""In a worker: the source, and the counter of all workers."""


def _start(source: sources.Source, counter: Any) -> None:
    global _worker
    _worker = source, counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells the user
    processes.end_with_parent()


def _work(make: Callable, stretch: _Stretch) -> None:
    assert _worker is not None
    source, counter = _worker

    def count() -> None:
        with counter.get_lock():
            counter.value += 1
            if counter.value < 0:
                raise KeyboardInterrupt

    make(stretch, source, count)


def _finish(
    work: Path, target: str, stretches: Sequence[_Stretch], resumed: int, present: Callable[[Result], None]
) -> Result:
    """Names the shards that hold anything; can be interrupted and done again."""
    summaries = [json.loads(stretch.facts.read_text()) for stretch in stretches]
    total = stats.Statistics()
    for summary in summaries:
        total.update(stats.Statistics.from_json(summary["statistics"]))
    failures = [failure for summary in summaries for failure in summary["failures"]]
    reasons = collections.Counter(failure["kind"] for failure in failures)
    lines = "".join(json.dumps({k: v for k, v in failure.items() if k != "kind"}) + "\n" for failure in failures)
    full = [i for i, summary in enumerate(summaries) if summary["statistics"]["examples"]]
    if not full:
        shutil.rmtree(work)
        raise errors.InputError(f"target {target}: none of {len(failures)} records can be used; the first: {failures[0]['reason']}")
    paths = records.shard_paths(target, len(full))
    for i, path in zip(full, paths, strict=True):
        if stretches[i].shard.exists():
            os.replace(stretches[i].shard, path)
    files.write_text(f"{target}.failures.jsonl", lines)
    result = Result(paths, total, reasons, resumed)
    present(result)
    sums = [f"{summaries[i]['sha256']}  {os.path.basename(path)}\n" for i, path in zip(full, paths, strict=True)]
    files.write_text(f"{target}.sha256", "".join(sums))
    shutil.rmtree(work)
    return result


def samples(paths: Sequence[str], count: int) -> Iterator[sources.Example]:
    """Examples of written shards, evenly over all of them."""
    written = sources.ArrayRecord(paths)
    for i in range(min(count, len(written))):
        yield written[i * len(written) // min(count, len(written))]
