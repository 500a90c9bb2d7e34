"""Initial weights out of other checkpoints: what a source means, what it takes, and what is said of the rest."""

import numpy as np
import pytest

from vlm_jax.errors import InputError
from vlm_jax.training import initialization

STORED = {
    "image/blocks/up/kernel": np.arange(24.0).reshape(4, 2, 3),
    "image/blocks/up/bias": np.arange(12.0).reshape(4, 3),
    "image/head/kernel": np.ones((3, 3)),
    "log_scale": np.float32(2.0),
}
parse = initialization.Source.parse


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("runs/first", ("runs/first", "", "", None)),
        ("image/ <- runs/first", ("runs/first", "image/", "image/", None)),
        ("image/<-runs/a b", ("runs/a b", "image/", "image/", None)),
        ("image/ without image/head/ <- x", ("x", "image/", "image/", None, "image/head/")),
        ("a/ = b/ [1:] without a/c <- x", ("x", "a/", "b/", slice(1, None, None), "a/c")),
        ("text/blocks/ = image/blocks/[0:2] <- x", ("x", "text/blocks/", "image/blocks/", slice(0, 2, None))),
        ("image/blocks/[::2] <- x", ("x", "image/blocks/", "image/blocks/", slice(None, None, 2))),
        ("image/blocks/[-2:] <- x", ("x", "image/blocks/", "image/blocks/", slice(-2, None, None))),
    ],
)
def test_a_source_is_read_as_it_is_written(text, want):
    found = parse(text)
    assert (found.path, found.part, found.other, found.layers, found.rest) == (*want, None)[:5]


@pytest.mark.parametrize(
    "text", ["image/ <- ", " <- x", "a=b=c <- x", "image/[2] <- x", "image/[0:2:0] <- x", "image/[a:b] <- x", "a b <- x", "a without <- x"]
)
def test_another_form_is_refused_with_the_form(text):
    with pytest.raises(InputError, match=r"init_from .*such as 'image/ <- runs/first'"):
        parse(text)


def test_parts_are_renamed_and_layers_left_out():
    taken = parse("text/blocks/ = image/blocks/[1::2] <- x").take(STORED)
    assert sorted(taken) == ["text/blocks/up/bias", "text/blocks/up/kernel"]
    np.testing.assert_array_equal(taken["text/blocks/up/kernel"], STORED["image/blocks/up/kernel"][[1, 3]])
    assert parse("x").take(STORED) == STORED
    with pytest.raises(InputError, match=r"init_from x: no parameter begins with 'decoder/'; it has image, log_scale"):
        parse("image/ = decoder/ <- x").take(STORED)
    with pytest.raises(InputError, match=r"leaves of 'image/' are not one stack of layers"):
        parse("image/[0:2] <- x").take(STORED)


def test_what_was_and_was_not_loaded_is_listed():
    model = ["image/blocks/up/kernel", "image/blocks/up/bias", "text/table", "log_scale"]
    first, second = parse("image/ <- a"), parse("log_scale <- b")
    filled, words = initialization.fill(model, [(first, first.take(STORED)), (second, {"log_scale": np.float32(3.0)})])
    assert sorted(filled) == ["image/blocks/up/bias", "image/blocks/up/kernel", "log_scale"] and filled["log_scale"] == 3
    assert words.splitlines() == [
        "2 parameters of image/ from a; left there: image/head/kernel",
        "1 parameters of log_scale from b",
        "freshly initialised: text/table",
    ]
    with pytest.raises(InputError, match=r"init_from c: it has no text/table; name the parts that it has"):
        initialization.fill(model, [(parse("c"), STORED)])


def test_what_is_left_without_stays_as_it_was_initialised():
    source = parse("image/ without image/head/ <- a")
    assert source.take(STORED).keys() == {"image/blocks/up/kernel", "image/blocks/up/bias"}
    filled, words = initialization.fill(["image/blocks/up/kernel", "image/head/kernel"], [(source, source.take(STORED))])
    assert list(filled) == ["image/blocks/up/kernel"] and words.endswith("freshly initialised: image/head/kernel")


def test_of_two_sources_the_later_one_counts():
    sources = [(parse(name), {"w": value}) for name, value in (("a", 1), ("b", 2))]
    assert initialization.fill(["w"], sources)[0] == {"w": 2}
