"""Masks: which images a token sees, after the cases of the Flamingo card."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.ops import masks


@pytest.mark.parametrize(
    ("look", "seen", "name"),
    [("previous", "one", "prev"), ("next", "one", "next"), ("previous", "all_previous", "all_previous")],
)
def test_each_token_sees_the_images_that_the_cases_say(oracles, look, seen, name):
    cases = json.loads((oracles / "flamingo_masks.json").read_text())["cases"]
    is_image = np.zeros((len(cases), max(len(case["tokens"]) for case in cases)), bool)
    for row, case in zip(is_image, cases, strict=True):
        row[: len(case["tokens"])] = [token == "<image>" for token in case["tokens"]]

    @jax.jit
    def outputs(is_image):
        index = masks.image_index(is_image, look)
        return index, masks.images(index, 3, 2, seen=seen)

    index, mask = map(np.asarray, outputs(is_image))
    for i, case in enumerate(cases):
        t, count = len(case["tokens"]), is_image[i].sum()
        if seen == "one":
            assert index[i, :t].tolist() == case[f"phi_{name}"]
        expected = np.array(case[f"mask_{name}"], bool).reshape(t, count)
        np.testing.assert_array_equal(mask[i, 0, :t, : 2 * count], np.repeat(expected, 2, axis=1))


def test_no_token_sees_the_image_of_another_document():
    index, segments = jnp.array([[0, 1, 1, 2, 2, 0]]), (jnp.array([[1, 1, 1, 2, 2, 0]]), jnp.array([[1, 2, 0]]))

    @jax.jit
    def outputs(index):
        one, every = (masks.images(index, 3, 1, seen=seen, segments=segments) for seen in ("one", "all_previous"))
        return one, every, masks.images(index, 3, 1, seen="all_previous")

    one, every, without = (np.asarray(mask[0, 0]) for mask in outputs(index))
    np.testing.assert_array_equal(one, every)
    assert one.astype(int).tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert without[3].tolist() == [True, True, False]
