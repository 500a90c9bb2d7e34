"""The shapes world as a data set: examples of each split, written as ArrayRecord shards with classes and a tokenizer.

A folder holds (shards are written by `vlm_jax.data.records`, as those of every data set):

    train-*.array_record          scenes of one to four objects of the 48 trained pairs
    val-*.array_record            fresh ones, in the same proportions
    held_out-*.array_record       one object of the 16 held-out pairs, each equally often
    trained_pairs-*.array_record  one object of the 48 trained pairs, each equally often, fresh
    relations-*.array_record      two objects; one caption each, true of no other scene of the split
    classes.json                  {"names": the 64 classes in the order of their labels, "templates": [...]}
    tokenizer.model               SentencePiece (pad 0, eos 1, unk 2, no bos) of the captions, questions and answers
    manifest.json                 configuration, version, held-out pairs, counts

`relations` goes in fours: the same two objects left of, right of, above and below one another, so that a model which
reads only which objects there are finds the right caption one time in four.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import tqdm

from vlm_jax.data import records, vocabulary
from vlm_jax.data.shapes import clips, examples, language, world
from vlm_jax.data.shapes.examples import SPLITS, World
from vlm_jax.errors import InputError


def make(folder: str | os.PathLike, config: World, workers: int = 0) -> Path:
    """Writes the data set to `folder`, which appears when it is whole, and returns it.

    workers: processes that render beside this one (0: this one renders); the bytes do not depend on it.
    Raises InputError where the folder is there already and not empty, or its parent cannot be written.
    """
    folder = Path(folder).absolute()
    with _locked(folder):
        return _make(folder, config, workers)


def ensure(folder: str | os.PathLike | None, config: World, workers: int = 0) -> Path:
    """The folder of a data set, made on first use; processes that ask at once wait for the one that makes it.

    folder: None for `cache_folder(config)`. Raises InputError where another data set lies in the folder.
    """
    folder = Path(folder).absolute() if folder is not None else cache_folder(config)
    if not _is_made(folder, config):
        with _locked(folder):
            if not _is_made(folder, config):
                _make(folder, config, workers)
    return folder


def cache_folder(config: World) -> Path:
    """`shapes-<hash of configuration and code>` below $VLM_JAX_CACHE, or below ~/.cache/vlm_jax."""
    root = os.environ.get("VLM_JAX_CACHE") or Path.home() / ".cache" / "vlm_jax"
    text = json.dumps(dataclasses.asdict(config), sort_keys=True) + version()
    return Path(root).absolute() / f"shapes-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@functools.cache
def version() -> str:
    """A hash of this package's code: a data set made by other code is made anew."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _make(folder: Path, config: World, workers: int) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"folder {folder}: is there already; name a new one")
    for left_by_a_killed_run in folder.parent.glob(f".{folder.name}.unfinished-*"):
        shutil.rmtree(left_by_a_killed_run)
    unfinished = folder.with_name(f".{folder.name}.unfinished-{os.getpid()}")
    unfinished.mkdir()
    try:
        _write(unfinished, config, workers)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write(folder: Path, config: World, workers: int) -> None:
    counts = {split: config.size(split) for split in SPLITS}
    with (
        _pool(workers) as mapped,
        tqdm.tqdm(total=sum(counts.values()), desc="shapes", unit="scenes", mininterval=0.5) as progress,
    ):
        for split, count in ((split, count) for split, count in counts.items() if count):
            made = mapped(functools.partial(examples.example, config, split), range(count))
            shards = config.shards if split == "train" else 1
            records.write(str(folder / split), _counted(made, progress), shards)
    (folder / "tokenizer.model").write_bytes(_tokenizer(config))
    _write_json(folder / "classes.json", {"names": world.CLASSES, "templates": language.TEMPLATES})
    manifest = {
        "world": dataclasses.asdict(config),
        "version": version(),
        "counts": counts,
        "held_out_pairs": [world.CLASSES[label] for label in world.HELD_OUT],
    }
    _write_json(folder / "manifest.json", manifest)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def _pool(workers: int) -> Iterator:
    """A `map` that keeps the order, over processes where there are any."""
    if workers < 1:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield functools.partial(pool.imap, chunksize=64)


def _counted(made: Iterable[dict], progress: tqdm.tqdm) -> Iterator[dict]:
    for item in made:
        yield item
        progress.update()


def _tokenizer(config: World) -> bytes:
    """A SentencePiece model of what the world says about up to 4,000 scenes and clips of all sizes."""
    texts: list[str] = []
    for index in range(1_000):
        rng = world.generator(config.seed, "tokenizer", index)
        for count in world.RADII:
            scene = world.scene(rng, world.draw_labels(rng, count, world.TRAINED))
            texts += language.captions(rng, scene, len(language.OPENINGS), detail=0.5)
            for item in language.questions(rng, scene, world.TRAINED):
                texts += [item["question"], item["answer"]]
            texts += language.clip_captions(scene, list(itertools.islice(itertools.cycle(clips.MOTIONS), count)))
    return vocabulary.train(texts, config.vocabulary)


def _is_made(folder: Path, config: World) -> bool:
    """True where this data set lies there whole; raises InputError where another one does."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return False
    found = json.loads(manifest.read_text())
    if (found["world"], found["version"]) != (dataclasses.asdict(config), version()):
        raise InputError(f"folder {folder}: holds a shapes world of other settings or code; name a new folder")
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds `<folder>.lock`, which the system releases with the process, whatever ends it."""
    import fcntl  # POSIX only, as the shards' reader

    path = folder.with_name(f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise InputError(f"folder {folder}: cannot be written ({error.strerror}); name another folder") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
