"""Retrieval between images and their captions: recall at 1, 5 and 10, both ways."""

import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np

from vlm_jax.data import pipeline, sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, metrics

RECALLS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Finds captions for images (text retrieval) and images for captions (image retrieval).

    Image to text is a hit at k where any of the image's own captions is among the first k; text to image where the
    caption's image is. The rank is the number of candidates that score strictly higher, so ties count for the model.

    The same sentence on two images makes two captions. Each counts with its own image as the only right one; as their
    scores are equal by construction (a sentence is embedded once), neither pushes the other down.
    """

    data: str = ""
    """Shards with images and captions."""
    captions: Literal["all", "first", "first_five"] = "all"
    """Which captions of an image take part; COCO's protocol takes the first five."""
    limit: int = 0
    """Take only so many records from the start. 0: all."""
    every: int = 0
    """Steps from one evaluation to the next. 0: the run's eval_every."""
    note: str = ""
    """A sentence for the report."""
    examples: int = 6
    """Queries to show, so many of each direction."""

    task: ClassVar[str] = "zeroshot_retrieval"

    def __call__(self, subject: base.Subject) -> base.Result:
        """Evaluates; every process of a run calls this and gets the same result.

        Raises:
          InputError: shards are missing, there are no records, or a record has no caption.
        """
        source, count = base.open_records(self.data, self.limit)
        captions = [self._captions(source[i]) for i in range(count)]
        sentences = [text for own in captions for text in own]
        owner = np.repeat(np.arange(count), [len(own) for own in captions])
        texts = list(dict.fromkeys(sentences))
        place = {text: i for i, text in enumerate(texts)}
        sentence_text = np.array([place[text] for text in sentences])
        pairs = np.stack([owner, sentence_text], 1)

        text_embeddings = subject.embed_texts(texts, "retrieval captions")
        image_embeddings = subject.embed_records(source, count, "retrieval images")

        multiplicity = np.bincount(sentence_text)
        to_text = metrics.best_ranks(image_embeddings, text_embeddings, pairs, multiplicity)
        places = np.stack([np.arange(len(owner)), owner], 1)
        to_image = metrics.best_ranks(text_embeddings[sentence_text], image_embeddings, places)
        values, chance = {}, {}
        directions = (
            ("image_retrieval", to_image, np.ones(len(owner), int), count),
            ("text_retrieval", to_text, np.bincount(owner), len(owner)),
        )
        for name, ranks, own, candidates in directions:
            for k in RECALLS:
                values[f"{name}_recall@{k}"] = float((ranks < k).mean())
                chance[f"{name}_recall@{k}"] = metrics.chance_of_hit(own, candidates, k)
            values[f"{name}_median_rank"] = metrics.median_rank(ranks)
            chance[f"{name}_median_rank"] = metrics.chance_of_median_rank(own, candidates)

        images_of_text = np.bincount(np.unique(pairs, axis=0)[:, 1])
        repeated = int((images_of_text[sentence_text] > 1).sum())
        shared = f", {repeated:,} of them with words that another image's caption has too" if repeated else ""
        return base.Result(
            metrics=values,
            examples=self._examples(subject, source, texts, pairs, image_embeddings, text_embeddings),
            chance=chance,
            note=f"{count:,} images, {len(sentences):,} captions{shared}. {self.note}".strip(),
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
        image_embeddings: np.ndarray,
        text_embeddings: np.ndarray,
    ) -> list[base.Example]:
        right = {(int(i), int(t)) for i, t in pairs}
        queries = base.spread(np.arange(len(image_embeddings)), self.examples)
        sought = base.spread(np.arange(len(texts)), self.examples)
        text_scores = image_embeddings[queries] @ text_embeddings.T
        image_scores = text_embeddings[sought] @ image_embeddings.T
        best_images = np.argsort(-image_scores, axis=1, kind="stable")[:, :5]
        own_images = [int(pairs[pairs[:, 1] == t][0, 0]) for t in sought]
        wanted = sorted({*queries, *own_images, *best_images.ravel().tolist()})
        pictures = {
            i: base.thumbnail(image) for i, _, image in pipeline.read(source, subject.transform, indices=wanted)
        }

        def verdict(image, text):
            return "right" if (int(image), int(text)) in right else "wrong"

        shown = []
        for i, scores in zip(queries, text_scores, strict=True):
            best = np.argsort(-scores, kind="stable")[:5]
            answers = tuple(base.Entry(texts[t], score=float(scores[t]), verdict=verdict(i, t)) for t in best)
            own = base.Entry(texts[pairs[np.searchsorted(pairs[:, 0], i), 1]])
            shown.append(base.Example("image to text", base.Entry(image=pictures[i]), answers, own))
        for t, scores, best, i in zip(sought, image_scores, best_images, own_images, strict=True):
            own = base.Entry(image=pictures[i])
            answers = tuple(
                base.Entry(image=pictures[int(k)], score=float(scores[k]), verdict=verdict(k, t)) for k in best
            )
            shown.append(base.Example("text to image", base.Entry(texts[t]), answers, own))
        return shown
