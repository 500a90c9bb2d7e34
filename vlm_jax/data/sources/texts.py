"""Texts: what files hold of text, for models that read nothing else.

Text files (`.txt`, `.md`, also packed with gzip), the documents of `documents` without their images, and the captions of any source of
pairs. A record is a file, a document or an example, and has a list of texts.
"""

import gzip
import re
from collections.abc import Sequence
from typing import Literal, Protocol

from vlm_jax import errors
from vlm_jax.data import places, records, sources
from vlm_jax.data.sources import base, documents, patterns

Read = Literal["documents", "captions"]
"""What a pattern names: text files and documents, or a source of pairs, of which the captions are taken."""
Unit = Literal["file", "paragraph", "line"]
"""What a text file has: one text; one between empty lines; one a line."""
LARGEST = 2**30
"""Bytes of a text file above which it is not read."""
SUFFIXES = (".txt", ".md", ".txt.gz", ".md.gz")
_EMPTY_LINES = re.compile(r"\n\s*\n")


class Texts(Protocol):
    """A sequence of records with texts. It can be pickled, and then opens its files again."""

    fingerprint: str
    """Equal fingerprints mean the same texts in the same order."""
    paths: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> list[str]:
        """The texts of a record; raises RecordError for one that cannot be used, IndexError outside."""
        ...

    def where(self, index: int) -> str:
        """File and place, for messages."""
        ...


def open_texts(pattern: str, field: str = "data", read: Read = "documents", unit: Unit = "file") -> Texts:
    """The texts that a pattern names.

    Raises:
      InputError: as `patterns.expand`, `documents.open_documents` or `sources.open_source`; text files beside others.
    """
    if read == "captions":
        return Captions(sources.open_source(pattern, field))
    paths = patterns.expand(pattern, field)
    of_text = [path for path in paths if path.lower().endswith(SUFFIXES)]
    if not of_text:
        return Documents(documents.open_documents(pattern, field))
    if len(of_text) < len(paths):
        raise errors.InputError(f"{field} {pattern}: text files and others in one source; give one kind")
    return TextFiles(paths, unit)


class TextFiles:
    """Text files in UTF-8; a record is a file."""

    def __init__(self, paths: Sequence[str], unit: Unit):
        self.paths = list(paths)
        self.unit: Unit = unit
        self.fingerprint = base.fingerprint(paths, [1] * len(paths))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> list[str]:
        """Raises RecordError for a file that is too large or is no text, InfrastructureError where the disk fails."""
        try:
            with places.opened(self.paths[index]) as file:
                data = (gzip.open(file) if self.paths[index].endswith(".gz") else file).read(LARGEST + 1)
            if len(data) > LARGEST:
                raise ValueError(f"more than {LARGEST:,} bytes; split it")
            words = data.decode("utf-8-sig").replace("\r\n", "\n")
        except (ValueError, EOFError, gzip.BadGzipFile) as error:
            raise records.RecordError(f"{self.where(index)}: {error}") from error
        except OSError as error:
            raise base.unusable(self.where(index), error) from error
        return split(words, self.unit)

    def where(self, index: int) -> str:
        """The file."""
        return self.paths[index]


class Documents:
    """Documents without their images: one text each, or none."""

    def __init__(self, opened: documents.Documents):
        self._documents = opened
        self.fingerprint, self.paths, self.where = opened.fingerprint, opened.paths, opened.where

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> list[str]:
        """Raises RecordError as the documents."""
        return ["\n\n".join(words)] if (words := [item for item in self._documents[index].items if isinstance(item, str)]) else []


class Captions:
    """The captions of examples, each a text."""

    def __init__(self, source: sources.Source):
        self._source = source
        self.fingerprint, self.paths, self.where = source.fingerprint, source.paths, source.where

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> list[str]:
        """Raises RecordError for an example that cannot be read, or has something else in their place."""
        found = self._source[index].get("captions", [])
        if not isinstance(found, list | tuple) or not all(isinstance(caption, str) for caption in found):
            raise records.RecordError(f"{self.where(index)}: its captions are not a list of strings")
        return [caption for caption in found if caption.strip()]


def split(text: str, unit: Unit) -> list[str]:
    """The texts of a text file; empty ones are left out."""
    parts = {"file": lambda: [text], "paragraph": lambda: _EMPTY_LINES.split(text), "line": text.splitlines}[unit]()
    return [part.strip() for part in parts if part.strip()]
