"""What streams with texts have in common: a vocabulary, trained on their texts where one is asked for, and kept with a checkpoint."""

import abc
import dataclasses
from typing import Any, ClassVar, Self

from vlm_jax.data import text, vocabulary


class Tokenized(abc.ABC):
    """A stream whose texts become tokens; a dataclass."""

    stream: ClassVar[str]
    train: str
    tokenizer: text.Tokenizer

    @abc.abstractmethod
    def open(self, pattern: str, field: str) -> Any:
        """The source that a pattern names; `captions` of its records are what a vocabulary is trained on."""

    def prepared(self) -> Self:
        """The same stream with a vocabulary that exists: where `tokenizer.path` asks for one, it is trained on the texts.

        Raises:
          InputError: `captions:` without a number, or what the files or the training raise.
        """
        size = vocabulary.size_asked(self.tokenizer.path)
        if size is None:
            return self
        path = vocabulary.of_captions(self.open(self.train, "train"), size)
        return self._with(dataclasses.replace(self.tokenizer, path=path))

    def keep(self, folder: str) -> None:
        """Copies into a run's folder what a checkpoint needs of the stream: the vocabulary."""
        self.tokenizer.keep(folder, self.stream)

    def kept(self, folder: str) -> Self:
        """The stream with what `keep` copied."""
        return self._with(self.tokenizer.kept(folder, self.stream))

    def _with(self, tokenizer: text.Tokenizer) -> Self:
        stream: Any = self
        return dataclasses.replace(stream, tokenizer=tokenizer)
