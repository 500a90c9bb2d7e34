"""Compiled programs are read as they run: loops by their trips, collectives once each."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from vlm_jax.training import hlo

P = jax.P


def _compiled(fn, *shapes):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        return jax.jit(fn).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile().as_text()


def test_collectives_in_nested_loops_count_by_their_trips():
    def fn(x):
        def inner(x, _):
            return jax.lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)]), None

        def outer(x, _):
            x = jax.lax.scan(inner, jnp.sin(x), length=3)[0]
            return x + jax.lax.psum(x, "data"), None

        x = jax.lax.scan(outer, x, length=5)[0]
        return jax.lax.all_gather(x, "data", tiled=True)

    text = _compiled(jax.shard_map(fn, in_specs=P("data"), out_specs=P(), check_vma=False), (16, 4))
    program = hlo.read(text)
    assert program.collectives == {
        "collective-permute": hlo.Traffic(15, 15 * 2 * 4 * 4),
        "all-reduce": hlo.Traffic(5, 5 * 2 * 4 * 4),
        "all-gather": hlo.Traffic(1, 16 * 4 * 4),
    }
    assert sorted(program.loops) == [3, 5]


def test_a_program_of_one_device_communicates_nothing():
    program = hlo.read(_compiled(lambda x: jnp.tanh(x @ x.T), (8, 8)))
    assert program == hlo.Program({}, 0, ())


TPU = """HloModule jit_f, is_scheduled=true

%fused_a (p: bf16[64,512]) -> bf16[512,512] {
  %p = bf16[64,512]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %ag = bf16[512,512]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=1, dimensions={0}, metadata={op_name="jit(f)/all_gather"}
}

%fused_b (p.1: bf16[64,512]) -> bf16[512,512] {
  %p.1 = bf16[64,512]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %ag.1 = bf16[512,512]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=1, dimensions={0}, metadata={op_name="jit(f)/all_gather"}
}

%condition (s: (s32[], f32[8])) -> pred[] {
  %s = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %limit = s32[]{:T(128)} constant(7)
  ROOT %less = pred[]{:T(512)} compare(%get, %limit), direction=LT
}

%body (s.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %start = (f32[8]{0:T(128)}, f32[8]{0:T(128)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=2
  ROOT %work = (s32[]{:T(128)}, f32[8]{0:T(128)}) fusion(%s.1), calls=%other, backend_config={"estimated_cycles":"100"}
}

ENTRY %main (a: bf16[64,512]) -> f32[8] {
  %a = bf16[64,512]{1,0:T(8,128)(2,1)} parameter(0)
  %first = bf16[512,512]{1,0:T(8,128)(2,1)} fusion(%a), kind=kCustom, calls=%fused_a, backend_config={"estimated_cycles":"30"}
  %second = bf16[512,512]{1,0:T(8,128)(2,1)} fusion(%a), kind=kCustom, calls=%fused_b, backend_config={"estimated_cycles":"30"}
  ROOT %loop = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%init), condition=%condition, body=%body
}
"""


def test_tpu_text_has_cycles_and_writes_an_asynchronous_gather_twice():
    program = hlo.read(TPU)
    assert program.cycles == 30 + 30 + 7 * 100
    assert program.collectives == {
        "all-gather": hlo.Traffic(1, 512 * 512 * 2),
        "collective-permute": hlo.Traffic(7, 7 * 8 * 4),
    }
    assert program.loops == (7,)


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.read("HloModule empty\n")


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="loop loop: its number of trips"):
        hlo.read(TPU.replace("constant(7)", "add(%get, %get)"))


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("fsdp",)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", ("data",)),
        ("replica_groups=[1,8]<=[8]", ("data", "fsdp")),
        ("replica_groups={}", ("data", "fsdp")),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", ("fsdp",)),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2] {'a','b'}", ("data",)),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'a'}", ("fsdp",)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", ("data",)),
        ("replica_groups=mesh['a'=8] {'a'}", ("data", "fsdp")),
        ("source_target_pairs={{0,2},{2,4},{4,6},{6,0}}", ("data",)),
    ],
)
def test_an_exchange_knows_the_mesh_axes_along_which_it_runs(groups, axes):
    text = TPU.replace("channel_id=2", f"channel_id=2, {groups}")
    (exchange,) = (found for found in hlo.read(text).exchanges if found.kind == "collective-permute")
    assert exchange.axes({"data": 4, "fsdp": 2, "model": 1}) == axes
    assert (exchange.count, exchange.bytes) == (7, 7 * 8 * 4)


def test_collectives_of_a_mesh_run_along_the_axes_that_they_name():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def fn(x):
        return jax.lax.psum(jax.lax.all_gather(x, "fsdp", tiled=True), "data")

    with jax.set_mesh(mesh):
        mapped = jax.shard_map(fn, in_specs=P(("data", "fsdp")), out_specs=P(), check_vma=False)
        text = jax.jit(mapped).lower(jax.ShapeDtypeStruct((16, 4), jnp.float32)).compile().as_text()
    found = {exchange.kind: exchange.axes(mesh.shape) for exchange in hlo.read(text).exchanges}
    assert found == {"all-gather": ("fsdp",), "all-reduce": ("data",)}


def test_groups_in_an_unknown_form_are_not_taken_for_all_devices():
    with pytest.raises(ValueError, match="in a form that is not known: replica_groups=others"):
        hlo.read(TPU.replace("channel_id=2", "channel_id=2, replica_groups=others"))
