"""Eight fake CPU devices, checked shapes and the shared data, for every test."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook(["vlm_jax.ops", "vlm_jax.losses", "vlm_jax.layers", "vlm_jax.models"], "beartype.beartype").__enter__()

ROOT = Path(__file__).resolve().parents[1]
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
