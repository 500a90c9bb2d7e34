"""The language of the shapes world: paraphrased captions, their parser, and questions with answers.

The grammar (brackets: may be left out; alternatives: |):

    caption  = [opening] phrase [place] [setting]                  "a picture of a large red circle at the top"
             | [opening] phrase relation phrase [setting]          "a red circle to the left of a blue square"
             | [opening] phrase, phrase and phrase [setting]       two to four objects
             | [film] phrase motion [and phrase motion] [setting]  a clip: "a red circle moves right"
    phrase   = a [size] [texture] colour shape
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm_jax.data.shapes import world

OPENINGS = ("", "a picture of ", "a photo of ", "an image of ", "a drawing of ", "there is ", "this is ", "here is ")
TEMPLATES = tuple(f"{opening}a {{}}" for opening in OPENINGS)
"""For zero-shot classification: the openings of captions, around a class name."""
PLACES = {
    "top left": ("at the top left", "in the upper left"),
    "top": ("at the top",),
    "top right": ("at the top right", "in the upper right"),
    "left": ("on the left",),
    "center": ("in the center", "in the middle"),
    "right": ("on the right",),
    "bottom left": ("at the bottom left", "in the lower left"),
    "bottom": ("at the bottom",),
    "bottom right": ("at the bottom right", "in the lower right"),
}
RELATION_PHRASES = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
MOTION_PHRASES = {
    direction: (f"moves {direction}", f"moving {direction}") for direction in ("left", "right", "up", "down")
}
FILMS = ("", "a video of ", "a clip of ")
SETTINGS = {name: (f"on a {name} background", f"in front of a {name} background") for name in world.BACKGROUNDS}


@dataclass(frozen=True)
class Mention:
    """What a caption says of one object; None where it is silent."""

    shape: str
    colour: str
    size: str | None = None
    texture: str | None = None
    position: str | None = None
    motion: str | None = None


@dataclass(frozen=True)
class Description:
    """What a caption says: objects in the order of mention, the first one's relation to the second, the background."""

    objects: tuple[Mention, ...]
    relation: str | None = None
    background: str | None = None


def captions(rng: np.random.Generator, scene: world.Scene, count: int, detail: float = 0.3) -> list[str]:
    """`count` true captions of a scene in different words, as long as the openings (8) last.

    A caption names only shapes and colours (and, of two objects, mostly their relation), save that with probability
    `detail` it also names each of size, texture, position (one object only) and background with probability one half.
    """
    openings = rng.permutation(len(OPENINGS))
    return [_caption(rng, scene, OPENINGS[openings[i % len(OPENINGS)]], detail) for i in range(count)]


def relation_caption(scene: world.Scene) -> str:
    """The plain caption of two objects in a relation: "a red circle left of a blue square"."""
    first, second = scene.objects
    return f"a {first.name} {scene.relation(0, 1)} a {second.name}"


def clip_captions(scene: world.Scene, motions: Sequence[str]) -> list[str]:
    """Captions of a clip whose objects move "left", "right", "up" or "down", in every wording."""
    moving = list(zip(scene.objects, motions, strict=True))
    return [
        film + " and ".join(f"a {thing.name} {MOTION_PHRASES[direction][i]}" for thing, direction in moving)
        for i in range(2)
        for film in FILMS
    ]


def questions(rng: np.random.Generator, scene: world.Scene, labels: Sequence[int] = range(64)) -> list[dict[str, str]]:
    """Questions of each kind with one right answer: {"question", "answer", "kind"}.

    Kinds: "existence" (yes and no, as often), "count" (digits, 0 included), "colour" (only of a shape there is once),
    "relation" (yes and no; only of pairs that are not too diagonal to say). Objects that are not there are drawn from
    `labels`, so that questions about training scenes never name a held-out pair.
    """
    things = scene.objects
    there = {thing.label for thing in things}
    asked = [
        ("existence", f"is there a {_choice(rng, things).name}?", "yes"),
        ("existence", f"is there a {world.CLASSES[_choice(rng, [x for x in labels if x not in there])]}?", "no"),
    ]
    shapes, colours = [thing.shape for thing in things], [thing.colour for thing in things]
    of_shape = _choice(rng, shapes if rng.random() < 0.5 else world.SHAPES)
    of_colour = _choice(rng, colours if rng.random() < 0.5 else tuple(world.COLOURS))
    asked.append(
        _choice(
            rng,
            (
                ("count", "how many objects are there?", str(len(things))),
                ("count", f"how many {plural(of_shape)} are there?", str(shapes.count(of_shape))),
                ("count", f"how many {of_colour} objects are there?", str(colours.count(of_colour))),
            ),
        )
    )
    single = [thing for thing in things if shapes.count(thing.shape) == 1]
    if single:
        thing = _choice(rng, single)
        asked.append(("colour", f"what colour is the {thing.shape}?", thing.colour))
    related = [
        (a, b, relation)
        for a in range(len(things))
        for b in range(len(things))
        if a != b and (relation := scene.relation(a, b))
    ]
    if related:
        a, b, relation = _choice(rng, related)
        for answer, said in (("yes", relation), ("no", world.OPPOSITE[relation])):
            asked.append(("relation", f"is the {things[a].name} {said} the {things[b].name}?", answer))
    return [{"question": question, "answer": answer, "kind": kind} for kind, question, answer in asked]


