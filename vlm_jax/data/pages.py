"""Pages: documents of text and images, packed into rows of a fixed number of tokens and images.

The fields of a batch of `b` rows with `t` tokens and `n` images:

    tokens          int32 [b, t]            text, and one token of `image_id` where an image stands; padding after the last piece
    segments        int32 [b, t]            which piece of a document a token is of, from 1; 0: padding. Attention stays within a segment
    positions       int32 [b, t]            places in the piece, from 0
    image_index     int32 [b, t]            the image that a token looks at, n + 1 for image n of the row; 0: none
    loss_weights    float32 [b, t]          of a token as what is to be predicted: 0 for the first of a segment, images and padding
    images          uint8 [b, n, h, w, 3]   in order; zeros where there is none
    image_segments  int32 [b, n]            the segment of an image; 0: there is none
    example         int32 [b]               the number of the row in the plan, see `packing`

An image that cannot be decoded is blank: zeros, of segment 0, and what would look at it looks at none; nothing else changes.
"""

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import grain
import numpy as np

from vlm_jax import errors
from vlm_jax.data import bad_records, batches, images, packing, pipeline, records, text, tokenized
from vlm_jax.data.sources import documents

_RECENT = 64
"""Documents whose tokens a process remembers: pieces of a long one come apart."""


@dataclasses.dataclass(frozen=True)
class Pages(tokenized.Tokenized):
    """Interleaved documents. The tokens of a row are `tokenizer.length`."""

    stream: ClassVar[str] = "pages"

    train: str
    """Training documents: .jsonl, .tar or .array_record files by braces, lists and globs. See docs/data.md."""
    val: str
    """Validation documents, in the same form; empty: none."""
    tokenizer: text.Tokenizer
    image: images.Transform
    images: int = 5
    """Images of a row, at most."""
    next_image: float = 0.0
    """Probability that the tokens of a piece look at the image that comes next, and not at the last one before (Flamingo: 0.5)."""
    loss: Literal["text", "seeing"] = "text"
    """Which tokens are to be predicted: all text, or what looks at an image."""
    batch_size: int = 0
    """Rows in a global batch of this stream; 0: the run's batch size."""
    bad_records: float = 0.01
    """Share of the documents, and of the images, that may be unusable before the run stops. Until then such documents are left out and such
    images blank."""

    def __post_init__(self):
        if self.images < 1:
            raise errors.InputError(f"data.images {self.images}: rows without images are no pages; at least 1 is needed")
        if not 0 <= self.next_image <= 1:
            raise errors.InputError(f"data.next_image {self.next_image}: a probability, from 0 to 1")
        if not 0 <= self.bad_records <= 1:
            raise errors.InputError(f"data.bad_records {self.bad_records}: a share, from 0 to 1")

    @property
    def form(self) -> packing.Form:
        """What a row is made of."""
        return packing.Form(self.tokenizer, self.images)

    def open(self, pattern: str, field: str) -> "_Texts":
        """The texts of documents that a pattern names, as captions."""
        return _Texts(documents.open_documents(pattern, field))

    def describe(self) -> pipeline.Description:
        """Opens everything the stream needs, and makes its plan.

        Raises:
          InputError: a missing or damaged file or tokenizer, or too many documents that cannot be used.
        """
        tokenizer, packed = self.tokenizer.load(), _packed(self)
        return pipeline.Description(
            vocab_size=tokenizer.vocab_size,
            length=tokenizer.length,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            image_size=self.image.size,
            train_records=len(packed),
            val_records=len(documents.open_documents(self.val, "val")) if self.val else 0,
            fingerprint=packed.fingerprint,
            images=self.images,
            image_id=self.form.image_id,
            chunk_end_id=self.form.chunk_end_id,
        )

    def fields(self) -> batches.Fields:
        """Of a row, known without data."""
        tokens, size = (self.tokenizer.length,), self.image.size
        return {
            "tokens": (tokens, "int32"),
            "segments": (tokens, "int32"),
            "positions": (tokens, "int32"),
            "image_index": (tokens, "int32"),
            "loss_weights": (tokens, "float32"),
            "images": ((self.images, size, size, 3), "uint8"),
            "image_segments": ((self.images,), "int32"),
            "example": ((), "int32"),
        }

    def examples(self, seed: int) -> batches.Examples:
        """Rows by position; positions beyond the first epoch are the following ones, shuffled anew."""
        order, draws = np.random.SeedSequence(seed).generate_state(2)
        packed = _packed(self)
        rows = grain.MapDataset.range(len(packed)).shuffle(seed=int(order)).random_map(_LoadRow(self), seed=int(draws))
        plan = packed.plan
        shares = {
            "fill": plan.tokens / (len(plan) * self.tokenizer.length),
            "image_fill": plan.images / (len(plan) * self.images),
        }
        allowance = bad_records.Allowance(self.bad_records, per_example=max(plan.images, 1) / len(plan))
        return batches.Examples(rows, {"": allowance}, lambda count: shares | {"epochs": count / len(plan)})


