"""Initial weights out of other checkpoints: all of one, or parts of several, renamed and with layers left out.

A source is written `PATH`, or `PART <- PATH` with a prefix of parameter paths. `PART = OTHER` takes what is called `OTHER...` there, and
`OTHER[2:8]` only those of its stacked layers:

    runs/first                                  everything
    image/ <- runs/first                        the image tower
    image/ without image/projection/ <- hf:DIR  the image tower but for its projection, which stays as it was initialised
    text/blocks/ = decoder/blocks/[::2] <- runs/second   every second block, under another name
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax.errors import InputError

_FORM = "write PATH, PART <- PATH, PART without REST <- PATH, or PART = OTHER[0:6] <- PATH, such as 'image/ <- runs/first'"
_PART = re.compile(
    r"(?P<part>[^\s=\[\]]+)(\s*=\s*(?P<other>[^\s=\[\]]+))?\s*(?P<layers>\[[^\[\]]*\])?(\s+without\s+(?P<rest>[^\s=\[\]]+))?"
)
_LAYERS = re.compile(r"\[(-?\d*):(-?\d*)(?::(\d*))?\]")
_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Source:
    """Where initial weights come from, and which."""

    path: str
    part: str = ""
    """Prefix of the paths that are filled; all by default."""
    other: str = ""
    """What the prefix is called there."""
    layers: slice | None = None
    """Of the leading axis; None: all, whatever the leading axes are."""
    rest: str | None = None
    """Prefix of the paths within the part that are not filled."""

    @classmethod
    def parse(cls, text: str) -> "Source":
        """
        Raises:
          InputError: the text has another form.
        """
        left, arrow, path = text.rpartition("<-")
        if not arrow:
            return cls(text.strip())
        found = _PART.fullmatch(left.strip())
        if found is None or not path.strip():
            raise InputError(f"init_from {text!r}: {_FORM}")
        part, other, layers = found["part"], found["other"] or found["part"], None
        if found["layers"]:
            numbers = _LAYERS.fullmatch(found["layers"].replace(" ", ""))
            if numbers is None or numbers[3] == "0":
                raise InputError(f"init_from {text!r}: {found['layers']} is no range of layers; {_FORM}")
            layers = slice(*(int(n) if n else None for n in numbers.groups()))
        return cls(path.strip(), part, other, layers, found["rest"])

    def fills(self, path: str) -> bool:
        """Whether a parameter of this name here is to come from the source."""
        return path.startswith(self.part) and (self.rest is None or not path.startswith(self.rest))

    def take(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the stored leaves, by path, that are meant, under the names that they get here.

        Raises:
          InputError: there is none, or the leaves with chosen layers do not all have the same number of them.
        """
        found = {self.part + path.removeprefix(self.other): x for path, x in stored.items() if path.startswith(self.other)}
        if not found:
            heads = sorted({path.split("/")[0] for path in stored})
            raise InputError(f"init_from {self.path}: no parameter begins with {self.other!r}; it has {', '.join(heads)}")
        found = {path: x for path, x in found.items() if self.fills(path)}
        if self.layers is None:
            return found
        depths = {x.shape[:1] for x in found.values()}
        if len(depths) != 1 or depths == {()}:
            raise InputError(
                f"init_from {self.path}: the leaves of {self.other!r} are not one stack of layers; name the stack, such as image/blocks/"
            )
        return {path: x[self.layers] for path, x in found.items()}


def fill(model: Sequence[str], sources: Sequence[tuple[Source, Mapping[str, Any]]]) -> tuple[dict[str, Any], str]:
    """What the sources have for a model, and in words what was taken, what was left there, and what stays as it was initialised.

    Where two sources have the same parameter, the later one counts.

    Args:
      model: paths of its parameters and buffers.
      sources: each with its leaves under the names of this model, as `Source.take` gives them.

    Raises:
      InputError: a source lacks a parameter of the part that it is to fill.
    """
    known, filled, lines = set(model), {}, []
    for source, leaves in sources:
        missing = [path for path in model if source.fills(path) and path not in leaves]
        if missing:
            raise InputError(
                f"init_from {source.path}: it has no {_some(missing)}; name the parts that it has, such as 'image/ <- "
                f"{source.path}', or leave some as they are: 'image/ without image/projection/ <- {source.path}'"
            )
        taken, left = [path for path in leaves if path in known], [path for path in leaves if path not in known]
        filled |= {path: leaves[path] for path in taken}
        more = f"; left there: {_some(left)}" if left else ""
        lines.append(f"{len(taken)} parameters{f' of {source.part}' if source.part else ''} from {source.path}{more}")
    fresh = [path for path in model if path not in filled]
    return filled, "\n".join([*lines, *([f"freshly initialised: {_some(fresh)}"] if fresh else [])])


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return f"{', '.join(paths[:_SHOWN])}{more}"
