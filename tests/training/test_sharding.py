"""Rules from paths to shards, rows of a process, and batches as global arrays."""

import dataclasses

import jax
import numpy as np
import pytest

from vlm_jax.errors import InputError
from vlm_jax.training import sharding

P = jax.P


def _mesh(data, fsdp, model):
    return sharding.Mesh(data=data, fsdp=fsdp, model=model).make()


@pytest.mark.parametrize(
    ("path", "shape", "want"),
    [
        ("image/blocks/attention/query/kernel", (6, 64, 64), P(None, "fsdp", "model")),
        ("opt_state/0/mu/image/blocks/mlp/down/kernel", (6, 64, 64), P(None, "model", "fsdp")),
        ("text/token_embed/embedding", (100, 64), P(("model", "fsdp"), None)),
        ("text/token_embed/embedding", (102, 64), P("model", None)),
        ("image/patch_embed/kernel", (192, 64), P(None, "fsdp")),
        ("image/norm/scale", (64,), P()),
        ("log_scale", (), P()),
        ("image/blocks/mlp/up/kernel", (6, 63, 64), P(None, None, "model")),
    ],
)
def test_first_rule_that_finds_the_path_names_trailing_axes_that_divide(path, shape, want):
    assert sharding.spec(path, shape, _mesh(2, 2, 2)) == want


def test_axes_of_size_one_are_left_out():
    assert sharding.spec("up/kernel", (64, 64), _mesh(8, 1, 1)) == P()


def test_mesh_takes_what_is_left():
    assert dict(_mesh(-1, 2, 1).shape) == {"data": 4, "fsdp": 2, "model": 1}


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, -1, 1), (-1, 3, 1), (0, 1, 1), (16, 1, 1)])
def test_sizes_that_do_not_make_up_the_devices_are_refused(sizes):
    with pytest.raises(InputError, match="mesh"):
        _mesh(*sizes)


def test_a_mesh_knows_which_numbers_of_devices_it_fits():
    assert sharding.Mesh(data=-1, fsdp=2).fits(8) and not sharding.Mesh(data=-1, fsdp=2).fits(1)
    assert sharding.Mesh(data=2, fsdp=4).fits(8) and not sharding.Mesh(data=2, fsdp=4).fits(4)


def test_batch_that_does_not_divide_names_those_that_do():
    with pytest.raises(InputError, match=r"batch_size 100 .* use 96 or 104"):
        sharding.check_batch(100, _mesh(4, 2, 1))
    sharding.check_batch(96, _mesh(4, 2, 1), microbatches=3)
    with pytest.raises(InputError, match="3 microbatches"):
        sharding.check_batch(104, _mesh(4, 2, 1), microbatches=3)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_batches_keep_their_rows_in_order(sizes):
    mesh = _mesh(*sizes)
    local = {"pairs": {"x": np.arange(48, dtype=np.float32).reshape(16, 3)}}
    got = sharding.put_batch(local, mesh)["pairs"]["x"]
    np.testing.assert_array_equal(got, local["pairs"]["x"])
    assert got.sharding.spec == P(("data", "fsdp"))
    np.testing.assert_array_equal(sharding.rows(16, mesh), np.arange(16))


def test_large_leaves_that_stay_whole_are_reported():
    x = jax.ShapeDtypeStruct((1000, 1000), np.float32)
    assert sharding.undivided({"probe": x, "up": {"kernel": x}}, _mesh(1, 8, 1)) == ["probe (1000, 1000)"]


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device as far as a mesh looks at one."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "fake"
    device_kind: str = "fake"


CHIPS = [Chip(i, slice_index=i % 2) for i in range(16)]
"""Of two slices, in no good order."""


@pytest.mark.parametrize(("fsdp", "model"), [(1, 1), (4, 1), (2, 4), (8, 1)])
def test_over_several_slices_only_data_leaves_a_slice(fsdp, model):
    mesh = sharding.Mesh(data=-1, fsdp=fsdp, model=model).make(CHIPS)
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    assert mesh.devices.shape == (16 // fsdp // model, fsdp, model)
    assert len({chip.id for chip in mesh.devices.flat}) == 16
    first, second = np.split(slices, 2)
    assert (first == 0).all() and (second == 1).all()


def test_parts_of_the_parameters_that_would_lie_in_two_slices_are_refused():
    with pytest.raises(InputError, match=r"mesh.data 1: not divisible by the 2 slices.*at most the 8 devices of a slice"):
        sharding.Mesh(data=1, fsdp=16).make(CHIPS)