def image_index(is_image: np.ndarray, look: Literal["previous", "next"]) -> np.ndarray:
    """int32[t]: the image that each token of a piece looks at, from 1; 0: none.

    previous: the last one up to the token; next: the first one from the token on. An image's own token looks at it.
    """
    before = np.cumsum(is_image, dtype=np.int32)
    if look == "previous":
        return before
    after = before + ~is_image
    return np.where(after <= is_image.sum(), after, 0)


class _Packed:
    """The rows of a stream: a source of what a row is made of."""

    def __init__(self, pages: Pages):
        self.pages = pages
        self.documents = documents.open_documents(pages.train, "train")
        self.plan = packing.plan(self.documents, pages.form)
        self.fingerprint = (
            f"{self.documents.fingerprint}, packed into {len(self.plan)} rows of {pages.tokenizer.length} tokens and {pages.images} images"
        )
        packing.refuse_bad(self.documents, self.plan, pages.bad_records, "pages")
        if not len(self.plan):
            raise errors.InputError(f"train {pages.train}: its {len(self.documents)} documents are all empty")
        self.document = functools.lru_cache(_RECENT)(self._document)
        """Items that are images, and the tokens, of a document; remembered."""

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """The pieces of a row: document, tokens, images, number of the first. Raises RecordError where a document was damaged since."""
        pieces = []
        for index, start, stop, first, last in self.plan.row(row).tolist():
            found, ids = self.document(index)
            if len(ids) < stop or len(found) < last:
                raise records.RecordError(f"{self.documents.where(index)}: has changed since rows were made of it; start the run anew")
            pieces.append((index, ids[start:stop], found[first:last], first))
        return {"key": str(row), "pieces": pieces}

    def where(self, row: int) -> str:
        """The first document of a row, for messages."""
        return self.documents.where(int(self.plan.row(row)[0, 0]))

    def _document(self, index: int) -> tuple[list[documents.Image], np.ndarray]:
        document = self.documents[index]
        return [item for item in document.items if not isinstance(item, str)], self.pages.form.tokens(document)


@functools.lru_cache(4)
def _packed(pages: Pages) -> _Packed:
    return _Packed(pages)


@dataclasses.dataclass(frozen=True)
class _LoadRow(grain.transforms.RandomMap):
    pages: Pages

    def random_map(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        packed = _packed(self.pages)
        return bad_records.replaced(packed, index, functools.partial(self._row, packed=packed, rng=rng), rng)

    def _row(self, example: dict[str, Any], index: int, packed: _Packed, rng: np.random.Generator) -> dict[str, Any]:
        pages, form = self.pages, self.pages.form
        length, size = pages.tokenizer.length, pages.image.size
        draws = rng.random(len(example["pieces"]))
        seeds = rng.integers(2**63, size=pages.images)
        row: dict[str, Any] = packing.laid_out([ids for _, ids, _, _ in example["pieces"]], length, pages.tokenizer.load().pad_id)
        row["image_index"] = np.zeros(length, np.int32)
        row["images"] = np.zeros((pages.images, size, size, 3), np.uint8)
        row["image_segments"] = np.zeros(pages.images, np.int32)
        row["example"] = np.array(index, np.int32)
        at, slot, bad = 0, 0, []
        for segment, (document, ids, found, first) in enumerate(example["pieces"], start=1):
            own = slice(at, at + len(ids))
            is_image = ids == form.image_id
            looks = image_index(is_image, "next" if draws[segment - 1] < pages.next_image else "previous")
            looks = np.where(looks > 0, looks + slot, 0)
            for number, read in enumerate(found):
                try:
                    row["images"][slot] = pages.image(read(), np.random.default_rng(seeds[slot]))
                    row["image_segments"][slot] = segment
                except records.RecordError as error:
                    where = f"{packed.documents.where(document)}, image {first + number}"
                    bad.append(bad_records.BadRecord(document, where, "", str(error), instead="it is blank"))
                    looks[looks == slot + 1] = 0
                slot += 1
            row["image_index"][own] = looks
            row["loss_weights"][own] *= ~is_image & ((looks > 0) if pages.loss == "seeing" else True)
            at += len(ids)
        return row | ({bad_records.FIELD: {"": tuple(bad)}} if bad else {})


class _Texts:
    """The texts of documents as captions, for a vocabulary of them."""

    def __init__(self, opened: documents.Documents):
        self._documents, self.fingerprint = opened, opened.fingerprint

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"captions": [item for item in self._documents[index].items if isinstance(item, str)]}
