"""The recipes for pods: their configuration and every array of their state at full size, the plans that are kept, and their compilation.

After a change that is meant: python tests/test_pod_recipes.py, and python benchmarks/plans.py for the plans.
"""

import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path

import jax
import pytest

from vlm_jax import config as configs
from vlm_jax.planning import plan, shapes
from vlm_jax.training import tpu

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "pods"
RECIPES = sorted(path.stem for path in (ROOT / "configs" / "pods").glob("*.py"))
TOPOLOGIES = {"lit_b16": "v5e:8x8"}
"""Where it is not all of a v5e pod."""
SHALLOW = "siglip_b16_1m siglip_l16_256 siglip_so400m14 clip_b16_32k clipa_l16 clipa_l16_finish lit_b16".split()
"""Compiled at depth 2. CoCa and Flamingo, whose steps take minutes to compile at any depth, are recorded by benchmarks/plans.py alone."""
PLANS = ROOT / "docs" / "plans.json"
KEPT = json.loads(PLANS.read_text()) if PLANS.exists() else {}


def load(recipe: str) -> configs.Config:
    return configs.load_recipe(str(ROOT / "configs" / "pods" / f"{recipe}.py"))[0]


def topology(recipe: str) -> str:
    return TOPOLOGIES.get(recipe, "v5e:16x16")


def shallow(system, depth: int):
    """The system with at most so many blocks in each of its stacks."""
    towers = {}
    for path, tower in plan.towers(system).items():
        stacks = {name: min(depth, getattr(tower, name)) for name in ("depth", "decoder_depth") if hasattr(tower, name)}
        towers[path] = dataclasses.replace(tower, **stacks)
    return plan.with_towers(system, towers)


def leaves(config: configs.Config, topology: str) -> tuple[list[shapes.Leaf], jax.sharding.AbstractMesh]:
    sides = tpu.sides(topology)
    mesh = shapes.abstract_mesh(config, sides[0] * sides[1] * (sides[2] if len(sides) == 3 else 1))
    return shapes.leaves(shapes.program(config, mesh)), mesh


def snapshot(recipe: str) -> str:
    """The resolved configuration, and shape, dtype and shards of every array of the state."""
    config = load(recipe)
    found, mesh = leaves(config, topology(recipe))
    table = {leaf.path: f"{'x'.join(map(str, leaf.shape)) or 'scalar'} {leaf.dtype} [{leaf.shards}]" for leaf in found}
    return json.dumps({"config": configs.to_json(config), "mesh": dict(mesh.shape), "state": table}, indent=1) + "\n"


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_resolves_to_its_snapshot_and_holds_nothing_large_whole(recipe):
    file = GOLDEN / f"{recipe}.json"
    assert file.exists(), f"a new recipe needs its snapshot: python {Path(__file__).relative_to(ROOT)}"
    assert json.loads(snapshot(recipe)) == json.loads(file.read_text())
    found, mesh = leaves(load(recipe), topology(recipe))
    assert shapes.whole(found, mesh.shape) == []


@pytest.mark.parametrize("key", [key for key, row in KEPT.items() if not row["fields"]])
def test_kept_plans_are_those_of_the_recipes_and_fit(key):
    row = KEPT[key]
    config = load(row["recipe"])
    found, mesh = leaves(config, row["topology"])
    made = {"parts": shapes.parts(found), "mesh": dict(mesh.shape), "batch_size": config.batch_size}
    made |= {"microbatches": config.microbatches, "remat": plan.remat(config.system), "precision": config.precision}
    assert {name: row[name] for name in made} == made, "the recipe has changed: python benchmarks/plans.py --again"
    assert row["fits"] and row["peak"] <= row["memory"] and row["whole"] == []
    docstring = (ROOT / "configs" / "pods" / f"{row['recipe']}.py").read_text().split('"""')[1]
    planned = f"{row['peak'] / 1e9:.1f} GB"
    assert planned in docstring, f"the docstring does not say what is planned: {planned} on each chip of {row['topology']}"


def test_the_clipa_stages_fit_together():
    cheap, finish = load("clipa_l16"), load("clipa_l16_finish")
    shapes_of = [{leaf.path: leaf.shape for leaf in leaves(config, "v5e:16x16")[0]} for config in (cheap, finish)]
    assert shapes_of[0] == shapes_of[1]
    assert cheap.data.image.size == finish.data.image.size / 2 and cheap.data.tokenizer.length < finish.data.tokenizer.length


def test_the_document_shows_the_plans_that_are_kept(monkeypatch):
    spec = importlib.util.spec_from_file_location("plans", ROOT / "benchmarks" / "plans.py")
    assert spec and spec.loader
    plans = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, plans)  # where dataclasses look for annotations
    spec.loader.exec_module(plans)
    text = (ROOT / "docs" / "pods.md").read_text()
    assert plans.document(text, plans.read()) == text, "python benchmarks/plans.py"
    assert plans.document(text, {}) != text, "the markers are there"


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "depth"), [("siglip_b16_32k", None), *((recipe, 2) for recipe in SHALLOW)])
def test_the_step_compiles_for_its_pod_within_the_memory_of_a_chip(recipe, depth):
    """In full, or with the same widths, batch and mesh at depth 2."""
    if not tpu.compiler():
        reason = f"needs libtpu, {tpu.INSTALL}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    config = load(recipe)
    if depth:
        config = dataclasses.replace(config, system=shallow(config.system, depth))
    made = plan.make(config, topology(recipe), recipe=recipe)
    assert made.fits and made.peak and made.whole == []
    print(f"{recipe} at depth {depth or 'full'}: peak {made.peak / 1e9:.2f} GB, compiled in {made.compile_seconds:.0f} s")
    assert {axis for found in made.collectives or () for axis in found.axes} == {"data", "fsdp"}
    kept = KEPT.get(f"{recipe} {topology(recipe)}")
    if kept and kept["compiler"] == made.compiler:
        assert made.peak <= 1.001 * kept["peak"]
        assert depth or made.peak >= 0.999 * kept["peak"]


if __name__ == "__main__":
    for name in RECIPES:
        (GOLDEN / f"{name}.json").write_text(snapshot(name))
        print(f"wrote tests/golden/pods/{name}.json")
