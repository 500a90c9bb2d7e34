"""A set of images with captions, embedded once, in which one searches by a text or by an image."""

import collections
import dataclasses
import itertools
import threading
import time
from typing import Any, Literal

import numpy as np

from vlm_jax.data import images as images_lib
from vlm_jax.data import sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base

HITS = 24
CAPTIONS = 5
_SIDE = 320
_LONGEST = 300
_THUMBNAILS = 512


class Stopped(Exception):
    """The index was closed while it was embedding."""


@dataclasses.dataclass(frozen=True)
class Hit:
    """An image of the set."""

    index: int
    score: float
    """Cosine with the query."""
    caption: str


class Index:
    """Embeds a set in a thread of its own; then answers. Any thread may ask; the devices work for one at a time."""

    def __init__(self, subject: base.Subject, data: str, limit: int = 0):
        """Opens the data.

        Args:
          limit: take only so many records; 0: all.

        Raises:
          InputError: as `base.open_records`.
        """
        self.data = data
        self.state: Literal["embedding", "ready", "failed"] = "embedding"
        self.error = ""
        self._subject = subject
        source, self.count = base.open_records(data, limit)
        self._source = _Counted(source)
        self._lock = threading.Lock()
        self._pictures: collections.OrderedDict[int, bytes] = collections.OrderedDict()
        self._thread = threading.Thread(target=self._prepare, name="index", daemon=True)
        shards = subject.compiled.mesh.shape["data"] * subject.compiled.mesh.shape["fsdp"]
        self._one = dataclasses.replace(subject, batch_size=shards, pieces=None)
        self._images = self._texts = np.zeros((0, 0), np.float32)
        self._captions: list[list[str]] = []
        self._sentences: list[str] = []

    def start(self) -> None:
        """Begins to embed."""
        self._thread.start()

    def close(self) -> None:
        """Stops embedding, where that is not done; what is embedded by then is kept as the subject's pieces are."""
        self._source.stopped = True
        if self._thread.ident is not None:
            self._thread.join(5)

    def wait(self) -> None:
        """Until it is ready, or has failed."""
        self._thread.join()

    def progress(self) -> dict[str, Any]:
        """How far it is."""
        done = self.count if self.state == "ready" else min(self._source.read, self.count)
        return {"state": self.state, "done": done, "total": self.count, "error": self.error}

    def by_text(self, text: str) -> list[Hit]:
        """The images with the highest cosines with a text."""
        return self._best(self._texts_of([text])[0])

    def by_image(self, data: bytes) -> tuple[list[Hit], list[tuple[str, float]], np.ndarray]:
        """The images and the captions closest to an encoded image, and its embedding.

        Raises:
          RecordError: it cannot be decoded, or has too many pixels.
        """
        pixels = self._subject.transform(data)
        with self._lock:
            (query,) = self._one.embed_images([pixels], "query")
        captions = []
        if len(self._sentences):
            scores = self._texts @ query
            captions = [(self._sentences[i], float(scores[i])) for i in _top(scores, CAPTIONS)]
        return self._best(query), captions, query

    def like(self, index: int) -> list[Hit]:
        """The images closest to one of the set, itself first."""
        if not 0 <= index < self.count:
            raise InputError(f"image {index}: there are {self.count:,}")
        return self._best(self._images[index])

    def classify(self, query: np.ndarray, labels: list[str]) -> list[tuple[str, float, float]]:
        """Labels with probability and cosine, best first: the softmax of the scaled cosines.

        Args:
          query: [e], the embedding of an image.
        """
        cosines = self._texts_of(labels) @ query
        logits = (self._subject.scale or 100.0) * cosines.astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        return [(labels[int(i)], float(shares[i]), float(cosines[i])) for i in np.argsort(-cosines, kind="stable")]

    def thumbnail(self, index: int) -> bytes:
        """A JPEG of an image of the set.

        Raises:
          InputError: there is no such image.
          RecordError: it cannot be decoded.
        """
        if not 0 <= index < self.count:
            raise InputError(f"image {index}: there are {self.count:,}")
        if index not in self._pictures:
            pixels = images_lib.decode(self._source.source[index]["image"], self._subject.transform.max_pixels)
            self._pictures[index] = base.thumbnail(pixels, _SIDE)
            while len(self._pictures) > _THUMBNAILS:
                self._pictures.popitem(last=False)
        return self._pictures[index]

    def _texts_of(self, texts: list[str]) -> np.ndarray:
        with self._lock:
            return self._one.embed_texts(texts, "query")

    def _best(self, query: np.ndarray) -> list[Hit]:
        scores = self._images @ query
        return [Hit(int(i), float(scores[i]), (self._captions[i] or [""])[0]) for i in _top(scores, HITS)]

    def _prepare(self) -> None:
        try:
            with self._lock:
                self._one.embed_texts(["a"], "first query")
                self._one.embed_images([np.zeros((self._subject.transform.size,) * 2 + (3,), np.uint8)], "first query")
                self._images = self._subject.embed_records(self._source, self.count, "images")
                self._captions = [_captions(self._source.source[i]) for i in range(self.count)]
                self._sentences = list(dict.fromkeys(itertools.chain.from_iterable(self._captions)))
                if self._sentences:
                    self._texts = self._subject.embed_texts(self._sentences, "captions")
            self.state = "ready"
        except Stopped:
            self.state = "failed"
        except Exception as error:
            self.state, self.error = "failed", str(error) or type(error).__name__
            print(f"error: {self.error}", flush=True)


class _Counted:
    """A source that counts what is read of it, and that can be stopped."""

    def __init__(self, source: sources.Source):
        self.source, self.read, self.stopped = source, 0, False
        self.fingerprint, self.paths, self.classes = source.fingerprint, source.paths, source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> sources.Example:
        if self.stopped:
            raise Stopped
        self.read += 1
        return self.source[index]

    def where(self, index: int) -> str:
        return self.source.where(index)


def _top(scores: np.ndarray, count: int) -> list[int]:
    """The indices of the highest scores, best first; the first of equals."""
    count = min(count, len(scores))
    order = np.argpartition(-scores, count - 1)[:count]
    return sorted(order.tolist(), key=lambda i: (-scores[i], i))


def _captions(example: sources.Example) -> list[str]:
    """Captions, or the name of the class, or the key; as text of a length that a page can show."""
    found = example.get("captions")
    found = [text for text in found if isinstance(text, str) and text.strip()] if isinstance(found, list) else []
    if not found and isinstance(example.get("name"), str):
        found = [example["name"]]
    return [text[:_LONGEST] for text in found]


def seconds_since(began: float) -> float:
    """To a tenth of a millisecond."""
    return round(time.perf_counter() - began, 4)
