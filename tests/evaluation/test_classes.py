"""Classes: their prompts, their vectors, and what is read of labels."""

import numpy as np
import pytest

from vlm_jax.errors import InputError
from vlm_jax.evaluation import classes as classes_lib

COLOURS = classes_lib.Classes((("red",), ("green", "cyan"), ("red",)), ("a photo of a {}", "{c}"))


def test_a_vector_is_the_mean_of_the_prompts_of_all_names(make_subject):
    subject = make_subject()
    found = classes_lib.embed(subject, COLOURS)
    prompts = ["a photo of a green", "green", "a photo of a cyan", "cyan"]
    mean = subject.embed_texts(prompts).astype(np.float64).mean(0)
    np.testing.assert_allclose(found[1], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_array_equal(found[0], found[2])


def test_sentences_of_a_class_stand_in_place_of_the_templates(make_subject):
    own = classes_lib.Classes((("red",), ("green",)), sentences=(("picture of red", "a red"), ("green",)))
    assert own.prompts() == [["picture of red", "a red"], ["green"]]
    subject = make_subject()
    np.testing.assert_allclose(classes_lib.embed(subject, own)[1], subject.embed_texts(["green"])[0], atol=1e-6)


def test_without_inner_norm_the_projections_are_averaged(make_subject):
    subject = make_subject()
    found = classes_lib.embed(subject, COLOURS, "none")
    mean = subject.embed_texts(["a photo of a red", "red"], method="project_text").mean(0)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert np.abs(found[0] - classes_lib.embed(subject, COLOURS)[0]).max() > 1e-3


def labels(**fields) -> list[dict]:
    return [{"key": "k", **fields}]


def reader(field: str) -> classes_lib.Labels:
    return classes_lib.Labels(COLOURS, field, "val", "classes.json")


def test_several_labels_are_indices_or_names_and_may_be_none():
    records = [{"labels": [0, "cyan"]}, {"labels": []}, {"labels": np.array([2])}]
    found = reader("labels").several(records, 3)
    np.testing.assert_array_equal(found, [[1, 1, 0], [0, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"labels": 3}, "labels 3 of record 'k' of val: must be a list"),
        ({"labels": [3]}, "labels 3 of record 'k' .*labels are 0 to 2"),
        ({"labels": ["red"]}, "'red' of record 'k' of val is 2 of the names in classes.json"),
        ({}, "has no such field"),
    ],
)
def test_labels_that_are_no_classes_are_refused_by_record(field, message):
    with pytest.raises(InputError, match=message):
        reader("labels").several(labels(**field), 1)


class Source:
    """A data set that brings names of its own."""

    classes = classes_lib.Classes((("red",), ("green",)), ("a {}",))


def test_what_no_file_gives_the_data_give(tmp_path):
    assert classes_lib.read("", Source()).prompts() == [["a red"], ["a green"]]
    (tmp_path / "templates.txt").write_text("picture of {}")
    assert classes_lib.read(str(tmp_path / "templates.txt"), Source()).prompts() == [
        ["picture of red"],
        ["picture of green"],
    ]
    with pytest.raises(InputError, match="the data bring no class names"):
        classes_lib.read("")


def test_imagenet_has_two_names_twice_whose_classes_are_told_apart_by_index(shared_data):
    path = str(shared_data / "zeroshot_text" / "imagenet.json")
    found = classes_lib.read(path)
    assert sum(map(len, found.prompts())) == 80_000
    assert len(found.indices) == 998 and len(set(found.titles)) == 1000
    twice = next(places for places in found.indices.values() if len(places) == 2)
    records = [{"label": i, "key": "k"} for i in twice]
    np.testing.assert_array_equal(classes_lib.Labels(found, "label", "val", path).one(records, 2), twice)
    with pytest.raises(InputError, match="is 2 of the names"):
        classes_lib.Labels(found, "label", "val", path).one([{"label": found.names[twice[0]][0], "key": "k"}], 1)
    assert sum(map(len, classes_lib.read(f"{path}#classnames::{path}#simple_templates").prompts())) == 7000
