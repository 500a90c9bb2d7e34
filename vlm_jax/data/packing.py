"""Packing: documents cut into pieces, and pieces put together into rows of a fixed number of tokens and images, once for a data set.

A document is one sequence of tokens, [begin] text <chunk end> <image> text ... <chunk end>, and is cut where a row is full. Pieces fill
rows by best fit, the largest first; tokens of different pieces never see one another, so it does not matter which of them share a row,
and all epochs have the same rows in another order. The plan is made in one pass over the documents, and kept; whatever process asks for
row r of a batch finds its pieces in it. Where rows hold no images, the pass keeps the tokens as well, [begin] text [end] of all texts end
to end, and no text is read again.
"""

import dataclasses
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import tqdm

from vlm_jax import errors
from vlm_jax.data import bad_records, kept, places, records, text
from vlm_jax.data.sources import documents, texts

_FEW = 2_000
"""Documents that one process reads sooner than others start."""
_TASK = 200
"""Documents that a process is given at a time."""
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Form:
    """What a row is made of."""

    tokenizer: text.Tokenizer
    """`length` is the number of tokens of a row."""
    images: int
    """Of a row, at most; 0: rows are of texts alone."""

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.tokenizer.length

    @property
    def image_id(self) -> int:
        """Of the token that stands for an image: the first beyond the vocabulary."""
        return self.tokenizer.load().vocab_size

    @property
    def chunk_end_id(self) -> int:
        """Of the token that ends a text before the next image, and a document: the second beyond the vocabulary."""
        return self.tokenizer.load().vocab_size + 1

    def tokens(self, document: documents.Document) -> np.ndarray:
        """int32[t]: all of a document; none where it is empty."""
        tokenizer = self.tokenizer.load()
        ids = [] if tokenizer.bos_id is None or not document.items else [tokenizer.bos_id]
        after_text = False
        for item in document.items:
            if isinstance(item, str):
                words = tokenizer.encode(item)
                ids += words
                after_text = after_text or bool(words)
            else:
                ids += [self.chunk_end_id] * after_text + [self.image_id]
                after_text = False
        return np.array(ids + [self.chunk_end_id] * after_text, np.int32)

    def text_parts(self, words: str) -> Iterator[list[int]]:
        """The tokens of a text where rows hold no images, [begin] words [end], a stretch at a time."""
        tokenizer = self.tokenizer.load()
        yield [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        for part in stretches(words):
            yield tokenizer.encode(part)
        yield [tokenizer.eos_id]

    def cut(self, ids: np.ndarray) -> Iterator[tuple[int, int]]:
        """Start and end of the pieces of a document.

        A piece ends where a row is full. Where its last image with the text after it would be torn, and at least three quarters of a
        row lie before that image, it ends there, so that the next piece begins with the image.
        """
        is_image = ids == self.image_id
        images = np.flatnonzero(is_image)
        chunks = images[~np.concatenate([[False], is_image[:-1]])[images]]  # the first of images in a row
        start = 0
        while start < len(ids):
            stop = min(start + self.length, len(ids))
            first = np.searchsorted(images, start)
            if first + self.images < len(images):
                stop = min(stop, int(images[first + self.images]))
            if stop < len(ids) and ids[stop] != self.image_id:
                last = chunks[np.searchsorted(chunks, stop) - 1] if len(chunks) and chunks[0] < stop else 0
                if last >= start + self.length * 3 // 4:
                    stop = int(last)
            yield start, stop
            start = stop


@dataclasses.dataclass(frozen=True)
class Plan:
    """The rows of a data set."""

    pieces: np.ndarray
    """int64[n, 5], row after row: document, start and end among its tokens (of texts: among those of all), first and last + 1 of its
    images."""
    ends: np.ndarray
    """int64[rows]: the pieces of the rows up to each."""
    tokens: int
    """Of all pieces."""
    images: int
    bad: int
    """Documents that cannot be used."""
    first_bad: int
    """The first of them; -1: none."""

    def row(self, number: int) -> np.ndarray:
        """The pieces of a row."""
        return self.pieces[self.ends[number - 1] if number else 0 : self.ends[number]]

    def __len__(self) -> int:
        return len(self.ends)


def plan(opened: documents.Documents, form: Form) -> Plan:
    """The plan of a data set, made on first use by as many processes as there are cores and kept in the cache folder.

    Raises:
      InputError: the cache folder cannot be written.
    """
    return _kept(opened, form, lambda: _planned(_mapped(_pieces, opened, form), len(opened), form))


@dataclasses.dataclass(frozen=True)
class Tokens:
    """All texts of a data set, each [begin] words [end], end to end."""

    ids: np.ndarray
    """int32[n], mapped."""
    ends: np.ndarray
    """int64[texts]: tokens up to the end of each."""
    bad: int
    """Records that cannot be used."""
    first_bad: int
    """The first of them; -1: none."""


def tokens(opened: texts.Texts, form: Form) -> Tokens:
    """The tokens of texts, made on first use by as many processes as there are cores and kept in the cache folder.

    Raises:
      InputError: the cache folder cannot be written.
    """

    def make() -> np.ndarray:
        parts, lengths, bad = [], [], []
        for (ids, own), unusable in _mapped(_text_tokens, opened, form):
            parts.append(ids)
            lengths += own
            bad += unusable
        _tell(bad, len(opened))
        head = [len(bad), bad[0][0] if bad else -1, len(lengths), *lengths]
        return np.concatenate([np.array(head, np.int32), *parts])

    whole = dataclasses.replace(form, tokenizer=dataclasses.replace(form.tokenizer, length=0))  # whatever the length of a row
    flat = kept.array("tokens", _name(opened, form.tokenizer, whole), make, np.int32)
    bad, first_bad, count = (int(value) for value in flat[:3])
    return Tokens(flat[3 + count :], np.cumsum(flat[3 : 3 + count], dtype=np.int64), bad, first_bad)


def plan_of_tokens(opened: texts.Texts, form: Form, made: Tokens) -> Plan:
    """The plan of texts whose tokens are there, kept like another.

    Raises:
      InputError: the cache folder cannot be written.
    """

    def make() -> np.ndarray:
        starts = np.concatenate([np.zeros(1, np.int64), made.ends])[:-1]
        counts = -(-(made.ends - starts) // form.length)
        document = np.repeat(np.arange(len(starts)), counts)
        first = starts[document] + (np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)) * form.length
        last = np.minimum(first + form.length, made.ends[document])
        none = np.zeros_like(first)
        return _filled(np.stack([document, first, last, none, none], 1), made.bad, made.first_bad, form)

    return _kept(opened, form, make)


def refuse_bad(opened: Any, made: Plan, share: float, name: str) -> None:
    """Refuses data of which more than this share cannot be used.

    Raises:
      InputError: more records or documents were bad, with the first of them and what is wrong with it.
    """
    bad, count = made.bad, len(opened)
    if bad <= share * count or (share and bad < bad_records.ENOUGH and bad < count):
        return
    try:
        opened[made.first_bad]
        why = opened.where(made.first_bad)
    except records.RecordError as error:
        why = str(error)
    raise errors.InputError(
        f"data.bad_records {share:g} of {name}: {bad:,} of {count:,} documents ({bad / count:.2%}) cannot be used, such as {why}. "
        "Mend them, or raise data.bad_records"
    )


def stretches(words: str, size: int = 10_000) -> Iterator[str]:
    """A text in parts of about `size` characters, cut behind a line or before a word: tokenizers are slow with long texts."""
    start = 0
    while start < len(words):
        stop = start + size
        line, word = words.find("\n", stop, stop + size), words.find(" ", stop, stop + size)
        if line >= 0:
            stop = line + 1
            while words[stop : stop + 1] == "\n":
                stop += 1
        elif word >= 0:
            stop = word
        yield words[start:stop]
        start = stop


def laid_out(pieces: Sequence[np.ndarray], length: int, pad_id: int) -> dict[str, np.ndarray]:
    """The tokens of a row, with the segments, positions and loss weights of pieces that are texts."""
    row: dict[str, np.ndarray] = {name: np.zeros(length, np.int32) for name in ("segments", "positions")}
    row |= {"tokens": np.full(length, pad_id, np.int32), "loss_weights": np.zeros(length, np.float32)}
    at = 0
    for segment, ids in enumerate(pieces, start=1):
        own = slice(at, at + len(ids))
        row["tokens"][own], row["segments"][own], row["positions"][own] = ids, segment, np.arange(len(ids))
        row["loss_weights"][at + 1 : at + len(ids)] = 1
        at += len(ids)
    return row


class _Opened(Protocol):
    """What is packed: documents, or records of texts."""

    fingerprint: str
    paths: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Bad = list[tuple[int, str]]
"""What cannot be used, with the reason."""


def _name(opened: _Opened, tokenizer: text.Tokenizer, form: Form) -> str:
    """All that tokens and plans follow from."""
    files = [(path if places.is_remote(path) else os.path.abspath(path), places.version(path)) for path in opened.paths]
    read = type(opened).__name__, getattr(opened, "unit", ""), opened.fingerprint
    return repr((_VERSION, files, read, form, places.version(tokenizer.load().config.path)))


def _kept(opened: _Opened, form: Form, make: Callable[[], np.ndarray]) -> Plan:
    flat = kept.array("packing", _name(opened, form.tokenizer, form), make)
    count, rows, tokens, images, bad, first_bad = (int(value) for value in flat[:6])
    return Plan(flat[6 : 6 + 5 * count].reshape(count, 5), flat[6 + 5 * count :][:rows], tokens, images, bad, first_bad)


def _planned(parts: Iterable[tuple[np.ndarray, Bad]], count: int, form: Form) -> np.ndarray:
    found, bad = [np.zeros((0, 5), np.int64)], []
    for pieces, unusable in parts:
        found.append(pieces)
        bad += unusable
    _tell(bad, count)
    return _filled(np.concatenate(found), len(bad), bad[0][0] if bad else -1, form)


def _filled(pieces: np.ndarray, bad: int, first_bad: int, form: Form) -> np.ndarray:
    """A plan as one array."""
    order, ends = fill(pieces[:, 2] - pieces[:, 1], pieces[:, 4] - pieces[:, 3], form.length, form.images)
    pieces = pieces[order]
    tokens, images = int((pieces[:, 2] - pieces[:, 1]).sum()), int((pieces[:, 4] - pieces[:, 3]).sum())
    return np.concatenate([np.array([len(pieces), len(ends), tokens, images, bad, first_bad], np.int64), pieces.ravel(), ends])


def _tell(bad: Bad, count: int) -> None:
    if bad:
        logging.getLogger(__name__).warning("%d of %d documents cannot be used and are left out, first %s", len(bad), count, bad[0][1])


def _mapped(work: Callable[..., Any], opened: _Opened, form: Form) -> Iterator[Any]:
    """`work` on all documents in order, a task at a time: what it found, and the unusable ones."""
    tasks = [range(start, min(start + _TASK, len(opened))) for start in range(0, len(opened), _TASK)]
    workers = min(len(tasks), os.cpu_count() or 1)
    if len(opened) <= _FEW or workers < 2:
        yield from (work(opened, form, task) for task in tasks)
        return
    with (
        multiprocessing.get_context("spawn").Pool(workers, _start, (work, opened, form)) as pool,
        tqdm.tqdm(total=len(opened), desc="packing", unit="documents", mininterval=1) as progress,
    ):
        for task, done in zip(tasks, pool.imap(_task, tasks), strict=True):
            yield done
            progress.update(len(task))


_worker: dict[str, Any] = {}
"""What a process of the pool works on."""


def _start(work: Callable[..., Any], opened: _Opened, form: Form) -> None:
    _worker.update(work=work, opened=opened, form=form)


def _task(task: range) -> Any:
    return _worker["work"](_worker["opened"], _worker["form"], task)


def _pieces(opened: documents.Documents, form: Form, task: Iterable[int]) -> tuple[np.ndarray, Bad]:
    found, bad = [], []
    for index in task:
        try:
            ids = form.tokens(opened[index])
        except records.RecordError as error:
            bad.append((index, str(error)))
            continue
        images = np.concatenate([[0], np.cumsum(ids == form.image_id)])
        found += [(index, start, stop, images[start], images[stop]) for start, stop in form.cut(ids)]
    return np.array(found, np.int64).reshape(-1, 5), bad


def _text_tokens(opened: texts.Texts, form: Form, task: Iterable[int]) -> tuple[tuple[np.ndarray, list[int]], Bad]:
    """The tokens of all texts end to end, and how many each has."""
    found, lengths, bad = [np.zeros(0, np.int32)], [], []
    for index in task:
        try:
            own = [[np.array(part, np.int32) for part in form.text_parts(words)] for words in opened[index]]
        except records.RecordError as error:
            bad.append((index, str(error)))
            continue
        found += [part for parts in own for part in parts]
        lengths += [sum(map(len, parts)) for parts in own]
    return (np.concatenate(found), lengths), bad


def fill(tokens: np.ndarray, images: np.ndarray, length: int, most_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts pieces into rows by best fit, those first that take most of a row.

    Pieces of one size are placed together, so that the work depends on the number of sizes and not on that of pieces.

    Args:
      tokens, images: of the pieces, none above what a row holds.

    Returns:
      int64[n] the pieces in the order of their rows, and int64[rows] how many of them the rows up to each have.
    """
    share = np.maximum(tokens * most_images, images * length)  # of a row, by what it has less of
    by_size = np.lexsort((np.arange(len(tokens)), -images, -tokens, -share))
    sizes = np.stack([tokens[by_size], images[by_size]], 1)
    borders = np.flatnonzero(np.any(np.diff(sizes, axis=0), axis=1)) + 1
    free: dict[tuple[int, int], list[np.ndarray]] = {}  # rows by what they have left
    count = np.zeros((length + 1, most_images + 1), np.int64)
    row_of, rows = np.empty(len(tokens), np.int64), 0
    for place, end in zip([0, *borders], [*borders, len(tokens)], strict=True):
        t, m = (int(size) for size in sizes[place]) if end else (0, 0)
        while place < end:
            fits = np.flatnonzero(count[t:, m:])
            if len(fits):
                room = (t + int(fits[0]) // (most_images + 1 - m), m + int(fits[0]) % (most_images + 1 - m))
                there = np.concatenate(free[room])
                chosen, free[room] = there[: end - place], [there[end - place :]]
                count[room] -= len(chosen)
            else:
                room = (length, most_images)
                chosen = rows + np.arange(max(1, t * (end - place) // length))
                rows += len(chosen)
            row_of[place : place + len(chosen)] = chosen
            place += len(chosen)
            rest = (room[0] - t, room[1] - m)
            free.setdefault(rest, []).append(chosen)
            count[rest] += len(chosen)
    return by_size[np.argsort(row_of, kind="stable")], np.cumsum(np.bincount(row_of, minlength=rows))
