import numpy as np
import pytest

from vlm_jax.data import masks


def test_a_polygon_has_the_pixels_whose_centres_lie_inside():
    triangle = masks.from_polygon([0, 0, 5, 0, 0, 5], 5, 6)
    assert triangle.astype(int).tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6]
    hollow = masks.from_polygon([0, 0, 6, 0, 6, 5, 0, 5, 0, 0, 2, 2, 2, 3, 4, 3, 4, 2, 2, 2], 5, 6)
    assert np.argwhere(~hollow).tolist() == [[2, 2], [2, 3]]


def test_a_polygon_beyond_the_image_is_cut():
    assert masks.from_polygon([-9, -9, 99, -9, 99, 99, -9, 99], 3, 4).all()
    assert not masks.from_polygon([7, 0, 9, 0, 9, 3], 3, 4).any()


def test_areas_of_random_polygons_are_those_of_their_corners():
    rng = np.random.default_rng(0)
    for _ in range(30):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radius = rng.uniform(40, 90, 9)
        x, y = 100 + radius * np.cos(angles), 100 + radius * np.sin(angles)
        area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
        outline = np.hypot(np.roll(x, -1) - x, np.roll(y, -1) - y).sum()
        found = masks.from_polygon(np.stack([x, y], 1).ravel().tolist(), 200, 200).sum()
        assert abs(found - area) < 0.1 * outline


def compress(runs) -> str:
    """COCO's form, written the other way round."""
    text = ""
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        while True:
            part, value = value & 31, value >> 5
            done = value == (-1 if part & 16 else 0)
            text += chr(48 + part + (0 if done else 32))
            if done:
                break
    return text


def test_run_lengths_go_down_the_columns_compressed_or_not():
    rng = np.random.default_rng(1)
    for _ in range(50):
        mask = rng.random((7, 60)) < rng.random()
        flat = mask.T.ravel()
        changes = np.flatnonzero(np.diff(flat.astype(int), prepend=0))
        runs = np.diff(changes, prepend=0, append=flat.size).tolist()
        for counts in (runs, compress(runs), compress(runs).encode()):
            np.testing.assert_array_equal(masks.decode({"size": [7, 60], "counts": counts}, 7, 60), mask)


@pytest.mark.parametrize(
    "segmentation,message",
    [
        ([], "a list of polygons"),
        ("abc", "a list of polygons"),
        ([[1, 2, 3, 4]], "at least three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least three points"),
        ([[1, 2, 3, 4, 5, float("nan")]], "at least three points"),
        ({"size": [5, 4], "counts": [20]}, "mask of size"),
        ({"size": [4, 5], "counts": [19]}, "not those of 4 x 5"),
        ({"size": [4, 5], "counts": [-1, 21]}, "not those of 4 x 5"),
        ({"size": [4, 5], "counts": [2**62, 2**62, 2**62, 2**62, 20]}, "not those of 4 x 5"),
        ({"size": [4, 5], "counts": "~"}, "character '~'|not those"),
        ({"size": [4, 5], "counts": "\u00e9"}, "character|not those|break off"),
        ({"size": [4, 5], "counts": "o"}, "break off"),
        ({"size": [4, 5]}, "not those of 4 x 5"),
    ],
    ids=range(13),
)
def test_other_masks_are_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        masks.decode(segmentation, 4, 5)


def test_a_giant_is_refused_before_it_is_made():
    with pytest.raises(ValueError, match="a mask of 100000 x 100000 pixels"):
        masks.decode({"size": [100_000, 100_000], "counts": [10**10]}, 100_000, 100_000)
