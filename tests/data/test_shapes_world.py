"""The shapes world's scenes and pixels."""

import dataclasses

import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.data import shapes
from vlm_jax.data.shapes import world


def draw(index: int, objects: int, image_size: int = 64, relation: str | None = None) -> shapes.Scene:
    rng = shapes.generator(0, "test", index)
    return shapes.scene(rng, shapes.draw_labels(rng, objects, range(64)), image_size, relation)


def test_a_quarter_of_the_pairs_is_held_out_two_of_each_shape_and_colour():
    assert len(shapes.HELD_OUT) == 16 and len(shapes.TRAINED) == 48
    assert sorted({*shapes.HELD_OUT, *shapes.TRAINED}) == list(range(64))
    held_out = [shapes.PAIRS[label] for label in shapes.HELD_OUT]
    assert all([colour for colour, _ in held_out].count(name) == 2 for name in shapes.COLOURS)
    assert all([shape for _, shape in held_out].count(name) == 2 for name in shapes.SHAPES)
    colours_of = {frozenset(colour for colour, shape in held_out if shape == name) for name in shapes.SHAPES}
    assert len(colours_of) == 8


def test_the_same_seed_gives_the_same_pixels_and_another_seed_or_index_others():
    def pixels(seed, split, index):
        rng = shapes.generator(seed, split, index)
        return shapes.render(shapes.scene(rng, shapes.draw_labels(rng, 2, range(64)))).image

    first = pixels(3, "train", 5)
    np.testing.assert_array_equal(first, pixels(3, "train", 5))
    assert all((first != pixels(*other)).any() for other in ((4, "train", 5), (3, "val", 5), (3, "train", 6)))


@pytest.mark.parametrize("image_size", [32, 64, 200])
@pytest.mark.parametrize("objects", [1, 2, 3, 4])
def test_objects_lie_whole_in_the_picture_and_apart(objects, image_size):
    for index in range(40):
        scene = draw(index, objects, image_size)
        assert len({thing.label for thing in scene.objects}) == objects
        low, high = (radius * image_size / 64 for radius in world.RADII[objects])
        for k, thing in enumerate(scene.objects):
            reach = world.REACH * thing.radius
            assert low <= thing.radius <= high
            assert reach <= thing.x <= image_size - reach and reach <= thing.y <= image_size - reach
            for other in scene.objects[:k]:
                gap = np.hypot(thing.x - other.x, thing.y - other.y) - reach - world.REACH * other.radius
                assert gap > -1e-9


def test_every_attribute_is_drawn():
    things = [thing for index in range(300) for thing in draw(index, 1).objects]
    scenes = [draw(index, 1) for index in range(300)]
    assert {thing.size for thing in things} == set(shapes.SIZES)
    assert {thing.texture for thing in things} == set(shapes.TEXTURES)
    assert {scene.background for scene in scenes} == set(shapes.BACKGROUNDS)
    assert len({scene.position(0) for scene in scenes}) == 9


@pytest.mark.parametrize("relation", shapes.RELATIONS)
def test_two_objects_stand_in_the_relation_asked_for(relation):
    for index in range(50):
        scene = draw(index, 2, relation=relation)
        assert scene.relation(0, 1) == relation
        assert scene.relation(1, 0) == world.OPPOSITE[relation]
        first, second = scene.objects
        dx, dy = second.x - first.x, second.y - first.y
        assert {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation] > 0


@pytest.mark.parametrize("objects", [1, 4])
def test_boxes_are_tight_around_masks_and_masks_around_what_is_painted(objects):
    for index in range(20):
        scene = draw(index, objects)
        drawn = shapes.render(scene)
        assert drawn.image.dtype == np.uint8 and drawn.image.shape == (64, 64, 3)
        painted = (drawn.image != np.array(shapes.BACKGROUNDS[scene.background])).any(-1)
        assert drawn.masks.sum(0).max() == 1
        for mask, (x0, y0, x1, y1) in zip(drawn.masks, drawn.boxes, strict=True):
            rows, columns = np.nonzero(mask)
            assert [x0, y0, x1, y1] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert painted[mask].all()
        seen = np.pad(drawn.masks.any(0), 3)
        near = np.any([seen[dy : dy + 64, dx : dx + 64] for dx in range(7) for dy in range(7)], axis=0)
        assert not painted[~near].any()  # a sharp tip fades out over three pixels


