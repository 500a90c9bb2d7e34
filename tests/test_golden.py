"""Every shipped recipe resolves to the configuration and the parameters in tests/golden: a changed number is a visible change.

After a change that is meant: python tests/test_golden.py
"""

import json
from pathlib import Path

import pytest

from vlm_jax import config as configs
from vlm_jax.training import state as states
from vlm_jax.training import tree

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def snapshot(recipe: str) -> str:
    """The resolved configuration, and path, shape and dtype of every parameter."""
    config, _ = configs.load_recipe(str(ROOT / "configs" / f"{recipe}.py"))
    params = tree.flatten(states.Model.of(config.system).params)
    table = {path: f"{'x'.join(map(str, x.shape)) or 'scalar'} {x.dtype}" for path, x in params.items()}
    return json.dumps({"config": configs.to_json(config), "parameters": table}, indent=1) + "\n"


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_resolves_to_its_snapshot(recipe):
    file = GOLDEN / f"{recipe}.json"
    assert file.exists(), f"a new recipe needs its snapshot: python {Path(__file__).relative_to(ROOT)}"
    assert json.loads(snapshot(recipe)) == json.loads(file.read_text())


@pytest.mark.parametrize("recipe", RECIPES)
def test_resolved_configuration_returns_from_json(recipe):
    config, _ = configs.load_recipe(str(ROOT / "configs" / f"{recipe}.py"))
    assert configs.from_json(json.loads(json.dumps(configs.to_json(config)))) == config


def test_a_configuration_from_before_a_field_was_added_means_its_default():
    config, _ = configs.load_recipe(str(ROOT / "configs" / "clip_webdataset.py"))
    made = configs.to_json(config)
    del made["system"]["image_tokens"], made["data"]["tokens"], made["data"]["bad_records"]
    assert configs.from_json(made) == config


def test_types_from_elsewhere_need_a_word():
    with pytest.raises(configs.InputError, match="--allow-types subprocess"):
        configs.from_json({"_type": "subprocess.Popen", "args": ["true"]})
    with pytest.raises(configs.InputError, match="not a configuration"):
        configs.from_json({"_type": "vlm_jax.config.load_recipe", "path": "x"})
    with pytest.raises(configs.InputError, match="no field"):
        configs.from_json({"_type": "vlm_jax.training.sharding.Mesh", "date": 3})


if __name__ == "__main__":
    for name in RECIPES:
        (GOLDEN / f"{name}.json").write_text(snapshot(name))
        print(f"wrote tests/golden/{name}.json")
