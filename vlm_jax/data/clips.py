"""Clips: a fixed number of frames with a caption, from videos that are kept as frames.

The fields of a batch: `frames` uint8 [b, f, h, w, 3], `tokens` int32 [b, t], `example` int32 [b].
"""

import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np

from vlm_jax import errors
from vlm_jax.data import batches, captions, collate, pipeline, sources
from vlm_jax.data.sources import clips


@dataclasses.dataclass(frozen=True)
class Clips(pipeline.Pairs):
    """Clips with captions; what has the name of a field of `pipeline.Pairs` means the same."""

    stream: ClassVar[str] = "video"

    train: str
    """Training clips: .tar or .array_record files by braces, lists and globs, several joined by ::. See docs/data.md."""
    val: str
    """Validation clips, in the same form."""
    frames: int = 8
    """Taken from a clip at equal distances; where it has fewer, some of them come several times."""
    offset: Literal["random", "middle"] = "random"
    """Where the first of them lies in its part of the clip, in training; evaluation takes the middle."""

    def __post_init__(self):
        super().__post_init__()
        if self.frames < 1:
            raise errors.InputError(f"data.frames {self.frames}: at least 1 is needed")

    def open(self, pattern: str, field: str) -> Any:
        """The source that a pattern names."""
        return clips.open_clips(pattern, field)

    def describe(self) -> pipeline.Description:
        """As that of pairs; `images` are the frames."""
        return dataclasses.replace(super().describe(), images=self.frames)

    def fields(self) -> batches.Fields:
        """Of an example, known without data."""
        fields = super().fields()
        shape, dtype = fields.pop("image")
        return {"frames": ((self.frames, *shape), dtype)} | fields

    def row(self, example: sources.Example, index: int, caption: captions.Rule | int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """An example of the source as the fields of a batch, without the batch axis."""
        return collate.clips(example, index, **self.rules(caption), frames=self.frames, offset=self.offset, rng=rng)
