"""Fast binding: words that mean something in one prompt only, as its examples say (Tsimpoukelli et al. 2021, Frozen)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from vlm_jax.data import sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, intervals, prompted
from vlm_jax.evaluation import few_shot_prompts as prompts


@dataclasses.dataclass(frozen=True)
class Episode:
    """A few classes with words of their own, examples and a query."""

    kind: str
    """By which of its labels an image is of a class here."""
    words: tuple[str, ...]
    """Of the classes."""
    query: tuple[int, int]
    """A record and the number of its class."""
    examples: tuple[tuple[int, int], ...]
    """The same of the examples, in the order in which they are shown; fewer are the first of them."""
    shuffled: tuple[int, ...]
    """For the control: the number of any word for each example, drawn without regard to its class."""

    def prompt(self, template: str, shots: int, *, shuffled: bool = False) -> prompts.Prompt:
        """The prompt with so many examples; with 0 the texts of two, without their images."""
        shown = self.examples[: shots or prompts.TEXT_ONLY]
        named = self.shuffled if shuffled else tuple(number for _, number in self.examples)
        told = [(record, {"answer": self.words[named[i]]}) for i, (record, _) in enumerate(shown)]
        return prompts.prompt(template, told, (self.query[0], {}), shots=shots)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FastBinding(base.Evaluator):
    """Accuracy of the word that the model finds likeliest, where only k examples say which words stand for which classes.

    An episode has `ways` classes and as many words, k examples in random order that show each class as often, and a query of one of the
    classes; the same episodes are asked with every k. `acc1_shuffled` is the control: there every example has any of the words,
    whatever it shows. Examples then say nothing, and an accuracy above chance would come from elsewhere.
    """

    data: str = ""
    """Labelled images, for examples and queries; they are never the same in an episode."""
    labels: tuple[str, ...] = ("label",)
    """Fields of a record with a class, taken in turn by the episodes; dots lead into a field: scene.objects.0.colour."""
    words: tuple[str, ...]
    """Out of which each episode draws its own."""
    ways: int = 2
    """Classes of an episode."""
    shots: tuple[int, ...] = (0, 1, 2, 4, 8)
    """Examples that are shown."""
    episodes: int = 256
    """How many of them."""
    prompt: str = "Output: {answer}"
    """What is said of an image; ends with {answer}."""
    seed: int = 0
    """Of what is drawn."""
    examples: int = 4
    """Prompts with answers to show for each k."""

    task: ClassVar[str] = "fast_binding"

    def __post_init__(self):
        if not self.shots or min(self.shots) < 0 or list(self.shots) != sorted(set(self.shots)):
            raise InputError(f"shots {self.shots}: must be ascending numbers of examples, 0 or more")
        if not 2 <= self.ways <= len(set(self.words)) == len(self.words):
            raise InputError(f"ways {self.ways}: from 2 to the number of words, which are {len(set(self.words))} different ones")
        if self.episodes < 1 or not self.labels:
            raise InputError(f"episodes {self.episodes}, labels {self.labels}: at least one of each is needed")
        prompts.query(self.prompt, {})

    def drawn(self, source: sources.Source, count: int) -> list[Episode]:
        """The episodes over the first `count` records; they follow from these and the seed.

        Raises:
          InputError: a record has no such label, or there are too few classes with enough images.
        """
        read = [source[i] for i in range(count)]
        first: dict[bytes, int] = {}
        for i, record in enumerate(read):
            first.setdefault(prompts.fingerprint(record["image"]), i)
        most = max(self.shots[-1], prompts.TEXT_ONLY)
        needed = -(-most // self.ways) + 1
        classes = {}
        for label in self.labels:
            members: dict[str, list[int]] = {}
            for i in first.values():
                members.setdefault(str(_value(read[i], label, self.data)), []).append(i)
            classes[label] = [found for _, found in sorted(members.items()) if len(found) >= needed]
            if len(classes[label]) < self.ways:
                raise InputError(
                    f"ways {self.ways}: only {len(classes[label])} classes of {label} have the {needed} images in {self.data} that "
                    f"{most} examples and a query need; take fewer examples, or more records"
                )
        return [self._episode(number, classes[self.labels[number % len(self.labels)]]) for number in range(self.episodes)]

    def _episode(self, number: int, classes: Sequence[Sequence[int]]) -> Episode:
        rng, most = np.random.default_rng((self.seed, number)), max(self.shots[-1], prompts.TEXT_ONLY)
        chosen = [rng.permutation(classes[i]) for i in rng.permutation(len(classes))[: self.ways]]
        words = tuple(str(word) for word in rng.permutation(self.words)[: self.ways])
        asked = int(rng.integers(self.ways))
        rounds = [rng.permutation(self.ways) for _ in range(-(-most // self.ways))]
        order = [(int(chosen[c][1 + i]), int(c)) for i, classes_of_round in enumerate(rounds) for c in classes_of_round]
        shuffled = tuple(rng.integers(self.ways, size=len(order)).tolist())
        kind = self.labels[number % len(self.labels)].rpartition(".")[2]
        return Episode(kind, words, (int(chosen[asked][0]), asked), tuple(order), shuffled)

    def __call__(self, subject: base.Subject) -> base.Result:
        """Evaluates; every process of a run calls this and gets the same result.

        Raises:
          InputError: data are missing or malformed, or the model does not take prompts with images.
        """
        source, count = base.open_records(self.data, self.limit)
        episodes = self.drawn(source, count)
        model = prompted.Prompted.of(subject, {"episodes": (source, count)})
        answers = [[model.encoder.answer(self.prompt, {}, word) for word in episode.words] for episode in episodes]
        asked = np.array([episode.query[1] for episode in episodes])
        right: dict[str, np.ndarray] = {}
        shown = []
        for shots in self.shots:
            for name, shuffled in (("acc1", False), ("acc1_shuffled", True)):
                made = [episode.prompt(self.prompt, shots, shuffled=shuffled) for episode in episodes]
                best = model.likelihoods(made, answers).argmax(1)
                right[f"{name}@{shots}_shots"] = best == asked
                if not shuffled:
                    said = [episode.words[i] for episode, i in zip(episodes, best, strict=True)]
                    expected = [episode.words[episode.query[1]] for episode in episodes]
                    done = prompted.Answered(f"{shots} shots", made, said, (best == asked).tolist(), expected)
                    shown += done.examples(model, self.examples)
        return self._result(episodes, right, shown, model.told)

    def _result(self, episodes: Sequence[Episode], right: Mapping[str, np.ndarray], shown: list[base.Example], told: str) -> base.Result:
        """From what was right, bool [episodes], by metric."""
        kinds = np.array([episode.kind for episode in episodes])
        names = [f"{name}@{shots}_shots" for name in ("acc1", "acc1_shuffled") for shots in self.shots]
        values = {name: right[name].astype(float) for name in names}
        if len(set(kinds)) > 1:
            for kind in dict.fromkeys(kinds):
                values |= {f"acc1_{kind}@{k}_shots": values[f"acc1@{k}_shots"][kinds == kind] for k in self.shots}
        chance = 1 / self.ways

        def line(name):
            return [(float(k), float(values[f"{name}@{k}_shots"].mean())) for k in self.shots]

        lines = {"words of the images": line("acc1"), "words shuffled": line("acc1_shuffled")}
        note = [
            f"{len(episodes):,} episodes of {self.ways} classes by {', '.join(dict.fromkeys(kinds))}; words out of {len(self.words)}, "
            f"such as {self.words[0]}; seed {self.seed}.",
            told,
            self.note,
        ]
        return base.Result(
            metrics={name: float(of.mean()) for name, of in values.items()},
            chance=dict.fromkeys(values, chance),
            intervals={name: intervals.of_mean(of) for name, of in values.items()},
            examples=shown,
            figures={"shots": base.Lines("examples shown", "accuracy", lines | {"chance": [(float(k), chance) for k in self.shots]})},
            note=" ".join(filter(None, note)),
        )


def _value(record: Mapping[str, Any], path: str, data: str) -> Any:
    """What a field of a record holds, or what lies below it."""
    found: Any = record
    try:
        for part in path.split("."):
            found = found[int(part)] if isinstance(found, list | tuple) else found[part]
    except (KeyError, IndexError, ValueError, TypeError):
        name = record.get("key", "")
        raise InputError(f"labels {path!r}: record {name!r} of {data} has no such field, it has {sorted(record)}") from None
    return found
