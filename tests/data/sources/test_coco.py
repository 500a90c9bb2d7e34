"""COCO's JSON: what is kept, the form of the fields, and what is refused."""

import json
import pickle

import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.data import records, sources

IMAGES = [{"id": 10 * i, "file_name": f"{i}.jpg", "width": 6, "height": 4} for i in range(3)]
CAPTIONS = [{"image_id": 20, "caption": " two "}, {"image_id": 0, "caption": "one"}, {"image_id": 0, "caption": "uno"}]
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
OBJECTS = [
    {"image_id": 0, "category_id": 7, "bbox": [1, 0, 3, 2], "iscrowd": 0, "segmentation": [[1, 0, 4, 0, 4, 2, 1, 2]]},
    {"image_id": 0, "category_id": 3, "bbox": [0, 0, 1, 4], "iscrowd": 1, "segmentation": {"size": [4, 6], "counts": [0, 4, 20]}},
    {"image_id": 20, "category_id": 3, "bbox": [0.5, 1, 2, 2.25], "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1], [5, 3, 6, 3, 6, 4, 5, 4]]},
]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    for image in IMAGES:
        (tmp_path / "val2017" / image["file_name"]).write_bytes(image["file_name"].encode())
    return tmp_path


def write(root, name="captions_val2017.json", images=IMAGES, annotations=CAPTIONS, **more) -> str:
    path = root / "annotations" / name
    path.write_text(json.dumps({"images": images, "annotations": annotations} | more))
    return str(path)


def test_images_without_a_caption_are_left_out_with_a_warning(root, caplog):
    source = sources.open_source(write(root))
    assert [source[i] for i in range(len(source))] == [
        {"key": "0.jpg", "image_id": 0, "width": 6, "height": 4, "captions": ["one", "uno"], "image": b"0.jpg"},
        {"key": "2.jpg", "image_id": 20, "width": 6, "height": 4, "captions": ["two"], "image": b"2.jpg"},
    ]
    assert "1 of 3 images have no caption and are left out" in caplog.text
    assert pickle.loads(pickle.dumps(source))[1] == source[1] and source.where(1).endswith("captions_val2017.json: 2.jpg")
    with pytest.raises(IndexError):
        source[2]


def test_objects_are_boxes_labels_and_masks_and_images_without_any_are_kept(root):
    source = sources.open_source(write(root, "instances_val2017.json", annotations=OBJECTS, categories=CATEGORIES))
    assert len(source) == 3 and source.classes is not None and source.classes.titles == ("cat", "dog")
    first, none, last = (source[i] for i in range(3))
    np.testing.assert_array_equal(first["boxes"], np.array([[1, 0, 4, 2], [0, 0, 1, 4]], np.float32))
    assert (first["labels"], first["crowd"].tolist(), first["captions"]) == ([1, 0], [False, True], [])
    assert first["masks"].dtype == bool and first["masks"].shape == (2, 4, 6)
    assert np.argwhere(first["masks"][0]).tolist() == [[0, 1], [0, 2], [0, 3], [1, 1], [1, 2], [1, 3]]
    assert np.argwhere(first["masks"][1]).tolist() == [[row, 0] for row in range(4)]
    assert np.argwhere(last["masks"][0]).tolist() == [[0, 0], [3, 5]], "several polygons are one object"
    np.testing.assert_array_equal(last["boxes"], np.array([[0.5, 1, 2.5, 3.25]], np.float32))
    assert none["boxes"].shape == (0, 4) and none["masks"].shape == (0, 4, 6) and none["labels"] == []


def test_two_files_say_what_each_of_them_says(root):
    captions = write(root)
    write(root, "instances_val2017.json", annotations=OBJECTS, categories=CATEGORIES)
    source = sources.open_source(f"{captions}#with=instances_val2017.json")
    assert [(source[i]["captions"], len(source[i]["boxes"])) for i in range(2)] == [(["one", "uno"], 2), (["two"], 1)]


def test_boxes_without_masks_have_none(root):
    objects = [{"image_id": 0, "category_id": 3, "bbox": [1, 1, 2, 2]}]
    source = sources.open_source(write(root, "instances_val2017.json", annotations=objects, categories=CATEGORIES))
    assert "masks" not in source[0] and source[0]["crowd"].tolist() == [False] and "masks" in source[1]


def test_images_may_lie_where_the_user_says(root, tmp_path):
    path = write(root, "odd.json")
    with pytest.raises(errors.InputError, match=r"0\.jpg is in none of .*; say where images are, '.*odd\.json#root=FOLDER'"):
        sources.open_source(path)
    assert sources.open_source(f"{path}#root={root}/val2017")[0]["image"] == b"0.jpg"


def test_a_record_that_cannot_be_used_is_one_bad_record(root):
    objects = [{**OBJECTS[0], "segmentation": {"size": [4, 6], "counts": [3]}}, {**OBJECTS[2], "bbox": [1, 2]}]
    source = sources.open_source(write(root, "instances_val2017.json", annotations=objects, categories=CATEGORIES))
    (root / "val2017" / "1.jpg").unlink()
    for place, message in ((0, "run lengths that are not those of 4 x 6"), (1, "No such file"), (2, "")):
        with pytest.raises(records.RecordError, match=rf"instances_val2017\.json: {place}\.jpg: {message}"):
            source[place]


@pytest.mark.parametrize(
    "content,message",
    [
        ("{", "not JSON"),
        ("[]", "not COCO's form, a map with `images`"),
        ('{"0.jpg": "a cat"}', "not COCO's form, a map with `images`"),
        ('{"images": []}', "has no images"),
        ('{"images": [{"id": 1}]}', "an entry without 'file_name'"),
        (json.dumps({"images": [IMAGES[0]] * 2}), "two images of one id"),
        (json.dumps({"images": [{**IMAGES[0], "width": "6"}]}), "a file_name, width and height are needed"),
        (json.dumps({"images": IMAGES, "annotations": OBJECTS}), "an entry without 7"),
        (json.dumps({"images": IMAGES, "annotations": OBJECTS, "categories": [CATEGORIES[0]] * 2}), "two categories of one id"),
        (json.dumps({"images": [{**IMAGES[0], "file_name": "../0.jpg"}]}), "lies outside of"),
        (json.dumps({"images": IMAGES, "annotations": [{"image_id": 0, "caption": " "}]}), "has no images with captions"),
    ],
    ids=range(11),
)
def test_other_files_are_refused(root, content, message):
    path = root / "annotations" / "captions_val2017.json"
    path.write_text(content)
    with pytest.raises(errors.InputError, match=message) as error:
        sources.open_source(str(path))
    assert "\n" not in str(error.value)


def test_two_sets_are_two_sources(root):
    with pytest.raises(errors.InputError, match=r"one COCO file is one source; '.*#with=.*' joins what they say"):
        sources.open_source(f"{write(root)}::{write(root, 'instances_val2017.json')}")
