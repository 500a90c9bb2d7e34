"""The shapes world as a data set: examples of each split, written as ArrayRecord shards with classes and a tokenizer.

A folder holds, all written through `vlm_jax.data.records`:

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
import io
import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import tqdm
from PIL import Image

from vlm_jax.data import records
from vlm_jax.data.shapes import clips, language, render, world
from vlm_jax.errors import InputError

SPLITS = ("train", "val", "held_out", "trained_pairs", "relations")


@dataclass(frozen=True)
class World:
    """How large a shapes data set is and what its pictures are; the same fields give the same bytes."""

    seed: int = 0
    """Every scene, caption and question follows from it."""
    image_size: int = 64
    """Height and width in pixels, 32 to 1024; objects grow with it."""
    one_object: int = 16_000
    """Training scenes of one object."""
    two_objects: int = 4_000
    """Training scenes of two objects, in a relation."""
    three_objects: int = 0
    """Training scenes of three objects."""
    four_objects: int = 0
    """Training scenes of four objects."""
    val: int = 512
    """Fresh scenes of trained pairs, in training's proportions. A split of 0 scenes is left out."""
    held_out: int = 1024
    """One-object images of the 16 held-out pairs; a multiple of 16."""
    trained_pairs: int = 960
    """Fresh one-object images of the 48 trained pairs; a multiple of 48."""
    relations: int = 256
    """Two-object scenes, each with a caption true of no other; a multiple of 4, at most 4,512."""
    captions: int = 4
    """Captions a scene, each in other words."""
    detail: float = 0.3
    """Share of captions that name more than shapes, colours and the relation: size, texture, position, background."""
    vocabulary: int = 256
    """Pieces of the tokenizer, 96 to 256; with 256 nearly every word is one piece, and two objects take at most 24."""
    shards: int = 4
    """Files of the training split; the other splits are one file each."""

    def __post_init__(self):
        """Raises InputError for what no data set can be made of."""
        if not 32 <= self.image_size <= 1024:
            raise InputError(f"image_size {self.image_size}: objects can be told apart from 32 to 1024 pixels")
        for name in (*_COUNTS, "val", "held_out", "trained_pairs", "relations", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} {getattr(self, name)}: is negative; give 0 or more")
        if sum(self.train_counts) < 1:
            raise InputError("one_object 0, two_objects 0, three_objects 0, four_objects 0: nothing to train on")
        for name, step in (("held_out", 16), ("trained_pairs", 48), ("relations", 4)):
            value = getattr(self, name)
            if value % step:
                raise InputError(f"{name} {value}: {step} does not divide it; {value // step * step} would do")
        if self.relations > _MAX_RELATIONS:
            raise InputError(f"relations {self.relations}: there are only {_MAX_RELATIONS} different ones")
        if not 1 <= self.captions <= len(language.OPENINGS):
            raise InputError(f"captions {self.captions}: a scene has 1 to {len(language.OPENINGS)}")
        if not 0 <= self.detail <= 1:
            raise InputError(f"detail {self.detail}: is a share, between 0 and 1")
        if not 96 <= self.vocabulary <= 256:
            raise InputError(f"vocabulary {self.vocabulary}: the world's words make 96 to 256 pieces")
        if not 1 <= self.shards <= sum(self.train_counts):
            raise InputError(f"shards {self.shards}: give 1 to the number of training scenes, {sum(self.train_counts)}")

    @property
    def train_counts(self) -> tuple[int, int, int, int]:
        """Training scenes by number of objects, from one."""
        return self.one_object, self.two_objects, self.three_objects, self.four_objects

    def size(self, split: str) -> int:
        """Number of examples of a split."""
        return sum(self.train_counts) if split == "train" else getattr(self, split)


_COUNTS = ("one_object", "two_objects", "three_objects", "four_objects")
_MAX_RELATIONS = 4 * (len(world.TRAINED) * (len(world.TRAINED) - 1) // 2)


def example(config: World, split: str, index: int) -> dict:
    """Example `index` of a split: what a record holds.

    "key", "image" (PNG), "masks" (PNG of one channel: k + 1 where object k is seen, 0 elsewhere), "captions", "label"
    (one object: its class among the 64), "scene" (size, background and, of each object, its attributes, centre, radius,
    angle, class, box [x0, y0, x1, y1] in pixels, x1 and y1 exclusive) and "questions".
    """
    rng = world.generator(config.seed, split, index)
    scene, labels = _scene(config, split, index, rng)
    drawn = render.render(scene)
    record = {
        "key": f"{split}-{index:07d}",
        "image": _png(drawn.image),
        "masks": _png((drawn.masks * np.arange(1, len(scene.objects) + 1, dtype=np.uint8)[:, None, None]).max(0)),
        "captions": [language.relation_caption(scene)]
        if split == "relations"
        else language.captions(rng, scene, config.captions, config.detail),
        "scene": {
            "height": scene.image_size,
            "width": scene.image_size,
            "background": scene.background,
            "objects": [_facts(scene, k, drawn.boxes[k].tolist()) for k in range(len(scene.objects))],
        },
        "questions": language.questions(rng, scene, labels),
    }
    if len(scene.objects) == 1:
        record["label"] = scene.objects[0].label
    return record


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
            examples = mapped(functools.partial(example, config, split), range(count))
            shards = config.shards if split == "train" else 1
            records.write(str(folder / split), _counted(examples, progress), shards)
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


def _counted(examples: Iterable[dict], progress: tqdm.tqdm) -> Iterator[dict]:
    for item in examples:
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
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=config.vocabulary,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _scene(config: World, split: str, index: int, rng: np.random.Generator) -> tuple[world.Scene, tuple[int, ...]]:
    """The scene of an example and the labels that its questions may name."""
    if split == "held_out":
        return world.scene(rng, [world.HELD_OUT[index % 16]], config.image_size), world.HELD_OUT
    if split == "trained_pairs":
        return world.scene(rng, [world.TRAINED[index % 48]], config.image_size), world.TRAINED
    if split == "relations":
        relation = tuple(world.RELATIONS)[index % 4]
        labels = _unordered_pairs(config.seed)[index // 4]
        return world.scene(rng, labels, config.image_size, relation), world.TRAINED
    objects = _object_counts(config, split)[index]
    labels = world.draw_labels(rng, objects, world.TRAINED)
    return world.scene(rng, labels, config.image_size), world.TRAINED


@functools.lru_cache(8)
def _object_counts(config: World, split: str) -> np.ndarray:
    """Number of objects of every scene of train or val, shuffled; in val as near the training shares as whole scenes."""
    edges = np.cumsum((0, *config.train_counts)) / sum(config.train_counts)
    repeats = np.diff(np.round(edges * config.size(split)).astype(int))
    rng = world.generator(config.seed, f"{split} objects", 0)
    return rng.permutation(np.repeat(np.arange(1, 5), repeats))


@functools.lru_cache(8)
def _unordered_pairs(seed: int) -> list[tuple[int, int]]:
    pairs = list(itertools.combinations(world.TRAINED, 2))
    rng = world.generator(seed, "relations objects", 0)
    return [pairs[i] for i in rng.permutation(len(pairs))]


def _facts(scene: world.Scene, index: int, box: list[int]) -> dict:
    thing = scene.objects[index]
    return {
        "shape": thing.shape,
        "colour": thing.colour,
        "size": thing.size,
        "texture": thing.texture,
        "position": scene.position(index),
        "label": thing.label,
        "center": [thing.x, thing.y],
        "radius": thing.radius,
        "angle": thing.angle,
        "box": box,
    }


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


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
