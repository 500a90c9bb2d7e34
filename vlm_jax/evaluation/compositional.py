"""Compositional pairs: the right caption against hard negatives of nearly the same words (SugarCrepe, Winoground)."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from vlm_jax.data import pipeline, sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, figures, intervals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compositional(base.Evaluator):
    """Whether an image is nearer to its caption than to every hard negative; equal scores are wrong answers.

    SugarCrepe (Hsieh et al. 2023): a record has an image, its caption and `negatives`. `acc` is the share of images with the right
    caption, `acc_<category>` that of one category.

    Winoground (Thrush et al. 2022), where `pair` names a field: two records with the same value there are a pair, and the caption
    of each is the negative of the other. `text_acc` is the share of pairs in which both images get their captions, `image_acc` that
    in which both captions get their images, and `acc` that of both; by chance 1/4, 1/4 and 1/6.

    The blind number is what captions alone reach: of each record, the caption that is nearest to the mean of all other images, which
    shows the sentences that the model finds likely of any image. The table `by_category` has two simpler rules beside it: always the
    longer caption and always the shorter one, of equal ones half. A rule far above chance says that the negatives give themselves away.
    """

    data: str = ""
    """Shards with images, captions and hard negatives."""
    negatives: str = "negatives"
    """Field of a record with its wrong captions: a sentence or a list of them."""
    category: str = "category"
    """Field with the kind of the record, such as `swap_att`; records may lack it."""
    pair: str = ""
    """Field that two records of a pair share; empty: negatives stand in the records."""
    examples: int = 8
    """Misses and hits to show, of each so many."""

    task: ClassVar[str] = "image_caption_selection"

    def __call__(self, subject: base.Subject) -> base.Result:
        """Evaluates; every process of a run calls this and gets the same result.

        Raises:
          InputError: there are no records, a record lacks a caption or negatives, or pairs are not of two.
        """
        source, count = base.open_records(self.data, self.limit)
        records = [self._record(source[i]) for i in range(count)]
        partners = self._partners(records) if self.pair else None
        choices = [
            [record.caption, *(record.negatives if partners is None else [records[int(partners[i])].caption])]
            for i, record in enumerate(records)
        ]
        texts = list(dict.fromkeys(text for group in choices for text in group))
        place = {text: i for i, text in enumerate(texts)}
        text_embeddings = subject.embed_texts(texts, "captions and negatives")
        images = subject.embed_records(source, count, "images of captions")

        embedded = [text_embeddings[[place[text] for text in group]] for group in choices]
        scores = [own @ image for own, image in zip(embedded, images, strict=True)]
        others = images.astype(np.float64).sum(0) - images
        text_only = [own @ rest for own, rest in zip(embedded, others, strict=True)]
        lengths = [np.array([len(text) for text in group]) for group in choices]
        rules = {
            "right": np.array([_first_is_best(own) for own in scores]),
            "chance": np.array([1 / len(group) for group in choices]),
            "nearest to the mean image": np.array([_first_is_best(own) for own in text_only]),
            "longer caption": np.array([_share_of_first(own) for own in lengths]),
            "shorter caption": np.array([_share_of_first(-own) for own in lengths]),
        }
        own = np.array([place[record.caption] for record in records])
        if partners is None:
            found = _by_category(_groups(records), rules)
        else:
            found = _by_pair(partners, images, text_embeddings[own], rules)
        pairs = np.stack([np.arange(count), own], 1)
        return dataclasses.replace(
            found,
            tables={"by_category": _table(_groups(records), rules)},
            figures={"similarities": figures.similarities(images, text_embeddings, pairs)},
            examples=self._examples(subject, source, choices, scores, rules["right"]),
            note=f"{count:,} images, {len(texts):,} captions. {self.note}".strip(),
        )

    def _record(self, example: dict[str, Any]) -> "_Record":
        name = f"data {self.data!r}: record {example['key']!r}"
        captions = example["captions"]
        if not captions or not isinstance(captions[0], str):
            raise InputError(f"{name} has no caption; the right one is its first")
        category = str(example.get(self.category) or "")
        if self.pair:
            if example.get(self.pair) is None:
                raise InputError(f"{name} has no field {self.pair!r}, which names its pair; it has {sorted(example)}")
            return _Record(captions[0], (), category, str(example[self.pair]))
        negatives = example.get(self.negatives)
        negatives = [negatives] if isinstance(negatives, str) else negatives
        if not negatives or not isinstance(negatives, list | tuple) or not all(isinstance(t, str) for t in negatives):
            raise InputError(
                f"{name}: {self.negatives!r} must hold a wrong caption or a list of them, not {negatives!r:.80}; it has {sorted(example)}"
            )
        if captions[0] in negatives:
            raise InputError(f"{name}: {captions[0]!r:.80} is its caption and one of its {self.negatives}")
        return _Record(captions[0], tuple(negatives), category, "")

    def _partners(self, records: list["_Record"]) -> np.ndarray:
        """int [n]: the other record of each one's pair."""
        members = collections.defaultdict(list)
        for i, record in enumerate(records):
            members[record.pair].append(i)
        partners = np.empty(len(records), np.int64)
        for name, group in members.items():
            if len(group) != 2:
                raise InputError(f"{self.pair} {name!r} of {self.data}: {len(group)} records have it, a pair is two")
            partners[group] = group[::-1]
        return partners

    def _examples(
        self,
        subject: base.Subject,
        source: sources.Source,
        choices: list[list[str]],
        scores: list[np.ndarray],
        right: np.ndarray,
    ) -> list[base.Example]:
        shown = []
        for group, indices in (("misses", np.flatnonzero(~right)), ("hits", np.flatnonzero(right))):
            chosen = base.spread(indices, self.examples)
            for i, _, image in pipeline.read(source, subject.transform, indices=chosen):
                answers = tuple(
                    base.Entry(choices[i][k], score=float(scores[i][k]), verdict="wrong" if k else "right")
                    for k in np.argsort(-scores[i], kind="stable").tolist()[:5]
                )
                query = base.Entry(image=base.thumbnail(image))
                shown.append(base.Example(group, query, answers, base.Entry(choices[i][0])))
        return shown


