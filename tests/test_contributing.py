"""The worked examples of CONTRIBUTING.md, put into a copy of the sources, do what their own tests say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("vlm_jax", "configs", "data", "docs", "tests", ".ci")
BLOCK = r"^```(python|diff)\n(.*?)^```"
BLOCKS = re.findall(BLOCK, (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def patched(tmp_path_factory) -> Path:
    """The sources with every example at its place."""
    copy = tmp_path_factory.mktemp("contributing") / "vlm_jax"
    for part in PARTS:
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "envs"))
    for file in (*ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "setup.py"):
        shutil.copy(file, copy)
    for kind, block in BLOCKS:
        if kind == "diff":
            _run(copy, "git", "apply", "--recount", "-C1", "-", stdin=block)
            continue
        path = copy / _path(block)
        body = block.split("\n", 1)[1]
        path.write_text(path.read_text() + body if path.exists() else body)
    return copy


def test_the_examples_pass_their_tests_and_keep_the_contracts(patched):
    tests = sorted({_path(block) for kind, block in BLOCKS if kind == "python" and "# tests/" in block})
    assert len(tests) == 4, "a loss, a system, an evaluator, a source"
    _run(patched, sys.executable, "tests/test_golden.py")
    names = "cyclic or clip or geometry or zips or CONTRIBUTING"
    output = _run(
        patched,
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-k", names),
        *(*tests, "tests/test_documents.py", "tests/test_golden.py"),
    )
    found = re.search(r"(\d+) passed", output)
    assert found and int(found[1]) >= 8, output
    lint = Path(sys.executable).with_name("lint-imports")
    assert "0 broken" in _run(patched, str(lint), "--no-cache")


def test_the_table_counts_the_lines_of_the_examples():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    stated = [tuple(map(int, row)) for row in re.findall(r"^\| an? [^|]*\| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)]
    counted = []
    for section in text.split("\n## ")[-4:]:
        files: dict[str, int] = {}
        for kind, block in re.findall(BLOCK, section, re.MULTILINE | re.DOTALL):
            path = re.findall(r"^\+\+\+ b/(.*)", block, re.MULTILINE)[0] if kind == "diff" else _path(block)
            body = re.findall(r"^\+(?!\+)", block, re.MULTILINE) if kind == "diff" else block.split("\n", 1)[1].strip().splitlines()
            files[path] = files.get(path, 0) + len(body)
        counted.append((len(files), sum(files.values()), sum(n for path, n in files.items() if path.startswith("tests/"))))
    assert stated == counted


def _path(block: str) -> str:
    return block.split("\n", 1)[0].removeprefix("# ")


def _run(folder: Path, *command: str, stdin: str = "") -> str:
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent), "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
