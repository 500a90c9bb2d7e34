"""Durations in steps, epochs, examples or percent."""

import math
import re

from vlm_jax.errors import InputError

_FORM = re.compile(r"\s*([0-9.]+(?:e[0-9]+)?)\s*(%|percent|steps?|epochs?|examples?)?\s*", re.IGNORECASE)


def steps(
    value: int | str, field: str, *, batch_size: int, examples: int | None = None, total: int | None = None
) -> int:
    """A duration in steps, rounded to the nearest.

    Args:
      value: a number of steps, or text such as `2000 steps`, `3 epochs`, `1e6 examples`, `5%`.
      field: name of the field, for the message.
      batch_size: examples a step.
      examples: examples an epoch, where epochs mean something.
      total: all steps, where percent means something.

    Raises:
      InputError: not a duration, or in a unit that means nothing here.
    """
    found = _FORM.fullmatch(str(value))
    if not found:
        raise InputError(f"{field} {value!r}: not a duration; write 2000, '2000 steps', '3 epochs', '1e6 examples' or '5%'")
    number, unit = float(found[1]), (found[2] or "steps").lower().rstrip("s")
    if unit == "step":
        result = number
    elif unit == "example":
        result = number / batch_size
    elif unit == "epoch":
        if examples is None:
            raise InputError(f"{field} {value!r}: the size of an epoch is not known here; give steps")
        result = number * examples / batch_size
    else:
        if total is None:
            raise InputError(f"{field} {value!r}: percent of what? Give steps, epochs or examples")
        result = number / 100 * total
    if not math.isfinite(result):
        raise InputError(f"{field} {value!r}: not finite")
    return round(result)
