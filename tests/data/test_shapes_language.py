"""What is said and asked of scenes is true, and can be read back."""

import itertools
import re

import pytest

from vlm_jax.data import shapes
from vlm_jax.data.shapes import language, world


def scenes(count: int, objects: int):
    for index in range(count):
        rng = shapes.generator(1, f"language {objects}", index)
        yield rng, shapes.scene(rng, shapes.draw_labels(rng, objects, shapes.TRAINED))


@pytest.mark.parametrize("objects", [1, 2, 3, 4])
def test_captions_are_paraphrases_that_read_back_as_what_holds(objects):
    for rng, scene in scenes(60, objects):
        said = shapes.captions(rng, scene, 8, detail=0.6)
        assert len(set(said)) == 8
        for caption in said:
            description = shapes.parse(caption)
            assert description is not None, caption
            assert len(description.objects) == objects
            assert shapes.holds(description, scene), caption


def test_every_wording_reads_back_as_what_it_says():
    phrase = "a small striped red circle"
    mention = shapes.Mention("circle", "red", "small", "striped")
    other = shapes.Mention("square", "blue")
    for opening in language.OPENINGS:
        for position, wordings in language.PLACES.items():
            for wording in wordings:
                expected = shapes.Mention("circle", "red", "small", "striped", position)
                assert shapes.parse(f"{opening}{phrase} {wording}") == shapes.Description((expected,))
        for relation, wordings in language.RELATION_PHRASES.items():
            for wording in wordings:
                expected = shapes.Description((mention, other), relation)
                assert shapes.parse(f"{opening}{phrase} {wording} a blue square") == expected
        for background, wordings in language.SETTINGS.items():
            for wording in wordings:
                both = f"{opening}a blue square and {phrase} {wording}"
                assert shapes.parse(both) == shapes.Description((other, mention), None, background)
    for film, (motion, wordings) in itertools.product(language.FILMS, language.MOTION_PHRASES.items()):
        for wording in wordings:
            moving = shapes.Mention("square", "blue", motion=motion)
            assert shapes.parse(f"{film}a blue square {wording}") == shapes.Description((moving,))
            assert shapes.parse(f"{film}a blue square {wording} and a blue square {wording}").objects == (moving,) * 2


def test_every_class_in_every_template_reads_back():
    for template, (colour, shape) in itertools.product(shapes.TEMPLATES, shapes.PAIRS):
        caption = template.format(f"{colour} {shape}")
        assert shapes.parse(caption) == shapes.Description((shapes.Mention(shape, colour),))


def test_case_spaces_and_a_full_stop_do_not_matter():
    assert shapes.parse("  A  red Circle. ") == shapes.parse("a red circle")


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a circle",
        "red circle",
        "a red red circle",
        "a red circle left of",
        "a dog",
        "a red circle moves",
        "a red octagon",
        "a red circle and",
        "there is a red circle moves right",
        "a video of a red circle",
        "a red circle left of a blue square and a red star",
        ", ".join(["a red circle"] * 5),
    ],
)
def test_other_sentences_are_not_of_the_grammar(caption):
    assert shapes.parse(caption) is None


def test_a_description_of_something_else_does_not_hold():
    for _, scene in scenes(40, 2):
        first, second = scene.objects
        relation = scene.relation(0, 1)
        true = f"a {first.name} {relation} a {second.name}"
        assert shapes.relation_caption(scene) == true
        assert shapes.holds(shapes.parse(true), scene)
        assert shapes.holds(shapes.parse(f"a {second.name} {world.OPPOSITE[relation]} a {first.name}"), scene)
        wrong_size = next(size for size in shapes.SIZES if size != first.size)
        wrong_texture = next(texture for texture in shapes.TEXTURES if texture != first.texture)
        wrong_background = next(name for name in shapes.BACKGROUNDS if name != scene.background)
        wrong_colour = next(name for name in shapes.COLOURS if name not in (first.colour, second.colour))
        for false in (
            f"a {first.name} {world.OPPOSITE[relation]} a {second.name}",
            *(f"a {first.name} {wrong} a {second.name}" for wrong in shapes.RELATIONS if wrong != relation),
            f"a {wrong_size} {first.name}",
            f"a {wrong_texture} {first.name}",
            f"a {wrong_colour} {first.shape}",
            f"a {first.name} on a {wrong_background} background",
            f"a {first.name} and a {first.name}",
            f"a {first.name}, a {second.name} and a {second.name}",
        ):
            assert not shapes.holds(shapes.parse(false), scene), false


def test_details_are_named_in_the_share_asked_for():
    def share(detail):
        said = [caption for rng, scene in scenes(400, 1) for caption in shapes.captions(rng, scene, 4, detail)]
        described = [shapes.parse(caption) for caption in said]
        return sum(d.objects[0].size is not None for d in described) / len(described)

    assert share(0.0) == 0
    assert abs(share(0.3) - 0.15) < 0.03
    assert abs(share(1.0) - 0.5) < 0.04


@pytest.mark.parametrize("objects", [1, 2, 3, 4])
def test_answers_are_right_and_questions_never_ambiguous(objects):
    kinds = set()
    for rng, scene in scenes(80, objects):
        things = scene.objects
        asked = shapes.questions(rng, scene, shapes.TRAINED)
        assert len({item["question"] for item in asked}) == len(asked)
        for item in asked:
            question, answer, kind = item["question"], item["answer"], item["kind"]
            kinds.add(kind)
            if kind == "existence":
                (name,) = re.fullmatch(r"is there a (\w+ \w+)\?", question).groups()
                assert answer == ("yes" if name in [thing.name for thing in things] else "no")
                assert shapes.CLASSES.index(name) in shapes.TRAINED
            elif kind == "count":
                (what,) = re.fullmatch(r"how many (.+) are there\?", question).groups()
                said = [what in ("objects", f"{t.colour} objects", language.plural(t.shape)) for t in things]
                assert answer == str(sum(said))
            elif kind == "colour":
                (shape,) = re.fullmatch(r"what colour is the (\w+)\?", question).groups()
                assert [thing.colour for thing in things if thing.shape == shape] == [answer]
            else:
                a, relation, b = re.fullmatch(r"is the (\w+ \w+) (.+) the (\w+ \w+)\?", question).groups()
                names = [thing.name for thing in things]
                true = scene.relation(names.index(a), names.index(b))
                assert true in (relation, world.OPPOSITE[relation])
                assert answer == ("yes" if true == relation else "no")
    assert kinds == {"existence", "count", "colour"} | ({"relation"} if objects > 1 else set())
