"""The cross-entropy of blocks of words is the plain one, in value and gradients, on every mesh, and never holds all logits."""

import functools
import importlib.util
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from vlm_jax.losses import language
from vlm_jax.ops import chunks
from vlm_jax.training import hlo

P = jax.P
ROOT = Path(__file__).resolve().parents[2]
CASES = [((1, 1, 1), 601), ((8, 1, 1), 40), ((2, 4, 1), 256), ((1, 4, 2), 1202), ((1, 4, 2), 601)]
"""Meshes, and vocabularies of one block or of blocks of 256 and a rest; an odd number cannot be divided among the devices of `model`."""
B, T, D = 8, 5, 16


def _mesh(shape):
    return jax.make_mesh(shape, ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[: np.prod(shape)])


def _arguments(dtype, v, b=B):
    rng = np.random.default_rng(v)
    hidden, head, bias = (rng.normal(size=shape) for shape in ((b, T, D), (D, v), (v,)))
    weights = rng.random((b, T)) * (np.arange(T) % 3 != 1)
    wide = [jnp.asarray(x, dtype) for x in (hidden, 2 * head, bias)]
    return *wide, jnp.asarray(rng.integers(0, v, (b, T)), jnp.int32), jnp.asarray(weights, dtype)


def _mean(hidden, head, bias, labels, weights, **cells):
    total, weight = language.cross_entropy(hidden, head, labels, weights, bias=bias, **cells)
    return total / weight


def _plain(hidden, head, bias, labels, weights):
    of_label = jnp.take_along_axis(jax.nn.log_softmax(hidden @ head + bias), labels[..., None], -1)[..., 0]
    return -(of_label * weights).sum() / weights.sum()


BLOCKS, FORMULA = (jax.jit(jax.value_and_grad(fn, (0, 1, 2))) for fn in (_mean, _plain))


def _split(mesh, hidden, head, bias, labels, weights):
    rows = NamedSharding(mesh, P(("data", "fsdp")))
    words = NamedSharding(mesh, P(None, "fsdp") if head.shape[1] % mesh.shape["fsdp"] == 0 else P())
    hidden, labels, weights = jax.device_put((hidden, labels, weights), rows)
    return hidden, jax.device_put(head, words), bias, labels, weights


def _worst(got, want):
    leaves = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max() for a, b in leaves)


@pytest.mark.parametrize(
    ("shape", "v", "dtype", "tolerance"), [(*case, jnp.float64, 1e-10) for case in CASES] + [(*CASES[0], jnp.float32, 1e-5)], ids=str
)
def test_value_and_all_gradients_are_those_of_the_formula(shape, v, dtype, tolerance):
    with jax.enable_x64(dtype == jnp.float64):
        arguments = _arguments(dtype, v)
        want = FORMULA(*arguments)
        mesh = _mesh(shape)
        with jax.set_mesh(mesh):
            got = jax.jit(jax.value_and_grad(functools.partial(_mean, cells=1), (0, 1, 2)))(*_split(mesh, *arguments))
    assert _worst(got, want) <= tolerance
    assert [x.dtype for x in got[1]] == [dtype] * 3


def test_a_token_that_is_not_to_be_predicted_adds_nothing_whatever_it_holds():
    hidden, head, bias, labels, weights = _arguments(jnp.float32, 300)
    want = BLOCKS(hidden, head, bias, labels, weights)
    other = jnp.where(weights == 0, -100, labels).at[0, 1].set(300)
    got = BLOCKS(hidden, head, bias, other, weights)
    assert weights[0, 1] == 0 and _worst(got, want) <= 1e-6
    assert not np.asarray(got[1][0])[np.asarray(weights) == 0].any()


@pytest.mark.parametrize("label", [-1, 300])
def test_a_label_outside_the_vocabulary_that_counts_is_noticed(label):
    hidden, head, bias, labels, weights = _arguments(jnp.float32, 300)
    assert jnp.isnan(BLOCKS(hidden, head, bias, labels.at[0, 0].set(label), weights)[0])


def test_scores_are_what_the_logits_say_and_each_has_its_own_gradient():
    """Such as of a z-loss, the squared normalizer."""
    hidden, head, bias, labels, _ = _arguments(jnp.float32, 300)
    logits = np.asarray(hidden @ head + bias)
    labels = labels.at[:4].set(logits.argmax(-1)[:4])

    def blocks(hidden, head):
        made = language.scores(hidden, head, labels, bias=bias)
        return (made.log_normalizer**2).sum() + jnp.sin(made.logit).sum() + made.largest.sum(), made

    def formula(hidden, head):
        logits = hidden @ head + bias
        of_label = jnp.take_along_axis(logits, labels[..., None], -1)
        return (jax.nn.logsumexp(logits, -1) ** 2).sum() + jnp.sin(of_label).sum()

    gradients, made = jax.jit(jax.grad(blocks, (0, 1), has_aux=True))(hidden, head)
    assert _worst(gradients, jax.jit(jax.grad(formula, (0, 1)))(hidden, head)) <= 1e-5
    np.testing.assert_allclose(made.logit, np.take_along_axis(logits, np.asarray(labels)[..., None], -1)[..., 0], rtol=1e-5)
    np.testing.assert_allclose(made.log_normalizer, np.log(np.exp(logits.astype(np.float64)).sum(-1)), rtol=1e-5)
    np.testing.assert_allclose(made.largest, logits.max(-1), rtol=1e-5)
    np.testing.assert_array_equal(made.right, np.asarray(labels) == logits.argmax(-1))
    assert made.right.sum() >= 20


