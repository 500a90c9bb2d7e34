"""The house keeps its shape: imports go downwards, and training knows no system by name."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vlm_jax"
SYSTEMS = {path.stem: path for path in (PACKAGE / "systems").glob("*.py") if path.stem not in ("__init__", "base")}
TRAINING = sorted((PACKAGE / "training").glob("*.py"))


def test_the_import_contracts_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.fail("import-linter is not installed: pip install -e '.[dev]'")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Contracts:" in done.stdout, done.stdout + done.stderr


def test_every_room_has_its_floor():
    text = (ROOT / "pyproject.toml").read_text()
    named = set(re.findall(r"vlm_jax\.(\w+)", text.partition("[tool.importlinter]")[2]))
    rooms = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()} - {"__init__"}
    assert not rooms - named, "a new module of vlm_jax belongs on a floor of the contracts in pyproject.toml"


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.name)
def test_training_names_no_system(path):
    assert not mentions(path.read_text())


@pytest.mark.parametrize(
    "text",
    [
        "from vlm_jax.systems import clip",
        "from vlm_jax.systems.siglip import Siglip",
        "import vlm_jax.systems.two_tower as towers",
        "if isinstance(system, Clip): pass",
        "if system.name == 'siglip': pass",
        "# CLIP clips its scale",
        '"""As SigLIP does."""',
    ],
)
def test_a_mention_is_noticed(text):
    assert mentions(text)


def test_the_words_of_the_field_are_no_mention():
    assert not mentions("from vlm_jax.systems import base\nparams = clip(params, base.Bound)  # clip by global norm")


def mentions(text: str) -> list[str]:
    """Systems that a module's text names: by import, as a whole string, or by a name with capitals, wherever it stands."""
    names = set(SYSTEMS)
    found = [word for word in re.findall(r"\w+", text) if word != word.lower() and word.lower().replace("_", "") in _plain(names)]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith("vlm_jax.systems.") and a.name != "vlm_jax.systems.base"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vlm_jax.systems"):
            found += [a.name for a in node.names if node.module != "vlm_jax.systems.base" and a.name != "base"]
        elif isinstance(node, ast.Constant) and node.value in names:
            found.append(str(node.value))
    return found


def _plain(names: set[str]) -> set[str]:
    return {name.replace("_", "") for name in names}
