"""What an evaluation gives back, and the model it is given: compiled once, fed exactly, on every device of the mesh."""

import collections
import dataclasses
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import jax
import numpy as np
import PIL.Image
import tqdm
from flax import nnx

from vlm_jax.data import images as images_lib
from vlm_jax.data import pipeline, sources
from vlm_jax.data import text as text_lib
from vlm_jax.errors import InputError
from vlm_jax.evaluation import embeddings
from vlm_jax.models import generation
from vlm_jax.training import sharding

P = jax.P
REMEMBERED = 2**29
"""Bytes of embeddings that an evaluation remembers for its other evaluators."""
ImageMethod = Literal["embed_image", "image_features"]
"""Of a model, from images to one vector each: L2-normalised embeddings, or features before the projection, not normalised."""
TextMethod = Literal["embed_text", "project_text"]
"""Of a model, from tokens to one vector each: L2-normalised embeddings, or the same before they are normalised."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Numbers over two named axes, such as a confusion matrix."""

    row_axis: str
    column_axis: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray
    """[rows, columns]."""


@dataclasses.dataclass(frozen=True)
class Histogram:
    """How values of several groups are distributed, such as cosines of matching and of other pairs."""

    axis: str
    edges: np.ndarray
    """[k + 1], ascending."""
    counts: dict[str, np.ndarray]
    """[k] by group."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Whether a probability of 0.8 is right in 80 of 100 cases; a bin without an example holds nan."""

    edges: np.ndarray
    """[k + 1], of the confidence."""
    confidence: np.ndarray
    """[k], mean confidence in a bin."""
    accuracy: np.ndarray
    """[k], share of right answers in it."""
    counts: np.ndarray
    """[k]."""
    error: float
    """Expected calibration error (Guo et al. 2017): mean of |accuracy - confidence|, weighted by counts."""
    scale: float
    """What cosines were multiplied with, 1 / temperature."""
    best_scale: float
    """The scale with the least cross-entropy on these examples."""


@dataclasses.dataclass(frozen=True)
class Scatter:
    """Embeddings in two dimensions."""

    method: str
    """How they got there, such as `PCA, 34 % of the variance`."""
    points: np.ndarray
    """[n, 2]."""
    groups: tuple[str, ...]
    """For each point, such as its class or its modality."""
    titles: tuple[str, ...] = ()
    """For each point what is said of it."""


@dataclasses.dataclass(frozen=True)
class Lines:
    """Values over a quantity that was swept, such as accuracy over the strength of a penalty."""

    x_axis: str
    y_axis: str
    lines: dict[str, list[tuple[float, float]]]
    """By name, ascending in x."""
    scale: Literal["linear", "log"] = "linear"
    """Of x."""
    chosen: float | None = None
    """The x that was taken."""


Figure = Histogram | Calibration | Scatter | Lines


@dataclasses.dataclass(frozen=True)
class Entry:
    """A text, an image or both, as a query or as one of its answers."""

    text: str = ""
    image: bytes = b""
    """An encoded thumbnail; see `thumbnail`."""
    score: float | None = None
    verdict: Literal["right", "wrong", "none"] = "none"


@dataclasses.dataclass(frozen=True)
class Example:
    """One question that the model was asked and what it answered, best first, to be looked at."""

    group: str
    """Heading under which the report shows it."""
    query: Entry
    answers: tuple[Entry, ...]
    expected: Entry = Entry()
    """The right answer, or one of them; shown where the answers do not hold one."""
    context: tuple[Entry, ...] = ()
    """What a prompt shows before it asks, in order; the query's text is then that of the whole prompt."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a model is given to write on from."""

    images: np.ndarray
    """uint8 [n, h, w, 3], as the transform makes them."""
    tokens: Sequence[int]
    """The begin token, or more of a text."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluator returns."""

    metrics: dict[str, float]
    tables: dict[str, Table] = dataclasses.field(default_factory=dict)
    examples: list[Example] = dataclasses.field(default_factory=list)
    chance: dict[str, float] = dataclasses.field(default_factory=dict)
    """What a model that ranks at random would reach, by the names of `metrics`."""
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    """Within which a metric lies with 95 % confidence over other examples of the same kind, by the names of `metrics`."""
    blind: dict[str, float] = dataclasses.field(default_factory=dict)
    """What is reached without looking, such as by always answering the most frequent class, by the names of `metrics`."""
    figures: dict[str, Figure] = dataclasses.field(default_factory=dict)
    note: str = ""
    """What was evaluated and how it was counted, in a sentence or two."""