def test_large_logits_overflow_nothing():
    hidden, head, bias, labels, weights = _arguments(jnp.float32, 300)
    wide = hidden * 100, head * 10, bias, labels, weights
    assert _worst(BLOCKS(*wide), FORMULA(*wide)) <= 1e-5


def test_bfloat16_states_have_float32_scores_and_bfloat16_gradients():
    hidden, head, bias, labels, weights = _arguments(jnp.bfloat16, 300)
    value, gradients = BLOCKS(hidden, head, bias, labels, weights)
    exact, want = FORMULA(*(x.astype(jnp.float32) for x in (hidden, head, bias)), labels, weights)
    assert value.dtype == jnp.float32 and [g.dtype for g in gradients] == [jnp.bfloat16] * 3
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    for a, b in zip(gradients, want, strict=True):  # bfloat16 has 8 bits
        assert np.abs(np.asarray(a, np.float32) - b).max() <= 2**-7 * np.abs(b).max()


def test_it_may_stand_in_chunks_of_the_batch_on_a_mesh_with_tensor_parallelism():
    """There the batch axes are the device's own already, and only the words are to be divided."""
    hidden, head, bias, labels, weights = _arguments(jnp.float32, 300, b=16)
    mesh = _mesh((2, 2, 2))

    def sums(head, hidden, labels, weights):
        losses = -language.scores(hidden, head, labels).log_likelihood
        return (losses * weights).sum(1), weights.sum(1)

    def loss(hidden, head):
        total, weight = chunks.in_chunks(sums, 2)(head, hidden, labels, weights)
        return total.sum() / weight.sum()

    value, (d_hidden, d_head, _) = FORMULA(hidden, head, 0 * bias, labels, weights)
    with jax.set_mesh(mesh):
        got = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, head)
    assert _worst(got, (value, (d_hidden, d_head))) <= 1e-5


def test_a_batch_that_the_mesh_does_not_divide_is_whole_on_every_device():
    arguments = _arguments(jnp.float32, 300, b=3)
    with jax.set_mesh(_mesh((2, 2, 2))):
        assert _worst(jax.jit(_mean)(*arguments), FORMULA(*arguments)[0]) <= 1e-5


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 4, 2)], ids=str)
def test_the_gradient_of_the_head_is_exchanged_once_and_tokens_stay_where_they_are(shape):
    mesh, b, v = _mesh(shape), 64, 2048
    rows, words = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P(None, ("model", "fsdp")))
    arguments = [
        jax.ShapeDtypeStruct((b, T, D), jnp.float32, sharding=rows), jax.ShapeDtypeStruct((D, v), jnp.float32, sharding=words),
        jax.ShapeDtypeStruct((b, T), jnp.int32, sharding=rows), jax.ShapeDtypeStruct((b, T), jnp.float32, sharding=rows),
    ]  # fmt: skip

    def loss(hidden, head, labels, weights):
        scores = language.scores(hidden, head, labels, cells=1)
        return language.weighted_sum(-scores.log_likelihood, weights)

    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=(None, (rows, words)))
        program = hlo.read(step.lower(*arguments).compile().as_text())
    own, states = D * v * 4 / shape[2], b * T * D * 4 / (shape[0] * shape[1])
    assert set(program.loops) == {v // shape[2] // 256}
    sums = [e for e in program.exchanges if e.kind in ("all-reduce", "reduce-scatter") and set(e.axes(mesh.shape)) & {"data", "fsdp"}]
    assert sum(e.bytes * e.count for e in sums if e.bytes >= own / 8) - own in range(64), "the head's gradient, once"
    gathered = [e.bytes * e.count for e in program.exchanges if e.kind == "all-gather"]
    assert sum(gathered) <= 2 * own, "the head where fsdp keeps it in parts, for either pass, and no states"
    along_model = [e for e in program.exchanges if e.axes(mesh.shape) == ("model",)]
    assert all(e.count == 1 for e in program.exchanges) and all(e.bytes <= states for e in along_model)


def test_a_quarter_of_a_million_words_take_less_than_a_gigabyte_beside_the_head_and_its_gradient():
    """128 texts of 64 tokens, width 768: the logits alone would be 8.6 GB."""
    b, t, d, v = 128, 64, 768, 262_144
    shapes = [((b, t, d), jnp.float32), ((d, v), jnp.float32), ((v,), jnp.float32), ((b, t), jnp.int32), ((b, t), jnp.float32)]
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    memory = jax.jit(jax.value_and_grad(_mean, (0, 1, 2))).lower(*arguments).compile().memory_analysis()
    beside = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes - 2 * d * v * 4
    print(f"beside the head and its gradient {beside / 1e6:,.0f} MB, of which temporary {memory.temp_size_in_bytes / 1e6:,.0f}")
    assert beside <= 1e9


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("language_benchmark", ROOT / "benchmarks" / "language.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_in_the_docs_is_the_one_that_was_measured(benchmark):
    rows = [benchmark.Row(**row) for row in json.loads((ROOT / "docs" / "language.json").read_text())]
    assert benchmark.markdown(rows) in (ROOT / "docs" / "language.md").read_text()
    assert [(row.form, row.topology, tuple(row.mesh)) for row in rows] == list(benchmark.CASES)
    assert all(row.megabytes <= 1000 for row in rows if row.form == "blocks")


@pytest.mark.slow
def test_on_tpu_it_takes_less_than_a_gigabyte_too_and_the_gradient_is_reduced_once(benchmark):
    if importlib.util.find_spec("libtpu") is None:
        reason = "compiles for TPU: needs libtpu, pip install 'jax[tpu]'"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    row = benchmark.measure("blocks", "v5e:2x4", (8, 1, 1))
    print(row)
    assert row.megabytes <= 1000 and row.reduced_megabytes <= 1.01 * 768 * 262_144 * 4 / 1e6
