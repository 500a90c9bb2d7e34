"""Statistics of a data set: how many records, images of which size and form, captions of which length, which fields."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from vlm_jax.data import sources

_FORMS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"RIFF": "WebP",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}


def form(data: bytes) -> str:
    """The format of an encoded image by its first bytes; "other" for one that is not among those decoded."""
    return next((name for magic, name in _FORMS.items() if data.startswith(magic)), "other")


@dataclasses.dataclass
class Statistics:
    """Counts, which can be added up and kept as JSON."""

    examples: int = 0
    image_bytes: int = 0
    forms: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    sizes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Images by width and height, "640x480"."""
    captions: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    """Examples by how many captions they have."""
    words: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    """Captions by how many words they have."""
    tokens: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    """Captions by how many tokens they have, where a tokenizer counts them."""
    fields: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Examples by what they have, "label int"."""

    def add(self, example: sources.Example, width: int, height: int, tokenizer: Any = None) -> None:
        """Counts one example with an image of so many pixels; `tokenizer` as text.LoadedTokenizer."""
        self.examples += 1
        self.image_bytes += len(example["image"])
        self.forms[form(example["image"])] += 1
        self.sizes[f"{width}x{height}"] += 1
        self.captions[len(example["captions"])] += 1
        for caption in example["captions"]:
            self.words[len(caption.split())] += 1
            if tokenizer is not None:
                self.tokens[len(tokenizer.encode(caption))] += 1
        for name, value in example.items():
            self.fields[f"{name} {_kind(value)}"] += 1

    def update(self, other: "Statistics") -> None:
        """Adds the counts of another part."""
        self.examples += other.examples
        self.image_bytes += other.image_bytes
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))

    def to_json(self) -> dict[str, Any]:
        """Maps with strings for keys, sorted by their own values."""
        return dataclasses.asdict(self) | {
            name: {str(key): count for key, count in sorted(getattr(self, name).items())} for name in _COUNTERS
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Statistics":
        """The inverse of `to_json`."""
        counters: dict[str, Any] = {
            name: collections.Counter({(int(key) if name in _NUMBERS else key): count for key, count in value[name].items()})
            for name in _COUNTERS
        }
        return cls(value["examples"], value["image_bytes"], **counters)


_COUNTERS = ("forms", "sizes", "captions", "words", "tokens", "fields")
_NUMBERS = ("captions", "words", "tokens")


def quantile(counts: Mapping[int, int], share: float) -> int:
    """The value below or at which so large a share of what was counted lies; 0 of nothing."""
    wanted, seen = share * sum(counts.values()), 0
    for value, count in sorted(counts.items()):
        seen += count
        if seen >= wanted:
            return value
    return 0


def sides(sizes: Mapping[str, int]) -> dict[str, collections.Counter[int]]:
    """Images by width and by height, from `Statistics.sizes`."""
    found: dict[str, collections.Counter[int]] = {"width": collections.Counter(), "height": collections.Counter()}
    for size, count in sizes.items():
        for side, value in zip(found, size.split("x"), strict=True):
            found[side][int(value)] += count
    return found


def text(statistics: Statistics) -> str:
    """The statistics in lines for a terminal."""
    lines = [f"examples    {statistics.examples:,}"]
    if not statistics.examples:
        return lines[0]
    forms = ", ".join(f"{name} {count:,}" for name, count in statistics.forms.most_common())
    mean = statistics.image_bytes / statistics.examples
    lines.append(f"images      {forms}; {statistics.image_bytes / 1e6:,.1f} MB, {mean / 1e3:,.1f} kB each")
    for side, counts in sides(statistics.sizes).items():
        lines.append(f"{side:<12}{_spread(counts)} pixels")
    lines.append(f"captions    {_spread(statistics.captions)} an image, {statistics.words.total():,} in all")
    if statistics.words:
        lines.append(f"words       {_spread(statistics.words)} a caption")
    if statistics.tokens:
        lines.append(f"tokens      {_spread(statistics.tokens)} a caption")
    lines.append("fields      " + ", ".join(_share(name, count, statistics.examples) for name, count in statistics.fields.most_common()))
    return "\n".join(lines)


def _spread(counts: Mapping[int, int]) -> str:
    low, middle, high = (quantile(counts, share) for share in (0.0, 0.5, 1.0))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}, half of them at most {middle:,}"


def _share(name: str, count: int, examples: int) -> str:
    """A field that not all have is said with its count."""
    printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    return printable if count == examples else f"{printable} ({count:,})"


def _kind(value: Any) -> str:
    inside = {_kind(item) for item in value[:16]} if isinstance(value, list | tuple) else set()
    return f"{type(value).__name__} of {' and '.join(sorted(inside))}" if inside else type(value).__name__
