"""Files that others wrote: each is read with its count, or refused with words that say what to do."""

import gzip
import json

import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.data import images, masks, sources

URLS = r"holds addresses of images \(column {}\) and no images, .* `img2dataset --url_list .* --url_col {}"
CONTAINERS = {
    "sample.tgz": r"a compressed tar has no random access; unpack it: `gunzip .*sample\.tgz`",
    "tendata.tar": "none of its 100 members make an example",
    "mpdata.tar": "none of its 100 members make an example",
    "compressed.tar": "none of its 4 members make an example",
    "digits.array_record-00000-of-00002": "its records are of another program. Name the folder of a TFDS data set",
    "digits.array_record-00001-of-00002": "its records are of another program. Name the folder of a TFDS data set",
    "morris_sequence_first_5.tfrecord": "TFRecord has no random access without TensorFlow; tfds:FOLDER/SPLIT",
    "img2dataset": 7,
    "img2dataset/test_1000.parquet": URLS.format("URL", "URL --caption_col TEXT"),
    "img2dataset/sample_image.parquet": URLS.format("url", "url"),
    "img2dataset/test_bbox.parquet": URLS.format("url", "url"),
    "img2dataset/sample_image.txt": "none of .tar, .array_record",
    "README.md": "none of .tar, .array_record",
    "SHA256SUMS": "none of .tar, .array_record",
}
"""Number of examples, or what is said."""


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_are_read_with_their_count_or_refused_with_words(shared_data, name):
    wanted, path = CONTAINERS[name], str(shared_data / "containers" / name)
    if isinstance(wanted, int):
        source = sources.open_source(path)
        assert len(source) == wanted
        for i in range(wanted):
            width, height = map(int, source[i]["key"].removesuffix(".jpg").split("_"))
            assert images.decode(source[i]["image"]).shape == (height, width, 3), "the names say the sizes"
        print(f"containers: {name}: {wanted} examples, all decoded")
        return
    with pytest.raises(errors.InputError, match=wanted) as error:
        sources.open_source(path)
    assert "\n" not in str(error.value)
    print(f"containers: {name}: refused: {str(error.value).removeprefix(f'data {path}: ')}")


def test_no_container_is_forgotten(shared_data):
    folder = shared_data / "containers"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found - CONTAINERS.keys() == {name for name in found if name.startswith("img2dataset/") and name.endswith(".jpg")}


def test_what_gunzip_makes_of_a_refused_tar_is_read(shared_data, tmp_path):
    """180 members are 90 images with the index of their class."""
    with gzip.open(shared_data / "containers" / "sample.tgz") as file:
        (tmp_path / "sample.tar").write_bytes(file.read())
    source = sources.open_source(str(tmp_path / "sample.tar"))
    assert len(source) == 90 and all(isinstance(source[i]["label"], int) for i in range(90))
    print("containers: sample.tgz after gunzip: 90 examples of its 180 members, with labels")