@pytest.mark.parametrize("label", range(8))
def test_masks_are_those_of_the_same_object_painted_eight_times_larger(label):
    scene = shapes.scene(shapes.generator(0, "large", label), [label])
    thing = scene.objects[0]
    larger = dataclasses.replace(thing, x=8 * thing.x, y=8 * thing.y, radius=8 * thing.radius)
    mask = shapes.render(scene).masks[0]
    fine = shapes.render(dataclasses.replace(scene, image_size=512, objects=(larger,))).masks[0]
    covered = fine.reshape(64, 8, 64, 8).mean((1, 3))
    assert (mask != (covered >= 0.5)).sum() <= 0.03 * mask.sum()
    assert abs(mask.sum() - covered.sum()) <= 0.02 * mask.sum()


def test_the_eight_shapes_differ_by_an_eighth_of_their_area_at_the_smallest_radius():
    thing = draw(0, 1).objects[0]
    masks = []
    for shape in shapes.SHAPES:
        alone = dataclasses.replace(thing, shape=shape, x=32.0, y=32.0, radius=11.0, angle=0.0)
        masks.append(shapes.render(shapes.Scene(64, "white", (alone,))).masks[0])
    for k, a in enumerate(masks):
        for b in masks[:k]:
            assert (a & b).sum() < 0.875 * (a | b).sum()


def test_a_later_object_hides_an_earlier_one():
    thing = dataclasses.replace(draw(0, 1).objects[0], shape="square", texture="solid", x=32.0, y=32.0, angle=0.0)
    back = dataclasses.replace(thing, radius=20.0, tint=(220, 30, 30))
    front = dataclasses.replace(thing, radius=10.0, tint=(30, 30, 220))
    drawn = shapes.render(shapes.Scene(64, "white", (back, front)))
    assert tuple(drawn.image[32, 32]) == (30, 30, 220) and tuple(drawn.image[20, 32]) == (220, 30, 30)
    assert drawn.masks[1, 32, 32] and not drawn.masks[0, 32, 32] and drawn.masks[0, 20, 32]
    hidden = shapes.render(shapes.Scene(64, "white", (front, back)))
    assert not hidden.masks[0].any() and hidden.boxes[0].tolist() == [0, 0, 0, 0]
    outside = dataclasses.replace(thing, x=-100.0)
    assert not shapes.render(shapes.Scene(64, "white", (outside,))).masks.any()


@pytest.mark.parametrize("objects", [1, 2])
def test_clips_move_as_their_captions_say(objects):
    motions = set()
    for index in range(12):
        film = shapes.clip(seed=0, frames=6, index=index, objects=objects)
        assert film.frames.shape == (6, 64, 64, 3) and film.frames.dtype == np.uint8
        motions.update(film.motions)
        for k, motion in enumerate(film.motions):
            path = np.array([(scene.objects[k].x, scene.objects[k].y) for scene in film.scenes])
            steps = np.diff(path, axis=0) @ np.array(
                {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[motion]
            )
            assert (steps > 1).all()
            assert shapes.parse(film.captions[0]).objects[k].motion == motion
            assert film.scenes[0].objects[k].label in shapes.TRAINED
        assert (film.frames[0] != film.frames[-1]).any()
        for frame, scene in zip(film.frames, film.scenes, strict=True):
            np.testing.assert_array_equal(frame, shapes.render(scene).image)
    assert motions == {"left", "right", "up", "down"}


@pytest.mark.parametrize(("field", "value"), [("frames", 1), ("objects", 3)])
def test_a_clip_that_cannot_be_made_is_refused(field, value):
    with pytest.raises(errors.InputError, match=f"{field} {value}"):
        shapes.clip(**{"seed": 0, "frames": 4, field: value})
