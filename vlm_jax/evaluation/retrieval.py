"""Retrieval between images and their captions: recall at 1, 5 and 10 and ranks, both ways."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from vlm_jax.data import pipeline, sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, figures, ranking, recalls


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval(base.Evaluator):
    """Finds captions for images (text retrieval) and images for captions (image retrieval).

    - `..._recall@k` is the field's R@k, a hit rate: image to text is a hit at k where any of the image's own captions is among
      the first k; text to image where the caption's image is.
    - `text_retrieval_true_recall@k` is the share of an image's own captions that are among the first k. (A caption has one
      image, for which both are the same.)
    - `..._mean_rank` and `..._median_rank` are those of the best own candidate, from 1. `rsum` is the sum of the six R@k in
      percent, at most 600.

    The rank is the number of candidates that score strictly higher, so ties count for the model, as the field reports it;
    where ties change a number, the table `ties` has it with ties counted against the model, too.

    The same sentence on two images makes two captions. Each counts with its own image as the only right one; as their
    scores are equal by construction (a sentence is embedded once), neither pushes the other down.

    Intervals are over other images: an image is drawn with its captions.
    """

    data: str = ""
    """Shards with images and captions."""
    captions: Literal["all", "first", "first_five"] = "all"
    """Which captions of an image take part; COCO's protocol takes the first five."""
    fold: int = 0
    """Images among which is searched at a time; numbers are means over such folds. 0: all. COCO's 1k protocol: 1000 of 5,000."""
    examples: int = 6
    """Queries to show, so many of each direction, half of them misses; where there are folds, of the first."""

    task: ClassVar[str] = "zeroshot_retrieval"

    def __call__(self, subject: base.Subject) -> base.Result:
        """Evaluates; every process of a run calls this and gets the same result.

        Raises:
          InputError: shards are missing, there are no records, a record has no caption, or folds do not come out even.
        """
        source, count = base.open_records(self.data, self.limit)
        fold = self.fold or count
        if fold < 0 or count % fold:
            raise InputError(
                f"fold {self.fold}: does not divide {count:,} images into equal parts; choose another, or a limit that it divides"
            )
        captions = [self._captions(source[i]) for i in range(count)]
        sentences = [text for own in captions for text in own]
        owner = np.repeat(np.arange(count), [len(own) for own in captions])
        texts = list(dict.fromkeys(sentences))
        place = {text: i for i, text in enumerate(texts)}
        sentence_text = np.array([place[text] for text in sentences])
        pairs = np.stack([owner, sentence_text], 1)

        text_embeddings = subject.embed_texts(texts, "retrieval captions")
        image_embeddings = subject.embed_records(source, count, "retrieval images")

        ranked = _folds(image_embeddings, text_embeddings, owner, sentence_text, fold)
        found = recalls.numbers(ranked, count)
        images_of_text = np.bincount(np.unique(pairs, axis=0)[:, 1])
        repeated = int((images_of_text[sentence_text] > 1).sum())
        shared = f", {repeated:,} of them with words that another image's caption has too" if repeated else ""
        folds = f", searched among {fold:,} images at a time" if fold != count else ""
        told = " Ties count for the model; a table has them against it." if found.ties else ""
        first_texts = [own[0] for own in captions]
        return base.Result(
            metrics=found.values,
            tables=found.ties,
            examples=self._examples(subject, source, texts, pairs, image_embeddings, text_embeddings, ranked),
            chance=found.chance,
            intervals=found.intervals,
            figures={
                "similarities": figures.similarities(image_embeddings, text_embeddings, pairs),
                "embedding_map": figures.embedding_map(
                    {"images": image_embeddings, "texts": text_embeddings}, {"images": first_texts, "texts": texts}
                ),
            },
            note=f"{count:,} images, {len(sentences):,} captions{shared}{folds}.{told} {self.note}".strip(),
        )

    def _captions(self, example: dict[str, Any]) -> list[str]:
        own = example["captions"]
        name = f"data {self.data!r}: record {example['key']!r}"
        if not own:
            raise InputError(f"{name} has no caption; retrieval needs one for every image")
        if not isinstance(own, list) or not all(isinstance(text, str) for text in own):
            raise InputError(f"{name}: captions must be a list of strings, not {own!r:.80}")
        return own[: {"all": None, "first": 1, "first_five": 5}[self.captions]]

    def _examples(
        self,
        subject: base.Subject,
        source: sources.Source,
        texts: list[str],
        pairs: np.ndarray,
        images: np.ndarray,
        text_embeddings: np.ndarray,
        found: Mapping[str, Sequence[recalls.Fold]],
    ) -> list[base.Example]:
        """Misses and hits at 1 of both directions, among the candidates of the first fold."""
        to_text, to_image = found["text_retrieval"][0], found["image_retrieval"][0]
        images = images[: len(to_text.best)]
        own = pairs[: len(to_image.best)]
        used = np.unique(own[:, 1])
        right = {(int(i), int(t)) for i, t in own}
        text_queries, image_queries = self._chosen(to_text.best), self._chosen(to_image.best)

        def best(scores, names):
            order = np.argsort(-scores, kind="stable")[:5]
            return [(int(names[k]), float(scores[k])) for k in order]

        answers = {i: best(images[i] @ text_embeddings[used].T, used) for _, i in text_queries}
        asked = {int(own[s, 1]) for _, s in image_queries}
        shown_images = {t: best(text_embeddings[t] @ images.T, np.arange(len(images))) for t in asked}
        wanted = {i for _, i in text_queries} | {int(own[s, 0]) for _, s in image_queries}
        wanted |= {i for t in asked for i, _ in shown_images[t]}
        read = pipeline.read(source, subject.transform, indices=sorted(wanted))
        pictures = {i: base.thumbnail(image) for i, _, image in read}

        def verdict(image, text, sought):
            """Another image with the very words of a caption is not the sought one, but not shown as wrong either."""
            matches = (image, text) in right
            return "right" if matches and image == sought else "none" if matches else "wrong"

        shown = []
        for group, i in text_queries:
            entries = tuple(base.Entry(texts[t], score=score, verdict=verdict(i, t, i)) for t, score in answers[i])
            expected = base.Entry(texts[own[np.searchsorted(own[:, 0], i), 1]])
            shown.append(base.Example(f"image to text: {group}", base.Entry(image=pictures[i]), entries, expected))
        for group, s in image_queries:
            i, t = (int(x) for x in own[s])
            entries = tuple(
                base.Entry(image=pictures[k], score=score, verdict=verdict(k, t, i)) for k, score in shown_images[t]
            )
            expected = base.Entry(image=pictures[i])
            shown.append(base.Example(f"text to image: {group}", base.Entry(texts[t]), entries, expected))
        return shown

    def _chosen(self, best: np.ndarray) -> list[tuple[str, int]]:
        """Queries by kind: half of them misses and half hits, more of one where there are few of the other."""
        misses, hits = np.flatnonzero(best > 0), np.flatnonzero(best == 0)
        half = self.examples // 2
        few = min(len(misses), max(self.examples - half, self.examples - len(hits)))
        chosen = {"misses": base.spread(misses, few), "hits": base.spread(hits, self.examples - few)}
        return [(group, i) for group, indices in chosen.items() for i in indices]


def _folds(
    images: np.ndarray, texts: np.ndarray, owner: np.ndarray, sentence_text: np.ndarray, size: int
) -> dict[str, list[recalls.Fold]]:
    """What each direction finds among `size` images at a time.

    Args:
      images: [n, e].
      texts: [m, e], distinct texts.
      owner: int [s], ascending: the image of each sentence.
      sentence_text: int [s], the text of each sentence.
    """
    to_image, to_text = [], []
    for start in range(0, len(images), size):
        part = slice(*np.searchsorted(owner, (start, start + size)))
        own, candidates = owner[part], images[start : start + size]
        sentences = np.arange(len(own))
        found = ranking.ranks(texts[sentence_text[part]], candidates, np.stack([sentences, own - start], 1))
        to_image.append(recalls.Fold.of(found, sentences, own, size))
        used, text, counts = np.unique(sentence_text[part], return_inverse=True, return_counts=True)
        found = ranking.ranks(candidates, texts[used], np.stack([own - start, text], 1), counts)
        to_text.append(recalls.Fold.of(found, own - start, np.arange(start, start + size), len(own)))
    return {"image_retrieval": to_image, "text_retrieval": to_text}
