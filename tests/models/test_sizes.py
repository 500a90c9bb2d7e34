import pytest

from vlm_jax import errors
from vlm_jax.models import sizes


def test_heads_divide_the_width_of_every_size():
    for name in sizes.SIZES:
        sizes.check(**sizes.by_name(name))


def test_an_unknown_size_is_refused_with_the_known_ones():
    with pytest.raises(errors.InputError, match=r"size 'XL' is unknown: .*So400m"):
        sizes.by_name("XL")
