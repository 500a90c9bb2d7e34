"""Accuracy of answers to questions about images against those of ten people: VQAv2, OK-VQA, VizWiz, TextVQA.

Follows the evaluation code of the VQA challenge (Antol et al. 2015) with its slips, which are in the numbers of everybody: a mistyped
look-behind, a count of 32 where a flag was meant, `-` between words that vanishes where the answer has ` -` somewhere.
"""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from vlm_jax.errors import InputError

Normalization = Literal["official", "always"]
"""Official: answers are compared as they are written where all people wrote the same, else normalised; always: normalised."""

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_NUMBERS = {word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine ten".split())} | {"none": "0"}
_ARTICLES = frozenset(["a", "an", "the"])
_CONTRACTED = """
'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't shan't
she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
""".split()
_WHOLE = {word[:i] + word[i + 1 :]: word for word in _CONTRACTED for i, letter in enumerate(word) if letter == "'"}
_WHOLE["somebody'd"] = "somebodyd"


def normalize(answer: str) -> str:
    """Lower case, digits for the words of numbers, no articles, no punctuation, apostrophes where they belong.

    A mark is deleted everywhere where the answer has it beside a space, or a digit, a comma and a digit; else it becomes a space.
    """
    answer = _plain(answer)
    text = answer
    for mark in _MARKS:
        joined = f"{mark} " in answer or f" {mark}" in answer or _THOUSANDS.search(answer)
        text = text.replace(mark, "" if joined else " ")
    words = (_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", text, count=32).lower().split())
    return " ".join(_WHOLE.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(answer: str, people: Sequence[str], normalization: Normalization = "official") -> float:
    """The mean, over leaving out each of the people, of min(matches among the others / 3, 1).

    So 1, 2, 3 and 4 matches of ten give 0.3, 0.6, 0.9 and 1. People are told apart by their place, not by what they answered. Fewer
    than four people cannot give 1; a data set with one answer has exact match instead.

    Args:
      answer: the model's.
      people: their answers.
      normalization: "always" is what most other implementations do, and never lower.

    Raises:
      InputError: nobody answered.
    """
    if isinstance(people, str) or not len(people):
        raise InputError(f"people {people!r:.60}: give a list with at least one answer")
    answer, people = _plain(answer), [_plain(other) for other in people]
    if normalization == "always" or len(set(people)) > 1:
        answer, people = normalize(answer), [normalize(other) for other in people]
    matches, count = sum(other == answer for other in people), len(people)
    return (matches * min((matches - 1) / 3, 1) + (count - matches) * min(matches / 3, 1)) / count


def accuracies(
    answers: Sequence[str], people: Sequence[Sequence[str]], normalization: Normalization = "official"
) -> np.ndarray:
    """The accuracy of each answer, float64 [n]; their mean is that of the model, `intervals.of_mean` has its interval.

    Args:
      answers: one for each question.
      people: the answers of people to each question.

    Raises:
      InputError: there are no answers, or not one list of people's for each.
    """
    if len(answers) != len(people) or not len(answers):
        raise InputError(f"answers {len(answers)}, people {len(people)}: give one list of people's answers for each answer")
    return np.array([accuracy(answer, own, normalization) for answer, own in zip(answers, people, strict=True)])


def _plain(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()
