"""Eight fake CPU devices, checked shapes and the shared data, for every test."""

import os
import re
import shutil

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads wait for one another where cores are busy
# Most of a test of a tiny model is compilation, a quarter less without optimisation. What the caller says comes later, and counts.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook(["vlm_jax.ops", "vlm_jax.losses", "vlm_jax.layers", "vlm_jax.models"], "beartype.beartype").__enter__()

ROOT = Path(__file__).resolve().parents[1]


def pytest_terminal_summary(terminalreporter):
    """The figures that the gates of docs/reliability.md print."""
    said = [line for report in terminalreporter.getreports("passed") for line in report.capstdout.splitlines()]
    lines = sorted({line for line in said if re.match(r"R\d+\b.*:", line)}, key=lambda line: (int(re.findall(r"\d+", line)[0]), line))
    if lines:
        terminalreporter.section("gates")
        for line in lines:
            terminalreporter.write_line(line)


ORACLES = ROOT / "tests" / "oracles"


@pytest.fixture(scope="session")
def oracles() -> Path:
    """The folder of reference numbers; see its README for their origin."""
    return ORACLES


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the repository, never inside it."""
    root = Path(os.environ.get("VLM_JAX_SHARED", ROOT.parent / "shared")) / "data"
    if not root.is_dir():
        reason = f"needs real data: set VLM_JAX_SHARED to a folder that has data/ (looked in {root})"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return root


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium of the system, driven through playwright."""
    from playwright import sync_api

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        reason = "needs a browser: install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory) -> Path:
    """A small shapes world of 32 pixels: 128 training scenes and every split."""
    from vlm_jax.data import shapes

    world = shapes.World(
        image_size=32, one_object=128, two_objects=0, val=24, held_out=16, trained_pairs=48, relations=8, shards=2
    )
    return shapes.ensure(tmp_path_factory.mktemp("data") / "world", world)