@dataclasses.dataclass(frozen=True)
class _Record:
    caption: str
    negatives: tuple[str, ...]
    category: str
    pair: str


def _first_is_best(scores: np.ndarray) -> bool:
    return bool((scores[0] > scores[1:]).all())


def _share_of_first(scores: np.ndarray) -> float:
    """The chance of the first where one of the highest is taken at random."""
    best = scores == scores.max()
    return float(best[0] / best.sum())


def _groups(records: list[_Record]) -> dict[str, np.ndarray]:
    """bool [n] by category, all records first."""
    categories = np.array([record.category for record in records], object)
    named = sorted({record.category for record in records if record.category})
    return {"": np.ones(len(records), bool)} | {name: categories == name for name in named}


def _by_category(groups: Mapping[str, np.ndarray], rules: Mapping[str, np.ndarray]) -> base.Result:
    named = {f"acc_{name}" if name else "acc": group for name, group in groups.items()}

    def means(rule):
        return {name: float(rules[rule][group].mean()) for name, group in named.items()}

    return base.Result(
        metrics=means("right"),
        chance=means("chance"),
        intervals={name: intervals.of_mean(rules["right"][group].astype(np.float64)) for name, group in named.items()},
        blind=means("nearest to the mean image"),
    )


def _by_pair(
    partners: np.ndarray, images: np.ndarray, captions: np.ndarray, rules: Mapping[str, np.ndarray]
) -> base.Result:
    first = np.flatnonzero(partners > np.arange(len(partners)))

    def both(right):
        return right[first] & right[partners[first]]

    to_image = (images * captions).sum(1) > (images[partners] * captions).sum(1)
    text, image = both(rules["right"]), both(to_image)
    found = {"acc": text & image, "text_acc": text, "image_acc": image}
    return base.Result(
        metrics={name: float(right.mean()) for name, right in found.items()},
        chance={"acc": 1 / 6, "text_acc": 1 / 4, "image_acc": 1 / 4},
        intervals={name: intervals.of_mean(right.astype(np.float64)) for name, right in found.items()},
        blind={"text_acc": float(both(rules["nearest to the mean image"]).mean())},
    )


def _table(groups: Mapping[str, np.ndarray], rules: Mapping[str, np.ndarray]) -> base.Table:
    """Shares by category under each rule."""
    values = [[*(values[group].mean() for values in rules.values()), group.sum()] for group in groups.values()]
    rows = tuple(name or "all" for name in groups)
    return base.Table("category", "rule", rows, (*rules, "images"), np.array(values, np.float64))
