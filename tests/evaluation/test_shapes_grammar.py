"""Whether captions of the shapes world are found to be right or wrong."""

import pytest

from vlm_jax.data import shapes
from vlm_jax.errors import InputError
from vlm_jax.evaluation import shapes_grammar

WORLD = shapes.World()


@pytest.mark.parametrize("split", ["held_out", "val"])
def test_the_captions_of_the_data_are_right(split):
    records = [shapes.example(WORLD, split, i) for i in range(24)]
    pairs = [(caption, record["scene"]) for record in records for caption in record["captions"]]
    found = shapes_grammar.check(*zip(*pairs, strict=True))
    assert set(found) == set(shapes_grammar.NAMES)
    assert all(values.all() for values in found.values())


@pytest.mark.parametrize(
    ("caption", "right"),
    [
        ("a photo of a {colour} {shape}.", {"objects", "shape", "colour", "true", "grammatical"}),
        ("a {colour} cross", {"colour", "grammatical"}),
        ("a brown {shape} on a {background} background", {"shape", "grammatical"}),
        ("a {colour} {shape} and a {colour} {shape}", {"grammatical"}),
        ("a {colour}", set()),
        ("", set()),
    ],
)
def test_what_is_wrong_is_counted_where_it_is_wrong(caption, right):
    records = [shapes.example(WORLD, "held_out", i) for i in range(64)]
    record = next(r for r in records if r["scene"]["objects"][0]["colour"] != "brown" and r["scene"]["objects"][0]["shape"] != "cross")
    thing = record["scene"]["objects"][0]
    text = caption.format(**thing, background=record["scene"]["background"])
    found = shapes_grammar.check([text], [record["scene"]])
    assert {name.rpartition("_")[0] for name, values in found.items() if values[0]} == right


def test_another_kind_of_scene_is_refused():
    with pytest.raises(InputError, match="no scene of the shapes world"):
        shapes_grammar.check(["a red circle"], [{"objects": [{"label": "dog"}]}])