def plural(shape: str) -> str:
    """ "crosses", "circles"."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def parse(caption: str) -> Description | None:
    """What a caption says, or None where it is not of the world's grammar: the inverse of every paraphrase.

    Case, surplus spaces and a full stop at the end do not matter.
    """
    text = " ".join(caption.lower().split()).rstrip(" .")
    match = _CAPTION.fullmatch(text)
    if match is None:
        return None
    background = _SETTING_OF.get(match["setting"] or "")
    opening, body = match["opening"] or "", match["body"]
    moving = [_MOVING.fullmatch(part) for part in body.split(" and ")]
    if all(moving):
        moved = tuple(_mention(m, motion=_MOTION_OF[m["motion"]]) for m in moving if m)
        return Description(moved, None, background) if opening in FILMS else None
    if opening in FILMS[1:]:
        return None
    if match := _PLACED.fullmatch(body):
        return Description((_mention(match, position=_PLACE_OF.get(match["place"] or "")),), None, background)
    if match := _RELATED.fullmatch(body):
        parts, relation = (match["first"], match["second"]), _RELATION_OF[match["relation"]]
    else:
        parts, relation = re.split(", | and ", body), None
    mentions = [_PHRASE.fullmatch(part) for part in parts]
    if not all(mentions) or len(mentions) > max(world.RADII):
        return None
    return Description(tuple(_mention(m) for m in mentions if m), relation, background)


def holds(description: Description, scene: world.Scene) -> bool:
    """Whether a description is true of a still scene: its objects are all there, as different ones, and so related.

    Motions are not looked at; a description need not name every object.
    """
    if description.background not in (None, scene.background):
        return False

    def fits(mention: Mention, index: int) -> bool:
        thing = scene.objects[index]
        said = (mention.shape, mention.colour, mention.size, mention.texture, mention.position)
        true = (thing.shape, thing.colour, thing.size, thing.texture, scene.position(index))
        return all(a is None or a == b for a, b in zip(said, true, strict=True))

    def assign(taken: tuple[int, ...]) -> bool:
        if len(taken) == len(description.objects):
            return description.relation is None or scene.relation(*taken[:2]) == description.relation
        candidates = (i for i in range(len(scene.objects)) if i not in taken)
        return any(assign((*taken, i)) for i in candidates if fits(description.objects[len(taken)], i))

    return assign(())


def _caption(rng: np.random.Generator, scene: world.Scene, opening: str, detail: float) -> str:
    size, texture, place, setting = (rng.random(4) < 0.5) if rng.random() < detail else (False,) * 4
    phrases = [_phrase(thing, size, texture) for thing in scene.objects]
    if len(phrases) == 1:
        text = phrases[0]
        if place:
            text = f"{text} {_choice(rng, PLACES[scene.position(0)])}"
    elif len(phrases) == 2 and rng.random() < 0.8:
        a, b = (0, 1) if rng.random() < 0.5 else (1, 0)
        wordings = RELATION_PHRASES.get(scene.relation(a, b) or "", ("and",))
        text = f"{phrases[a]} {_choice(rng, wordings)} {phrases[b]}"
    else:
        phrases = [phrases[i] for i in rng.permutation(len(phrases))]
        text = f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    if setting:
        text = f"{text} {_choice(rng, SETTINGS[scene.background])}"
    return opening + text


def _phrase(thing: world.Object, size: bool, texture: bool) -> str:
    words = ("a", thing.size if size else "", thing.texture if texture else "", thing.colour, thing.shape)
    return " ".join(word for word in words if word)


def _choice(rng: np.random.Generator, options: Sequence):
    return options[int(rng.random() * len(options))]


def _mention(match: re.Match, position: str | None = None, motion: str | None = None) -> Mention:
    return Mention(match["shape"], match["colour"], match["size"], match["texture"], position, motion)


def _one_of(words) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


def _meanings(phrases: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {phrase: meaning for meaning, wordings in phrases.items() for phrase in wordings}


_PLACE_OF, _RELATION_OF = _meanings(PLACES), _meanings(RELATION_PHRASES)
_MOTION_OF, _SETTING_OF = _meanings(MOTION_PHRASES), _meanings(SETTINGS)
_NOUN = (
    rf"a (?:(?P<size>{_one_of(world.SIZES)}) )?(?:(?P<texture>{_one_of(world.TEXTURES)}) )?"
    rf"(?P<colour>{_one_of(world.COLOURS)}) (?P<shape>{_one_of(world.SHAPES)})"
)
_PHRASE = re.compile(_NOUN)
_PLACED = re.compile(rf"{_NOUN}(?: (?P<place>{_one_of(_PLACE_OF)}))?")
_MOVING = re.compile(rf"{_NOUN} (?P<motion>{_one_of(_MOTION_OF)})")
_RELATED = re.compile(rf"(?P<first>.+?) (?P<relation>{_one_of(_RELATION_OF)}) (?P<second>.+)")
_CAPTION = re.compile(
    rf"(?P<opening>{_one_of(opening for opening in (*OPENINGS, *FILMS) if opening)})?"
    rf"(?P<body>.+?)(?: (?P<setting>{_one_of(_SETTING_OF)}))?"
)
