import dataclasses
from typing import Literal

import pytest

from vlm_jax import errors
from vlm_jax.models import choices


@dataclasses.dataclass(frozen=True)
class Config:
    pool: Literal["gap", "map"] = "gap"
    width: int = 0


def test_an_unknown_choice_is_refused_with_the_known_ones():
    choices.check(Config())
    with pytest.raises(errors.InputError, match="pool 'avg' is unknown: choose one of gap, map"):
        choices.check(Config(pool="avg"))  # pyright: ignore[reportArgumentType]
