"""Topologies by name, and what is said where there is none."""

import importlib.util

import pytest

from vlm_jax.errors import InputError
from vlm_jax.training import tpu


def test_an_unknown_generation_is_refused_with_those_that_are_known():
    with pytest.raises(InputError, match="no TPU is known as 'v9'; write v4, v5e, v5p, v6e"):
        tpu.devices("v9:4x4")


def test_without_libtpu_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs libtpu.*pip install 'jax\[tpu\]'"):
        tpu.devices("v5e:4x4")


@pytest.mark.parametrize("topology", ["v5e", "v5e:16", "v5e:4x", "v5e:0x4", "v4:4x4x4x4"])
def test_a_topology_without_sides_is_refused(topology):
    with pytest.raises(InputError, match="write the chips along every direction"):
        tpu.sides(topology)


def test_the_sides_of_a_slice_are_read_from_its_name():
    assert tpu.sides("v5e:16x16") == (16, 16)
    assert tpu.sides("v4:4x4x8") == (4, 4, 8)
