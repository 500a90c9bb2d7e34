"""Durations in all units, and what is refused."""

import pytest

from vlm_jax.errors import InputError
from vlm_jax.training import duration


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (7, 7),
        ("7", 7),
        ("2000 steps", 2000),
        ("1 step", 1),
        ("2 epochs", 20),
        ("0.5 epoch", 5),
        ("1e3 examples", 100),
        ("5%", 5),
        ("5 percent", 5),
    ],
)
def test_units(value, want):
    assert duration.steps(value, "steps", batch_size=10, examples=100, total=100) == want


@pytest.mark.parametrize("value", ["", "ten steps", "-5", "5 hours", "5%%", "nan"])
def test_what_is_no_duration_is_named(value):
    with pytest.raises(InputError, match="warmup"):
        duration.steps(value, "warmup", batch_size=10, examples=100, total=100)


def test_units_without_meaning_are_refused():
    with pytest.raises(InputError, match="percent of what"):
        duration.steps("5%", "steps", batch_size=10)
    with pytest.raises(InputError, match="epoch is not known"):
        duration.steps("1 epoch", "steps", batch_size=10)