@pytest.mark.parametrize(
    "pattern,count,captions",
    [
        ("noto_emoji/emoji-train-*.tar", 2852, 1),
        ("noto_emoji/emoji-val-*.tar", 312, 1),
        ("noto_emoji/emoji-test-00000.tar", 405, 1),
        ("noto_emoji/flags-00000.tar", 250, 1),
        ("flickr8k/flickr8k-train-{00000..00004}.tar", 6091, 5),
        ("flickr8k/flickr8k-val-00000.tar", 1000, 5),
        ("coco_mini/annotations/captions_train2017.json", 80, 5),
        ("coco_mini/annotations/captions_val2017.json", 79, 5),
        ("easy_vqa/train_images.npz", 4000, 0),
        ("easy_vqa/test_images.npz", 1000, 0),
        ("cifar10/train12k.npz", 12000, 0),
        ("cifar10/test3k.npz", 3000, 0),
    ],
)
def test_real_sets_have_their_counts(shared_data, pattern, count, captions):
    source = sources.open_source(str(shared_data / pattern))
    assert len(source) == count
    for i in (0, count // 2, count - 1):
        assert len(source[i]["captions"]) == captions and images.decode(source[i]["image"]).ndim == 3
    print(f"containers: {pattern}: {count} examples")


@pytest.mark.parametrize("split,count", [("train", 38575), ("test", 9673)])
def test_every_question_of_easy_vqa_has_its_image(shared_data, split, count):
    with gzip.open(shared_data / "easy_vqa" / f"{split}_questions.json.gz") as file:
        questions = json.load(file)
    source = sources.open_source(str(shared_data / "easy_vqa" / f"{split}_images.npz"))
    assert len(questions) == count and {image for *_, image in questions} == set(range(len(source)))


def test_questions_of_easy_vqa_are_read_from_json_lines(shared_data, tmp_path):
    """Its own files are lists; as the lines that docs/data.md shows, they are a source of questions."""
    with gzip.open(shared_data / "easy_vqa" / "test_questions.json.gz") as file:
        questions = json.load(file)
    pictures = sources.open_source(str(shared_data / "easy_vqa" / "test_images.npz"))
    for i in range(len(pictures)):
        (tmp_path / f"{i}.png").write_bytes(pictures[i]["image"])
    lines = [json.dumps({"image": f"{image}.png", "question": question, "answers": [answer]}) for question, answer, image in questions]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    source = sources.open_source(str(tmp_path / "questions.jsonl"))
    assert len(source) == 9673
    for i in range(0, 9673, 500):
        question, answer, image = questions[i]
        assert (source[i]["question"], source[i]["answers"], source[i]["captions"]) == (question, [answer], [])
        assert source[i]["image"] == pictures[image]["image"]


@pytest.mark.parametrize("split,count,captions,boxes,crowds", [("train2017", 80, 400, 739, 8), ("val2017", 79, 395, 624, 5)])
def test_coco_has_its_captions_boxes_and_masks(shared_data, split, count, captions, boxes, crowds):
    folder = shared_data / "coco_mini" / "annotations"
    source = sources.open_source(f"{folder}/captions_{split}.json#with=instances_{split}.json")
    examples = [source[i] for i in range(len(source))]
    told = json.loads((folder / f"instances_{split}.json").read_text())
    assert (len(examples), sum(len(e["captions"]) for e in examples)) == (count, captions)
    assert (sum(len(e["boxes"]) for e in examples), sum(int(e["crowd"].sum()) for e in examples)) == (boxes, crowds)
    assert source.classes.titles == tuple(c["name"] for c in sorted(told["categories"], key=lambda c: c["id"]))
    names, outside, area = {c["id"]: c["name"] for c in told["categories"]}, [], []
    by_image = {e["image_id"]: e for e in examples}
    places = dict.fromkeys(by_image, 0)
    for annotation in told["annotations"]:
        example, place = by_image[annotation["image_id"]], places[annotation["image_id"]]
        places[annotation["image_id"]] += 1
        assert source.classes.titles[example["labels"][place]] == names[annotation["category_id"]]
        left, top, width, height = annotation["bbox"]
        np.testing.assert_allclose(example["boxes"][place], [left, top, left + width, top + height], rtol=1e-5)
        mask = example["masks"][place]
        if not annotation["iscrowd"]:
            around = mask[max(0, int(top) - 1) : int(top + height) + 2, max(0, int(left) - 1) : int(left + width) + 2]
            outside.append(int(mask.sum()) - int(around.sum()))
            area.append(abs(int(mask.sum()) - annotation["area"]) / (width + height))
    assert max(outside) == 0, "a mask lies in its box"
    assert np.mean(area) < 0.1 and max(area) < 1, "areas differ from those of COCO by less than a tenth of half the outline"


def test_compressed_run_lengths_are_those_of_pycocotools(shared_data):
    expected = json.loads((shared_data / "annotation_samples" / "rle_expected.json").read_text())
    for entry in expected:
        mask = masks.decode({"size": entry["size"], "counts": entry["counts"]}, *entry["size"])
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == entry["area"]
        assert [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]] == entry["bbox"]
    assert len(expected) == 200
