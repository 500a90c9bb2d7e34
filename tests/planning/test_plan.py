"""A plan counts the state exactly, says what the compiler says, and finds neighbours that fit."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from vlm_jax import config as configs
from vlm_jax import plan as entry
from vlm_jax.errors import InputError
from vlm_jax.planning import compiled, page, plan, search, shapes, words
from vlm_jax.training import sharding, tpu

RECIPE = str(Path(__file__).resolve().parents[1] / "tiny_recipe.py")
TOPOLOGY = "v5e:2x4"


@pytest.fixture(scope="module")
def config():
    made, _ = configs.load_recipe(RECIPE)
    small = {name: dataclasses.replace(getattr(made.system, name), depth=1) for name in ("image", "text")}
    return dataclasses.replace(made, system=dataclasses.replace(made.system, **small), mesh=sharding.Mesh(data=-1, fsdp=4))


@pytest.fixture(scope="module")
def planned(config) -> plan.Plan:
    return plan.make(config, TOPOLOGY, recipe="tiny", devices=jax.devices())


def test_a_state_started_in_its_parts_takes_what_was_counted(config):
    """Of every device, by what is alive on it, and a quarter of what it would be whole."""
    mesh = config.mesh.make()
    made = shapes.program(config, mesh)
    compiled_init = jax.jit(made.init, out_shardings=made.shardings).lower().compile()
    state = compiled_init()
    counted = sum(leaf.bytes for leaf in shapes.leaves(made))
    whole = sum(x.nbytes for x in jax.tree.leaves(state))
    for device in jax.devices():
        alive = sum(shard.data.nbytes for x in jax.tree.leaves(state) for shard in x.addressable_shards if shard.device == device)
        assert alive == counted < 0.4 * whole
    memory = compiled_init.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 0.8 * whole, "nothing whole on the way, either"


def test_what_the_compiler_says_stands_beside_what_is_exact(planned, config):
    assert planned.how == "compiled, not run" and planned.fits
    assert planned.peak >= planned.state + planned.batch > 0
    assert planned.rest == planned.peak - planned.state - planned.batch
    assert set(planned.parts) == {"parameters", "optimizer", "moving average"}
    assert planned.parts["moving average"] == planned.parts["parameters"]
    assert planned.batch == 2 * (32 * 32 * 3 + 4 * 24 + 4)
    axes = {axis for found in planned.collectives for axis in found.axes}
    assert axes == {"data", "fsdp"}
    assert 0 < planned.flops_per_example == planned.executed_per_example, "nothing is recomputed"
    assert planned.roofline_milliseconds == pytest.approx(
        1e3 * 16 * planned.flops_per_example / 8 / (plan.EFFICIENCY * 197e12)
    )


def test_shapes_are_counted_on_a_mesh_that_leaves_sharding_to_the_compiler(config):
    """As a real one does: where axes are explicit by default, reshaping a sharded image is refused."""
    assert set(shapes.abstract_mesh(config, 8).axis_types) == {jax.sharding.AxisType.Auto}


def test_recomputation_is_counted(config, planned):
    again = search.changed(config, {"remat": "full"})
    made = shapes.program(again, shapes.abstract_mesh(again, 8))
    assert compiled.arithmetic(made, shapes.batch(again)) / 16 > 1.2 * planned.flops_per_example


def test_a_tower_within_a_tower_is_varied_too():
    system = configs.load_recipe(str(Path(RECIPE).parents[1] / "configs" / "pods" / "coca_b.py"))[0].system
    assert list(plan.towers(system)) == ["image.tower", "text"] and plan.remat(system) == "names"
    none = plan.with_remat(system, "none")
    assert none.image.tower.remat == none.text.remat == "none" and none.image.queries == system.image.queries
    assert plan.with_remat(none, "names") == system


def test_a_plan_is_read_from_text_json_and_page(planned):
    text = words.report(planned)
    for part in ("compiled, not run", "parameters, exact", "high-water mark, compiler", "it fits", "all-reduce", "roofline at 40%"):
        assert part in text
    kept = json.loads(json.dumps(plan.to_json(planned)))
    assert kept["fits"] and kept["peak"] == planned.peak and kept["mesh"] == {"data": 2, "fsdp": 4, "model": 1}
    shown = page.page([dataclasses.replace(planned, recipe="<script>alert(1)</script>"), planned])
    assert "<script" not in shown and "Compiled, not run" in shown and "http" not in shown.replace("http-equiv", "")
    assert "<title>tiny on 4 slices of v5e:2x4</title>" in page.page([dataclasses.replace(planned, slices=4)])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0.00 B"), (105_000, "105 kB"), (999.6e6, "1.00 GB"), (5.166e9, "5.17 GB"), (0.2262, "226 mB"), (2.5e-7, "250 nB")],
)
def test_sizes_and_times_take_the_unit_that_suits_them(value, shown):
    assert words.scaled(value, "B") == shown


def test_without_the_compiler_the_state_is_counted_and_the_rest_said_to_be_missing(config, monkeypatch, planned):
    monkeypatch.setattr(tpu, "compiler", lambda: "")
    made = plan.make(config, TOPOLOGY, recipe="tiny")
    assert made.how == "by shape only, not compiled" and made.fits is None and made.peak is None
    assert made.parts == planned.parts and made.flops_per_example == planned.flops_per_example
    assert "pip install 'jax[tpu]'" in words.report(made)
    with pytest.raises(InputError, match="without a compiler"):
        search.search(config, "tiny", search.Target(TOPOLOGY), say=print)


def test_the_command_writes_json_and_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tpu, "compiler", lambda: "")
    assert entry.main([RECIPE, "--topology", TOPOLOGY, "--out", str(tmp_path / "p"), "--mesh.fsdp", "2", "--batch-size", "32"]) == 0
    (kept,) = json.loads((tmp_path / "p" / "plan.json").read_text())
    assert (kept["mesh"]["fsdp"], kept["batch_size"]) == (2, 32)
    assert (tmp_path / "p" / "plan.html").read_text().startswith("<!doctype html>")
    assert str(tmp_path / "p" / "plan.html") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--efficiency", "2"), "efficiency 2.0: a share"),
        (("--batch-size", "12"), "batch_size 12 is not divisible by 8"),
        (("--steps", "2 epochs"), "the size of an epoch is not known"),
        (("--mesh.fsdp", "3"), "does not make up the 8 devices"),
        (("--slices", "0"), "slices 0: must be at least 1"),
        (("--topology", "v5e:2x2x2"), "a slice of v5e has 2 sides"),
        (("--topology", "v4:2x4"), "a slice of v4 has 3 sides, such as v4:4x4x4"),
        (("--out", __file__), "choose another --out"),
    ],
)
def test_what_cannot_be_planned_is_said(flags, message, tmp_path, monkeypatch):
    monkeypatch.setattr(tpu, "compiler", lambda: "")
    with pytest.raises(InputError, match=message):
        entry.main([RECIPE, "--topology", TOPOLOGY, "--out", str(tmp_path), *flags])


def _pretend(monkeypatch, planned):
    """Compilation by formula: recomputing costs time and saves memory, as chunks and fsdp do; the chip has 10 bytes."""

    def make(config, topology, *, recipe, fields, **_):
        policy = config.system.image.remat
        size = {"none": 40.0, "names": 20.0, "dots": 24.0, "full": 12.0}[policy] / config.microbatches * config.batch_size / 16
        time = {"none": 10.0, "names": 11.0, "dots": 15.0, "full": 13.0}[policy] * config.batch_size / 16 + config.mesh.fsdp
        fits = size <= 10
        numbers = {"peak": size if fits else None, "asked": None if fits else size, "compute_milliseconds": time}
        return dataclasses.replace(
            planned, fields=fields, parts={}, batch=0, memory=10.0, exchange_milliseconds=0.0, remat=policy,
            batch_size=config.batch_size, microbatches=config.microbatches, **numbers,
        )  # fmt: skip

    monkeypatch.setattr(plan, "make", make)


def test_the_nearest_change_that_fits_is_named(config, planned, monkeypatch):
    _pretend(monkeypatch, planned)
    said = []
    found = search.with_change(config, "tiny", search.Target(TOPOLOGY, devices=jax.devices()), say=said.append)
    assert found.fits is False
    assert found.change == "--system.image.remat full --system.text.remat full --mesh.data -1 --mesh.fsdp 8 --microbatches 2"
    assert "it fits with --system.image.remat full" in words.report(found)
    assert said[0].endswith("--system.image.remat names --system.text.remat names")


def test_a_search_goes_on_from_the_best_and_lists_the_best_first(config, planned, monkeypatch):
    _pretend(monkeypatch, planned)
    kept = []
    found = search.search(config, "tiny", search.Target(TOPOLOGY, devices=jax.devices()), say=lambda _: None, keep=kept.append)
    assert found[0].fields == {"remat": "full", "microbatches": 2}
    assert found[0].flags == "--system.image.remat full --system.text.remat full --microbatches 2"
    fits = [bool(each.fits) for each in found]
    assert fits == sorted(fits, reverse=True)
    assert sum(not each.fields for each in found) == 1, "the recipe as it is stands among them"
    assert [len(each) for each in kept] == list(range(1, len(found) + 1)) and kept[-1] == found, "nothing is lost when it is stopped"
    table = words.table(found)
    assert table.splitlines()[1].split()[5] == "full" and "* " in table
    fewer = search.search(config, "tiny", search.Target(TOPOLOGY, devices=jax.devices()), say=lambda _: None, vary=["remat"])
    assert {name for each in fewer for name in each.fields} == {"remat"}


def test_a_neighbour_that_cannot_work_is_said_and_passed_over(config, planned, monkeypatch):
    """As a model with batch statistics refuses chunks."""
    _pretend(monkeypatch, planned)
    formula = plan.make

    def refuse(config, topology, **options):
        if config.microbatches > 1:
            raise InputError("microbatches: not with batch statistics")
        return formula(config, topology, **options)

    monkeypatch.setattr(plan, "make", refuse)
    said = []
    target = search.Target(TOPOLOGY, devices=jax.devices())
    assert not any("microbatches" in each.fields for each in search.search(config, "tiny", target, say=said.append))
    assert any(line.endswith("--microbatches 2: microbatches: not with batch statistics") for line in said)
    found = search.with_change(config, "tiny", target, say=said.append)
    assert not found.fits and not found.change and "none of the changes that were tried makes it fit" in words.report(found)


def test_a_ring_sends_what_its_devices_lack():
    sizes = {"data": 4, "fsdp": 16, "model": 1}
    assert compiled.sent("all-gather", 160.0, ("fsdp",), sizes) == 150
    assert compiled.sent("all-reduce", 160.0, ("fsdp",), sizes) == 300
    assert compiled.sent("reduce-scatter", 10.0, ("fsdp",), sizes) == 150
    assert compiled.bandwidth(("fsdp",), sizes, "v5e:16x16") == 2 * 45e9
    assert compiled.bandwidth(("data", "fsdp"), {"data": 16, "fsdp": 16}, "v5e:16x16") == 4 * 45e9


def test_what_a_refusal_asked_for_is_read_from_its_words():
    assert compiled._asked("Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm. Exceeded") == 18.5 * 2**30
    words = "Ran out of memory on HBM, the total memory required for HLO temporaries (32.15G) exceeds available HBM (15.75G)."
    assert compiled._asked(words) == 32.15 * 2**30
    assert compiled._asked("something else") is None
