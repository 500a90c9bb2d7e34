"""What the losses take on a pod of 256 chips, as TPU's compiler says on this machine."""

import functools
import importlib.util
import json
import os
from pathlib import Path

import pytest

from vlm_jax.losses import contrastive

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("contrastive_benchmark", ROOT / "benchmarks" / "contrastive.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measure(benchmark):
    if importlib.util.find_spec("libtpu") is None:
        reason = "compiles for TPU: needs libtpu, pip install 'jax[tpu]'"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return functools.cache(functools.partial(benchmark.measure, topology="v5e:16x16"))


def test_the_table_in_the_docs_is_the_one_that_was_measured(benchmark):
    rows = [benchmark.Row(**row) for row in json.loads((ROOT / "docs" / "contrastive.json").read_text())]
    assert benchmark.markdown(rows) in (ROOT / "docs" / "contrastive.md").read_text()
    assert all(row.chosen == contrastive.choose(row.pairs, row.width, benchmark.sides(row.topology), 2) for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_million_pairs_of_width_768_fit_beside_a_model(measure, loss):
    row = measure(loss, "auto", pairs=1_048_576, width=768)
    print(row)
    assert row.chosen == "ring"
    assert row.peak_megabytes <= 800


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_at_32768_pairs_the_blocks_are_as_fast_as_the_formula_in_less_memory(measure, loss):
    row, formula = (measure(loss, form, pairs=32_768, width=512) for form in ("auto", "formula"))
    print(row, formula, sep="\n")
    assert row.chosen == "gathered"
    assert row.milliseconds <= min(0.30, formula.milliseconds)
    assert row.peak_megabytes <= formula.peak_megabytes
