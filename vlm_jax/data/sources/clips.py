"""Sources of clips: several frames a record, read as they are asked for.

A record of a `.tar` is a key with several images, `0001.0.jpg 0001.1.jpg`, in the order of what stands between the key and the ending
(numbers by their value), and `0001.txt` or `0001.json` with its captions, as in `webdataset`. A record of an `.array_record` has
`frames`, a list of encoded images or one array uint8 [f, h, w, 3], and `captions`.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlm_jax import errors
from vlm_jax.data import records
from vlm_jax.data.sources import array_record, arrays, base, groups, patterns

_IMAGES = (".jpg", ".jpeg", ".png", ".webp")


def open_clips(pattern: str, field: str = "data") -> Any:
    """The clips that a pattern names, see `patterns.expand`: examples with `frames`, functions that return an encoded image.

    Raises:
      InputError: as `expand`; files of another kind or of several, a damaged file.
    """
    paths = patterns.expand(pattern, field)
    if all(path.endswith(".tar") for path in paths):
        return TarClips(paths)
    if all(array_record.SUFFIX.search(path) for path in paths):
        return RecordClips(paths)
    raise errors.InputError(f"{field} {pattern}: clips are read from .tar or .array_record files, of one kind")


class TarClips(groups.Groups):
    """Clips in tars."""

    def __init__(self, paths: Sequence[str]):
        """Raises InputError as Groups; for a shard whose first key has no images."""
        super().__init__(paths)
        if not self[0]["frames"]:
            raise errors.InputError(f"{self.where(0)}: has no images; a clip is a key with several, 0001.0.jpg 0001.1.jpg")

    def __getitem__(self, index: int) -> base.Example:
        """Raises RecordError for captions that are no text."""
        group = self.group(index)
        example: base.Example = {}
        try:
            if "json" in group.spans:
                example = json.loads(self.read(index, group, "json"))
                if not isinstance(example, dict):
                    raise ValueError(f"its json is a {type(example).__name__}, not a map")
            found = example.get("captions", example.get("caption"))
            if found is None:
                found = [self.read(index, group, "txt").decode("utf-8")] if "txt" in group.spans else []
        except records.RecordError:
            raise
        except (ValueError, RecursionError) as error:
            raise records.RecordError(f"{self.where(index)}: {error}") from error
        names = sorted((name for name in group.spans if name.lower().endswith(_IMAGES)), key=_in_order)
        frames = [functools.partial(self.read, index, group, name) for name in names]
        return example | {"key": group.key, "captions": [found] if isinstance(found, str) else found, "frames": frames}


class RecordClips(array_record.ArrayRecord):
    """Clips in shards of ArrayRecord."""

    def __getitem__(self, index: int) -> base.Example:
        """Raises RecordError for a damaged record, or one whose frames are something else."""
        example = super().__getitem__(index)
        frames = example.get("frames")
        if isinstance(frames, np.ndarray) and frames.ndim == 4 and frames.dtype == np.uint8 and frames.shape[-1] in (1, 3):
            frames = [functools.partial(arrays.bitmap, frame) for frame in frames]
        elif isinstance(frames, list) and all(isinstance(frame, bytes) for frame in frames):
            frames = [_returns(frame) for frame in frames]
        else:
            raise records.RecordError(f"{self.where(index)}: its frames are no list of encoded images and no array uint8 [f, h, w, 3]")
        return example | {"frames": frames}


def _returns(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _in_order(name: str) -> list[tuple[int, str]]:
    """Numbers in a name by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
