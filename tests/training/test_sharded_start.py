"""However a run starts, no device ever keeps more than its part: counted in bytes that are alive on each of eight devices."""

import collections
import gc

import jax
import jax.numpy as jnp
import pytest

from vlm_jax.training import checkpoint, sharding

ROWS, COLUMNS = 1024, 512
"""Of every array of the state: 2 MB whole, 256 KB in eight parts."""
PART = ROWS * COLUMNS * 4 // 8


def _init():
    kernel = jax.random.normal(jax.random.key(0), (ROWS, COLUMNS))
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": {"up": {"kernel": kernel}},
        "frozen": {"down": {"kernel": kernel + 1}},
        "buffers": {},
        "opt_state": {"mu": {"up": {"kernel": 0 * kernel}}},
        "average": {"up": {"kernel": kernel}},
        "extra": {},
    }


def _alive() -> dict[jax.Device, int]:
    """Bytes of the buffers of all living arrays, by device."""
    gc.collect()
    found = collections.Counter()
    for x in jax.live_arrays():
        if x.shape == (ROWS, COLUMNS) or x.size >= PART // 8:
            found.update({shard.device: shard.data.nbytes for shard in x.addressable_shards})
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    mesh = sharding.Mesh(data=1, fsdp=8).make()
    abstract = jax.eval_shape(_init)
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text("{}")
    checkpoints = checkpoint.Checkpoints(folder, keep=1)
    checkpoints.save(3, jax.jit(_init, out_shardings=sharding.shardings(abstract, mesh))(), {})
    checkpoints.close()
    return folder, abstract, mesh


@pytest.mark.parametrize(("start", "arrays"), [("fresh", 4), ("resumed", 4), ("weights", 3)])
def test_every_device_keeps_an_eighth(start, arrays, saved):
    folder, abstract, mesh = saved
    before = _alive()
    if start == "fresh":
        compiled = jax.jit(_init, out_shardings=sharding.shardings(abstract, mesh)).lower().compile()
        state = compiled()
        memory = compiled.memory_analysis()
        assert memory.temp_size_in_bytes < 4 * PART, "nothing whole on the way"
    elif start == "resumed":
        _, state, _ = checkpoint.Checkpoints(folder, keep=1).resume(abstract, mesh, "stop")
    else:
        state, _ = checkpoint.load_weights(folder, 3, abstract, mesh)
    alive = _alive()
    assert {device: alive[device] - before[device] for device in jax.devices()} == dict.fromkeys(jax.devices(), arrays * PART)
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(state))
