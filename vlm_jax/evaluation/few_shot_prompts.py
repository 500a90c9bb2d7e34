"""Prompts that show a model how others were done: examples with answers, then the one that is asked (Alayrac et al. 2022, appendix A.2).

    <image>Question: what animal is this? Answer: dog<EOC><image>Question: how many cats? Answer:

Examples come from data of support, never from what is asked: an example whose image is that of the query is not shown. They are drawn at
random, or are those most similar to the query (RICES, Yang et al. 2022), the most similar one last. With 0 examples the model still
sees the texts of two, without their images, so that it knows the form of an answer.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from vlm_jax.data import text as text_lib
from vlm_jax.errors import InputError

IMAGE, CHUNK_END = "<image>", "<EOC>"
TEXT_ONLY = 2
"""Examples whose texts are shown where no example is."""
_ANSWER = "{answer}"


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A text, and the image that it is about."""

    text: str
    image: int | None
    """Its number, in whatever the prompts take their images from; None: none is shown."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Examples with answers, and a query that ends before its answer."""

    examples: tuple[Chunk, ...]
    query: Chunk

    @property
    def images(self) -> list[int]:
        """The numbers of the images, in order."""
        return [chunk.image for chunk in (*self.examples, self.query) if chunk.image is not None]

    @property
    def shots(self) -> int:
        """Examples that are shown with their images."""
        return sum(chunk.image is not None for chunk in self.examples)

    def __str__(self) -> str:
        closed = "".join(_shown(chunk) + CHUNK_END for chunk in self.examples)
        return closed + _shown(self.query)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A prompt as a model takes it."""

    ids: np.ndarray
    """int32[t]."""
    images: list[int]
    """The numbers of its images, in order."""
    left_out: int = 0
    """Examples that found no room."""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """From prompts to tokens."""

    tokenizer: text_lib.LoadedTokenizer
    image_id: int
    chunk_end_id: int

    def prompt(self, prompt: Prompt, length: int, answer: Sequence[int] = ()) -> Tokens:
        """A prompt of at most `length` tokens, with the answer's; where it has more, whole examples are left out, the first ones first.

        Raises:
          InputError: the query alone is longer.
        """
        begin = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        end = [*self._chunk(prompt.query), *answer]
        examples = [[*self._chunk(chunk), self.chunk_end_id] for chunk in prompt.examples]
        left_out = 0
        while len(begin) + sum(map(len, examples)) + len(end) > length:
            if not examples:
                raise InputError(f"prompts of {length} tokens have no room for {str(prompt.query.text)!r:.60} and its answer")
            del examples[0]
            left_out += 1
        images = [chunk.image for chunk in (*prompt.examples[left_out:], prompt.query) if chunk.image is not None]
        return Tokens(np.array([*begin, *itertools.chain(*examples), *end], np.int32), images, left_out)

    def answer(self, template: str, fields: Mapping[str, str], answer: str) -> list[int]:
        """The tokens that complete a query: those of the whole chunk after the ones that it shares with the query, and its end.

        Raises:
          InputError: the answer, joined to the query, changes the query's tokens.
        """
        words = query(template, fields)
        asked = self.tokenizer.encode(words)
        whole = self.tokenizer.encode(filled(template, {**fields, "answer": answer}))
        same = next((i for i, (a, b) in enumerate(zip(asked, whole, strict=False)) if a != b), min(len(asked), len(whole)))
        if same < len(asked):
            raise InputError(f"answer {answer!r}: joined to {words!r:.60} it changes the tokens before it; take another prompt")
        return [*whole[same:], self.chunk_end_id]

    def _chunk(self, chunk: Chunk) -> list[int]:
        return [self.image_id] * (chunk.image is not None) + self.tokenizer.encode(chunk.text)


def filled(template: str, fields: Mapping[str, str]) -> str:
    """A template such as `Question: {question} Answer: {answer}` with its fields.

    Raises:
      InputError: a field is missing.
    """
    try:
        return template.format_map(fields)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"prompt {template!r}: {error} is none of the fields {', '.join(fields)}") from None


def query(template: str, fields: Mapping[str, str]) -> str:
    """The template up to its answer, without a space at its end.

    Raises:
      InputError: the template does not end with its answer.
    """
    if not template.endswith(_ANSWER):
        raise InputError(f"prompt {template!r}: must end with {_ANSWER}, which the model is to write")
    return filled(template.removesuffix(_ANSWER), fields).rstrip()


def prompt(
    template: str,
    examples: Sequence[tuple[int, Mapping[str, str]]],
    asked: tuple[int, Mapping[str, str]],
    *,
    shots: int,
) -> Prompt:
    """The prompt with so many examples.

    Args:
      examples: number of the image, and the fields of the template, with the answer, in the order in which they are shown; with 0 shots
        those whose texts alone are shown.
      asked: number of the image, and the fields.
    """
    chunks = [Chunk(filled(template, fields), number if shots else None) for number, fields in examples]
    return Prompt(tuple(chunks), Chunk(query(template, asked[1]), asked[0]))


def at_random(rng: np.random.Generator, allowed: np.ndarray, shots: int) -> list[int]:
    """Numbers of the examples to be shown, without one twice.

    Args:
      allowed: bool[n], those that may be shown.

    Raises:
      InputError: there are too few.
    """
    numbers = np.flatnonzero(allowed)
    if len(numbers) < shots:
        raise InputError(f"shots {shots}: only {len(numbers)} examples are not what is asked; give more support, or take fewer")
    return rng.permutation(numbers)[:shots].tolist()


def most_similar(query: np.ndarray, support: np.ndarray, allowed: np.ndarray, shots: int) -> list[int]:
    """Numbers of the examples with the most similar images, the most similar one last; of equal ones the first is the more similar.

    Args:
      query: float[d], of unit length.
      support: float[n, d], of unit length.
      allowed: as of `at_random`.

    Raises:
      InputError: as `at_random`.
    """
    if allowed.sum() < shots:
        at_random(np.random.default_rng(0), allowed, shots)
    cosines = np.where(allowed, support @ query, -np.inf)
    return np.argsort(-cosines, kind="stable")[:shots][::-1].tolist()


def ensemble(log_likelihoods: np.ndarray) -> np.ndarray:
    """[..., c]: the mean over prompts of what each says of c candidates, [p, ..., c]; logarithms are averaged, not probabilities."""
    return np.mean(log_likelihoods, axis=0)


def fingerprint(image: bytes) -> bytes:
    """Equal for images of the same bytes."""
    return hashlib.sha256(image).digest()


def _shown(chunk: Chunk) -> str:
    return (IMAGE if chunk.image is not None else "") + chunk.text
