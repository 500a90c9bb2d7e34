"""Merged weights: the oracles of PAINT and WiSE-FT, both ends bit for bit, and what cannot be merged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.errors import InputError
from vlm_jax.training import merging


def _models(seed=0, count=2):
    keys = jax.random.split(jax.random.key(seed), count)
    return [{"kernel": jax.random.normal(key, (3, 4)), "steps": jnp.int32(i), "half": jnp.bfloat16(i)} for i, key in enumerate(keys)]


def test_interpolation_and_the_choice_of_the_coefficient_are_the_oracle_s(oracles):
    with jax.enable_x64(True), np.load(oracles / "paint.npz") as o:
        first, second = ({"w": jnp.asarray(o[f"in_w{i}"]), "b": jnp.asarray(o[f"in_b{i}"])} for i in (0, 1))
        for i, coefficient in enumerate(o["in_alphas"]):
            merged = merging.interpolate(first, second, float(coefficient))
            for name in ("w", "b"):
                np.testing.assert_allclose(merged[name], o[f"out_{name}"][i], rtol=0, atol=1e-12)
        np.testing.assert_allclose(merging.interpolate(first, second, 0.5)["w"], o["out_w_wise05"], atol=1e-12)
        scores = [o["in_acc_patch"], o["in_acc_supported"]]
        assert merging.best([float(x) for x in o["in_alphas"]], scores) == float(o["out_alpha"])
        np.testing.assert_allclose(np.mean(scores, 0), o["out_avg"], atol=1e-12)


def test_fisher_parallel_and_sequential_merges_are_the_oracle_s(oracles):
    with jax.enable_x64(True), np.load(oracles / "paint_variants.npz") as o:
        w0, w1, f0, f1, a, b = ({"w": jnp.asarray(o[f"in_{name}"])} for name in ("w0", "w1", "f0", "f1", "w_taskA", "w_taskB"))
        merged = merging.fisher(w0, w1, (f0, f1), float(o["in_alpha"]))
        np.testing.assert_allclose(merged["w"], o["out_w"], atol=1e-12)
        coefficients = [float(o["in_alpha_A"]), float(o["in_alpha_B"])]
        np.testing.assert_allclose(merging.add_differences(w0, [a, b], coefficients)["w"], o["out_w_parallel"], atol=1e-12)
        patched = merging.interpolate(w0, a, coefficients[0])
        np.testing.assert_allclose(merging.interpolate(patched, b, coefficients[1])["w"], o["out_w_sequential_second_step"], atol=1e-12)


def test_the_ends_are_equal_bit_for_bit_and_integers_stay():
    first, second = _models()
    second["kernel"] = second["kernel"].at[0, 0].set(jnp.inf)
    for coefficient, end in ((0, first), (1, second)):
        merged = merging.interpolate(first, second, coefficient)
        np.testing.assert_array_equal(merged["kernel"], end["kernel"])
        assert merged["steps"] == 0 and merged["half"] == end["half"]
    middle = merging.interpolate(first, second, 0.3)
    assert middle["half"].dtype == jnp.bfloat16 and middle["half"] == jnp.bfloat16(0.3)


def test_a_soup_is_the_mean_and_one_half_of_two():
    models = _models(count=3)
    np.testing.assert_allclose(merging.soup(models)["kernel"], np.mean([m["kernel"] for m in models], 0), rtol=1e-6)
    np.testing.assert_allclose(merging.soup(models[:2])["kernel"], merging.interpolate(*models[:2], 0.5)["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(merging.soup(models[:1])["kernel"], models[0]["kernel"])


def test_a_linear_model_is_affine_in_the_coefficient():
    first, second = _models()
    x = jax.random.normal(jax.random.key(3), (5, 3))
    outputs = [x @ merging.interpolate(first, second, c)["kernel"] for c in (0, 0.25, 1)]
    np.testing.assert_allclose(outputs[1], 0.75 * outputs[0] + 0.25 * outputs[2], atol=1e-6)


def test_other_trees_and_numbers_are_refused():
    first, second = _models()
    with pytest.raises(InputError, match="they differ in more"):
        merging.interpolate(first, second | {"more": jnp.zeros(1)}, 0.5)
    with pytest.raises(InputError, match="they differ in kernel"):
        merging.soup([first, second | {"kernel": jnp.zeros((4, 3))}])
    with pytest.raises(InputError, match=r"coefficients \[0\.5\]: give one for each of the 2 models"):
        merging.add_differences(first, [first, second], [0.5])
    with pytest.raises(InputError, match="give at least one"):
        merging.soup([])


def test_of_equal_scores_the_first_coefficient_is_taken():
    assert merging.best([0.0, 0.5, 1.0], [[0.2, 0.6, 0.4], [0.8, 0.4, 0.6]]) == 0.0