def thumbnail(image: np.ndarray, side: int = 112) -> bytes:
    """A JPEG of an image, uint8 [h, w, 3], no side longer than `side`."""
    picture = PIL.Image.fromarray(image)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88, subsampling=0)
    return buffer.getvalue()


def spread(indices: np.ndarray, count: int) -> list[int]:
    """At most `count` of the indices, evenly from first to last: a sample that nobody chose."""
    places = np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)
    return [int(i) for i in np.asarray(indices)[places]]


def open_records(data: str, limit: int) -> tuple[sources.Source, int]:
    """A source and how many of its records take part: the first `limit`, or all for 0.

    Raises:
      InputError: no such shards, none with a record, or a negative limit.
    """
    if limit < 0:
        raise InputError(f"limit {limit}: give the number of records to take, or 0 for all")
    source = sources.open_source(data)
    if not len(source):
        raise InputError(f"data {data}: holds no records; name shards with at least one example")
    return source, min(len(source), limit or len(source))


class Compiled:
    """The embedding functions of one model on one mesh.

    Keep it as long as the run lasts: then the next interval compiles nothing.
    """

    def __init__(self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh):
        self.graphdef = graphdef
        self.mesh = mesh
        self.compilations = 0
        """Programs compiled so far: one for each method, batch shape and layout of the variables."""
        self._executables: dict[Any, Any] = {}

    def place(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Puts leaves that are not on the mesh yet on all of its devices; leaves that are stay as they are sharded."""
        devices = set(self.mesh.devices.flat)
        everywhere = jax.NamedSharding(self.mesh, P())

        def put(leaf):
            placed = isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices
            return leaf if placed else jax.device_put(leaf, everywhere)

        return jax.tree.map(put, variables)

    def embed(self, method: str, variables: Mapping[str, Any], rows: np.ndarray) -> jax.Array:
        """Embeddings of a global batch, on every device, from this process's rows of it.

        Args:
          method: a public method of the model from a batch to vectors, such as `embed_image` or `embed_text`.
          variables: all variables of the model, a nested dict of arrays on the mesh (see `place`).
          rows: those of `training.sharding.rows`, in that order.
        """
        batch = sharding.put_batch({"rows": rows}, self.mesh)["rows"]
        return self._run((method,), lambda model, batch: getattr(model, method)(batch), variables, batch)

    def generate(
        self,
        variables: Mapping[str, Any],
        rows: Mapping[str, np.ndarray],
        decoding: generation.Decoding,
        *,
        end_id: int,
        pad_id: int,
        key: jax.Array,
    ) -> generation.Generated:
        """What a model with a method `generate` writes to a global batch, on every device, from this process's rows of it.

        Args:
          variables: as of `embed`.
          rows: `images` [b, n, h, w, 3], `tokens` [b, t] and `lengths` [b], those of `training.sharding.rows`, in that order.
          key: for a strategy that draws.
        """

        def generate(model, batch, key):
            return model.generate(batch["images"], batch["tokens"], batch["lengths"], decoding, end_id=end_id, pad_id=pad_id, key=key)

        batch, key = sharding.put_batch(rows, self.mesh), self.place({"key": key})["key"]
        return self._run(("generate", decoding, end_id, pad_id), generate, variables, batch, key)

    def log_likelihood(self, variables: Mapping[str, Any], rows: Mapping[str, np.ndarray]) -> jax.Array:
        """What a model with a method `log_likelihood` says of the tokens of a global batch where `targets` is True, on every device.

        Args:
          variables: as of `embed`.
          rows: `images`, `tokens` [b, t] and `targets` [b, t], those of `training.sharding.rows`, in that order.
        """

        def log_likelihood(model, batch):
            return model.log_likelihood(batch["images"], batch["tokens"], batch["targets"])

        return self._run(("log_likelihood",), log_likelihood, variables, sharding.put_batch(rows, self.mesh))

    def _run(self, name: tuple[Any, ...], fn: Callable[..., Any], variables: Mapping[str, Any], *arguments: Any) -> Any:
        """`fn` of the model and the arguments, compiled once for each name and layout of all of them."""
        layout = tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in jax.tree.leaves((variables, arguments)))
        if (name, layout) not in self._executables:

            def run(variables, *arguments):
                return fn(nnx.merge(self.graphdef, variables), *arguments)

            with jax.set_mesh(self.mesh):
                function = jax.jit(run, out_shardings=jax.NamedSharding(self.mesh, P()))
                self._executables[name, layout] = function.lower(variables, *arguments).compile()
                self.compilations += 1
        return self._executables[name, layout](variables, *arguments)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """What every evaluator is told, beside what it needs itself. Subclasses say what they measure by being called with a subject."""

    data: str = ""
    """Shards to be tested on. Empty: the run's validation data."""
    limit: int = 0
    """Take only so many records of each data set from the start. 0: all."""
    every: int = 0
    """Steps from one evaluation to the next. 0: the run's eval_every."""
    note: str = ""
    """A sentence for the report, such as what a simpler model reaches."""

    task: ClassVar[str]
    """The field's name of what is measured, for the record."""

    def on_validation(self, stream: Any) -> "Evaluator":
        """The same on the validation data of a run's stream."""
        return dataclasses.replace(self, data=stream.val)

    def open(self, data: str, field: str) -> Any:
        """What a pattern names: a source of pairs, unless an evaluator is of something else.

        Raises:
          InputError: no such data.
        """
        return sources.open_source(data, field)

    def __call__(self, subject: "Subject") -> Result:
        """Evaluates; every process of a run calls this and gets the same result."""
        raise TypeError(f"{type(self).__name__} does not define __call__")


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model under evaluation with what it was trained with.

    In a run of several processes each of them calls the same methods in the same order; each feeds the rows that its
    devices hold and all of them get the whole result.
    """

    compiled: Compiled
    variables: Mapping[str, Any]
    """All variables of the model: a nested dict of arrays."""
    transform: images_lib.Transform
    """The evaluation form of the transform that the model was trained with."""
    tokenizer: text_lib.LoadedTokenizer
    batch_size: int
    """Examples at a time over all devices; taken up to the next multiple of the batch shards. Changes no result."""
    pieces: embeddings.Pieces | None = None
    """Where embeddings are kept on disk, for an evaluation that is interrupted; None: nowhere."""
    _embedded: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.batch_size < 1:
            raise InputError(f"batch_size {self.batch_size}: must be positive")
        mesh = self.compiled.mesh
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        object.__setattr__(self, "batch_size", -(-self.batch_size // shards) * shards)
        object.__setattr__(self, "variables", self.compiled.place(self.variables))

    @property
    def scale(self) -> float | None:
        """What the model multiplies its cosines with, 1 / temperature; None for a model that has no `log_scale`."""
        log_scale = self.variables.get("log_scale")
        return None if log_scale is None else float(np.exp(np.asarray(log_scale, np.float64)))

    def rows(self, total: int) -> list[int]:
        """Which of `total` examples this process feeds, in order; all of them in a run of one process."""
        return self._rows(range(0, total, self.batch_size), total)

    def _rows(self, firsts: Iterable[int], total: int) -> list[int]:
        own = sharding.rows(self.batch_size, self.compiled.mesh)
        return [first + int(r) for first in firsts for r in own if first + r < total]

    def embed_images(
        self, images: Iterable[np.ndarray], label: str = "images", method: ImageMethod = "embed_image"
    ) -> np.ndarray:
        """L2-normalised embeddings [n, e], or features [n, d], float32, in order. Every process passes all images.

        Args:
          images: uint8 [size, size, 3], as the transform makes them.
          label: heading of the progress bar.
          method: of the model.

        Raises:
          InputError: there is no image, or one of another shape.
        """
        images = list(images)
        return self._embed(method, lambda own: (images[i] for i in own), len(images), label)

    def embed_records(
        self, source: sources.Source, count: int, label: str = "images", method: ImageMethod = "embed_image"
    ) -> np.ndarray:
        """As `embed_images`, of the first `count` records of a source; a process decodes only those that it feeds.

        What was embedded before in this evaluation, by whichever evaluator, or kept by one that was interrupted, is not embedded
        again; such an array is read-only.
        """
        known = embeddings.of_records(source)
        content = known and known | {"transform": repr(self.transform)}

        def read(own: list[int]) -> Iterable[np.ndarray]:
            return (image for _, _, image in pipeline.read(source, self.transform, indices=own))

        return self._embed(method, read, count, label, content)

    def embed_texts(self, texts: Sequence[str], label: str = "texts", method: TextMethod = "embed_text") -> np.ndarray:
        """L2-normalised embeddings [n, e], or those before they are, float32, in order. Every process passes all texts.

        Raises:
          InputError: there is no text.
        """
        step = len(sharding.rows(self.batch_size, self.compiled.mesh))

        def read(own: list[int]) -> Iterable[np.ndarray]:
            parts = ([texts[i] for i in own[k : k + step]] for k in range(0, len(own), step))
            return (row for part in parts for row in self.tokenizer(part))

        return self._embed(method, read, len(texts), label, embeddings.of_texts(texts))

    def generate(
        self,
        read: Callable[[list[int]], Iterable[Prompt]],
        total: int,
        decoding: generation.Decoding,
        *,
        length: int,
        images: int = 1,
        label: str = "captions",
        seed: int = 0,
    ) -> list[str]:
        """What the model writes to each prompt, in order. Every process gets all of it.

        Args:
          read: from the examples that this process feeds to their prompts.
          length: tokens of the longest prompt.
          images: of each prompt.
          label: heading of the progress bar.
          seed: for a strategy that draws.

        Raises:
          InputError: the model writes nothing, or a prompt is longer than `length`, has no token or another number of images.
        """
        if not hasattr(nnx.merge(self.compiled.graphdef, self.variables), "generate"):
            raise InputError(f"{label}: this model writes no text; evaluate one that does, such as that of configs/coca_shapes.py")
        own, size = sharding.rows(self.batch_size, self.compiled.mesh), self.transform.size
        prompts, texts = iter(read(self.rows(total))), []
        silent = None if jax.process_index() == 0 else True
        with tqdm.tqdm(total=total, desc=label, leave=False, disable=silent) as bar:
            for first in range(0, total, self.batch_size):
                batch = {
                    "images": np.zeros((len(own), images, size, size, 3), np.uint8),
                    "tokens": np.full((len(own), length), self.tokenizer.pad_id, np.int32),
                    "lengths": np.ones(len(own), np.int32),
                }
                for i, index in enumerate(first + own[first + own < total]):
                    prompt = next(prompts)
                    batch["images"][i] = _checked(prompt.images, batch["images"].shape[1:], f"{label}: example {index}")
                    count = len(prompt.tokens)
                    if not 1 <= count <= length:
                        raise InputError(f"{label}: the prompt of example {index} has {count} tokens; 1 to {length} are possible")
                    batch["tokens"][i, :count], batch["lengths"][i] = prompt.tokens, count
                key = jax.random.fold_in(jax.random.key(seed), first)
                found = self.compiled.generate(
                    self.variables, batch, decoding, end_id=self.tokenizer.eos_id, pad_id=self.tokenizer.pad_id, key=key
                )
                written = np.asarray(found.tokens)[: total - first]
                texts += [self.tokenizer.decode(row) for row in written]
                bar.update(len(written))
        return texts

    def _embed(
        self,
        method: str,
        read: Callable[[list[int]], Iterable[np.ndarray]],
        total: int,
        label: str,
        content: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """Embeds, in order, what is not known yet.

        Args:
          read: from the examples that this process feeds to them.
          content: what tells these examples from others; None: they are not remembered.
        """
        if not total:
            raise InputError(f"{label}: there is nothing to embed; give data with at least one example")
        name = repr((method, content))
        known = self._embedded.get(name)
        if content is not None and known is not None and len(known) >= total:
            return known[:total]
        pieces = self.pieces if content is not None else None
        key = pieces.key({"method": method, "batch_size": self.batch_size, **content}) if pieces and content else ""
        found = pieces.read(key, total, self.batch_size) if pieces else []
        todo = dict.fromkeys(range(0, total, self.batch_size))
        for first, _ in found:
            del todo[first]
        rows: np.ndarray | None = None
        writer = embeddings.Writer(pieces, key)
        silent = None if jax.process_index() == 0 else True  # None: silent where stderr is not a terminal
        with tqdm.tqdm(total=total, initial=sum(len(batch) for _, batch in found), desc=label, leave=False, disable=silent) as bar, writer:
            for first, batch in itertools.chain(found, self._fed(method, read, list(todo), total, label)):
                rows = np.zeros((total, batch.shape[1]), np.float32) if rows is None else rows
                rows[first : first + len(batch)] = batch
                if first in todo:
                    writer.add(first, batch)
                    bar.update(len(batch))
        assert rows is not None, "there is at least one batch"
        if content is not None and "records" in content and rows.nbytes + sum(x.nbytes for x in self._embedded.values()) <= REMEMBERED:
            rows.setflags(write=False)
            self._embedded[name] = rows
        return rows

    def _fed(
        self, method: str, read: Callable[[list[int]], Iterable[np.ndarray]], firsts: Sequence[int], total: int, label: str
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Batches that begin at `firsts`, with their embeddings, float32 [k, e] for the k examples that there are."""
        size = self.transform.size
        of_text = method in get_args(TextMethod)
        shape, dtype = ((self.tokenizer.length,), np.int32) if of_text else ((size, size, 3), np.uint8)
        own = sharding.rows(self.batch_size, self.compiled.mesh)
        examples = iter(read(self._rows(firsts, total)))
        pending: collections.deque[tuple[int, jax.Array]] = collections.deque()
        for first in firsts:
            batch = np.zeros((len(own), *shape), dtype)
            for i, index in enumerate(first + own[first + own < total]):
                batch[i] = _checked(next(examples, None), shape, f"{label}: example {index}")
            pending.append((first, self.compiled.embed(method, self.variables, batch)))
            if len(pending) > 1:  # the host prepares the next batch while the devices work on this one
                yield _fetched(*pending.popleft(), total)
        for first, array in pending:
            yield _fetched(first, array, total)


def _fetched(first: int, array: jax.Array, total: int) -> tuple[int, np.ndarray]:
    return first, np.asarray(array, np.float32)[: total - first]


def _checked(example: np.ndarray | None, shape: tuple[int, ...], name: str) -> np.ndarray:
    if example is None:
        raise ValueError(f"{name} is missing: the iterator ended before the total that was given")
    if example.shape != shape:
        raise InputError(
            f"{name} has shape {tuple(example.shape)}, the model takes {shape}: use the transform and the tokenizer "
            "that its checkpoint was trained with"
        )
    return example
