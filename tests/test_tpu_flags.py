"""R13: every profile of configs/tpu_flags.txt compiles a train step for each of its generations, given as the workers get it."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLICES = {"v4": ("v4-32", "v4:2x2x4"), "v5e": ("v5litepod-16", "v5e:4x4"), "v5p": ("v5p-32", "v5p:2x2x4"), "v6e": ("v6e-16", "v6e:4x4")}
"""A small slice of each generation: what the cloud and what the compiler call it."""
LINES = [line.split() for line in (ROOT / "configs" / "tpu_flags.txt").read_text().splitlines() if line and line[0] != "#"]
PROFILES = sorted({(profile, generation) for profile, generations, *_ in LINES for generation in generations.split(",")})

COMPILE = """
import dataclasses, sys
from vlm_jax import config
from vlm_jax.planning import plan
from vlm_jax.training import sharding
tiny = dataclasses.replace(config.load_recipe("tests/tiny_recipe.py")[0], batch_size=64, mesh=sharding.Mesh(fsdp=4))
made = plan.make(tiny, sys.argv[1], recipe="tiny")
print(f"{made.how}: peak {made.peak / 1e6:.1f} MB")
"""


def _compile(topology: str, arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"LIBTPU_INIT_ARGS": arguments, "PYTHONPATH": f"{ROOT}/tests", "TPU_SKIP_MDS_QUERY": "1"}
    return subprocess.run([sys.executable, "-c", COMPILE, topology], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line[0]}-{line[2]}")
def test_a_flag_has_a_generation_a_value_and_a_reason(line):
    profile, generations, flag, sign, *reason = line
    assert set(generations.split(",")) <= set(SLICES) and re.fullmatch(r"[a-z]+", profile)
    assert re.fullmatch(r"xla_\w+=\w+", flag) and sign == "#" and reason


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'jax[tpu]'")


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("profile", "generation"), PROFILES)
def test_a_profile_compiles_for_its_generation(profile, generation):
    """R13."""
    kind, topology = SLICES[generation]
    options = ("--project", "p", "--zone", "z", "--type", kind, "--flags-profile", profile, "--workdir", "gs://b/run", "--dry-run")
    command = ["bash", "launch_tpu.sh", "run", *options, "--", "configs/demo.py"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (remote,) = re.findall(r"'--command=(LIBTPU_INIT_ARGS=.*?) --zone", shown)
    arguments = shlex.split(shlex.split(f"'{remote}")[0])[0].removeprefix("LIBTPU_INIT_ARGS=")
    assert arguments.startswith("--xla_")
    compiled = _compile(topology, arguments)
    assert compiled.returncode == 0, compiled.stderr[-3000:]
    print(f"R13 {profile} for {generation}: {len(arguments.split())} flags, {compiled.stdout.strip().splitlines()[-1]}")


@pytest.mark.slow
@needs_libtpu
def test_an_unknown_flag_ends_the_compiler():
    """Else R13 would say nothing."""
    misspelt = _compile("v5e:4x4", "--xla_tpu_enable_async_colective_fusion=true")
    assert misspelt.returncode != 0 and "Unknown command line flag" in misspelt.stderr
