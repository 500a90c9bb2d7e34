"""Any source becomes ArrayRecord shards: the same bytes however it is done, what is left out is said, nothing is half there."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_jax import errors
from vlm_jax.data import conversion, duplicates, images, records, sources

ROOT = Path(__file__).resolve().parents[2]


class Examples:
    """A source of given examples, of which some cannot be read."""

    def __init__(self, examples, fail_at=None, error=None):
        self.examples, self.fail_at, self.error = examples, fail_at, error
        self.fingerprint, self.paths, self.classes, self.read = f"{len(examples)} examples", [], None, 0

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        self.read += 1
        if index == self.fail_at:
            raise self.error
        return dict(self.examples[index])

    def where(self, index):
        return f"place {index}"


@pytest.fixture
def make(encode_image, noise):
    def example(i, form="PNG", size=(10, 12), **more):
        return {"key": f"k{i}", "image": encode_image(noise(i, *size), form), "captions": [f"caption {i}"], **more}

    return example


def convert(examples, target, **options):
    source = examples if isinstance(examples, Examples) else Examples(examples)
    return conversion.convert(source, str(target), conversion.Conversion(**options))


def written(result):
    source = sources.ArrayRecord(result.paths)
    return [source[i] for i in range(len(source))]


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_records_keep_their_order_bytes_and_fields(make, tmp_path):
    examples = [make(i, label=i, extra={"a": [1, 2]}) for i in range(10)]
    result = convert(examples, tmp_path / "train", shards=3)
    assert [Path(path).name for path in result.paths] == [f"train-0000{i}-of-00003.array_record" for i in range(3)]
    assert written(result) == examples
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(Path(path).name for path in result.paths), "train.failures.jsonl", "train.sha256",
    ]  # fmt: skip
    assert not (tmp_path / "train.failures.jsonl").read_text()
    assert subprocess.run(["sha256sum", "-c", "train.sha256"], cwd=tmp_path, capture_output=True).returncode == 0


def test_what_cannot_be_used_is_left_out_and_named(make, tmp_path):
    good = [make(i) for i in range(6)]
    whole = good[1]["image"]
    bad = [
        make(7) | {"image": whole[: len(whole) // 2]},
        make(8) | {"image": b"<html>"},
        make(9) | {"captions": []},
        make(10) | {"captions": [3]},
        make(11) | {"image": None},
        make(12, odd=object()),
    ]
    examples = [good[0], bad[0], good[1], bad[1], good[2], bad[2], good[3], bad[3], good[4], bad[4], good[5], bad[5]]
    result = convert(Examples(examples, fail_at=4, error=records.RecordError("place 4: damaged (hash 17)")), tmp_path / "t", shards=6)
    assert [example["key"] for example in written(result)] == ["k0", "k1", "k3", "k4", "k5"]
    rows = [json.loads(line) for line in (tmp_path / "t.failures.jsonl").read_text().splitlines()]
    assert [(row["record"], row["where"]) for row in rows] == [(i, f"place {i}") for i in (1, 3, 4, 5, 7, 9, 11)]
    assert [row["key"] for row in rows] == ["k7", "k8", "", "k9", "k10", "k11", "k12"]
    reasons = ("damaged (hash N)", "has no image", "has neither a caption, nor a label, nor a question")
    assert [result.reasons[why] for why in reasons] == [1, 1, 1]
    assert "cannot be stored: a record holds" in rows[-1]["reason"] and result.reasons.total() == 7
    assert len(result.paths) == 6 - 1, "the shard of which nothing is left is not there"


def test_a_label_stands_for_a_caption(make, tmp_path):
    result = convert([make(0) | {"captions": [], "label": 3}, make(1) | {"captions": [], "labels": [1]}], tmp_path / "t")
    assert result.statistics.examples == 2


@pytest.mark.parametrize(
    ("options", "sizes"),
    [({"longest": 10}, [(10, 5), (5, 10), (4, 4)]), ({"shortest": 10}, [(20, 10), (10, 20), (4, 4)]), ({}, [(40, 20), (20, 40), (4, 4)])],
)
def test_larger_images_shrink_and_smaller_ones_keep_their_bytes(options, sizes, make, tmp_path):
    examples = [make(0, size=(20, 40)), make(1, size=(40, 20)), make(2, size=(4, 4))]
    found = written(convert(examples, tmp_path / "t", encode="png", **options))
    assert [images.decode(example["image"]).shape[1::-1] for example in found] == sizes
    assert found[2]["image"] == examples[2]["image"]
    if options:
        expected = Image.fromarray(images.decode(examples[0]["image"])).resize(sizes[0], Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(images.decode(found[0]["image"]), np.asarray(expected))


@pytest.mark.parametrize(
    ("encode", "forms"), [("keep", ["PNG", "JPEG"]), ("jpeg", ["JPEG", "JPEG"]), ("webp", ["WebP", "WebP"]), ("png", ["PNG", "PNG"])]
)
def test_images_get_the_form_asked_for(encode, forms, make, tmp_path):
    examples = [make(0), make(1, "JPEG")]
    result = convert(examples, tmp_path / "t", encode=encode)
    assert result.statistics.forms == {form: forms.count(form) for form in forms}
    kept = [a["image"] == b["image"] for a, b in zip(written(result), examples, strict=True)]
    assert kept == [form == own for form, own in zip(forms, ["PNG", "JPEG"], strict=True)]
    assert {*convert(examples, tmp_path / "small", longest=5).statistics.forms} == {"JPEG"}, "resized ones, where the form is kept"


def test_an_interrupted_run_goes_on_where_it_was_and_writes_the_same_bytes(make, tmp_path):
    examples = [make(i, "JPEG") for i in range(12)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    options = {"shards": 4, "longest": 8, "dedup": "perceptual"}
    convert(examples, whole / "t", **options)
    source = Examples(examples, fail_at=7, error=KeyboardInterrupt())
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            convert(source, parts / "t", **options)  # while the images are compared
    source.fail_at = None
    with pytest.raises(KeyboardInterrupt):  # and while shards are written
        conversion.convert(source, str(parts / "t"), conversion.Conversion(**options), progress=_stop_at(10))
    result = convert(source, parts / "t", **options)
    assert result.resumed == 3
    assert bytes_of(whole) == bytes_of(parts)
    assert source.read < 5 * len(examples)


def _stop_at(record):
    def tell(done, total, word):
        if word == "writing" and done > record:
            raise KeyboardInterrupt

    return tell


def test_other_data_or_settings_do_not_go_on_with_it(make, tmp_path):
    examples = [make(i) for i in range(4)]
    with pytest.raises(errors.InfrastructureError):
        convert(Examples(examples, fail_at=3, error=errors.InfrastructureError("disk")), tmp_path / "t", shards=2)
    with pytest.raises(errors.InputError, match=r"t\.unfinished was begun with another conversion; remove it"):
        convert(examples, tmp_path / "t", shards=2, longest=8)
    with pytest.raises(errors.InputError, match="another data, conversion, shards"):
        convert(examples[:3], tmp_path / "t", shards=0)
    assert convert(examples, tmp_path / "t", shards=2).resumed == 1
    with pytest.raises(errors.InputError, match="is written already"):
        convert(examples, tmp_path / "t", shards=2)


def test_two_processes_do_not_write_the_same(make, tmp_path):
    source = Examples([make(0), make(1)])
    source.where = lambda index: convert(source, tmp_path / "t")  # asked in the middle of the first
    source.fail_at, source.error = 0, records.RecordError("bad")
    with pytest.raises(errors.InputError, match="another process is writing it"):
        convert(source, tmp_path / "t")


def test_nothing_usable_and_more_shards_than_records_are_refused(make, tmp_path):
    with pytest.raises(errors.InputError, match="none of 2 records can be used; the first: has no image"):
        convert([{"captions": ["a"]}, {"captions": ["b"]}], tmp_path / "t")
    assert not list(tmp_path.iterdir())
    with pytest.raises(errors.InputError, match="shards 3: the source has 2 records"):
        convert([make(0), make(1)], tmp_path / "t", shards=3)
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.InputError, match="cannot be written"):
        convert([make(0)], tmp_path / "file" / "t")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"longest": -1}, "longest -1"),
        ({"longest": 1, "shortest": 1}, "give one of them"),
        ({"quality": 0}, "quality 0"),
        ({"max_pixels": 0}, "max_pixels"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(fields, words):
    with pytest.raises(errors.InputError, match=words):
        conversion.Conversion(**fields)


@pytest.mark.parametrize(("dedup", "left"), [("none", 5), ("bytes", 4), ("pixels", 3), ("perceptual", 2)])
def test_images_that_came_before_are_left_out(dedup, left, make, encode_image, tmp_path):
    y, x = np.mgrid[0:64, 0:64]
    pixels = np.stack([4 * y, 4 * x, 255 - 2 * y - 2 * x], -1).astype(np.uint8)
    small = np.asarray(Image.fromarray(pixels).resize((32, 32)))
    again, other = encode_image(pixels, "BMP"), encode_image(pixels[::-1])
    stored = [encode_image(pixels), encode_image(pixels), again, encode_image(small, "JPEG"), other]
    examples = [make(i) | {"image": data} for i, data in enumerate(stored)]
    result = convert(examples, tmp_path / "t", dedup=dedup, shards=2)
    assert len(written(result)) == left
    assert result.reasons["repeats an image"] == 5 - left
    told = [json.loads(line) for line in (tmp_path / "t.failures.jsonl").read_text().splitlines()]
    assert all(row["reason"] == "repeats the image of k0" for row in told)
    assert duplicates.fingerprint(stored[0], "bytes") == duplicates.fingerprint(stored[1], "bytes")


@pytest.mark.slow
def test_workers_write_the_same_bytes_after_kill_9(make, tmp_path):
    records.write(str(tmp_path / "from"), (make(i, "JPEG", (60, 60)) for i in range(400)), 2)
    command = [sys.executable, ROOT / "data" / "to_array_record.py", tmp_path / "from-*.array_record"]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert subprocess.run([*command, tmp_path / "whole/t", "--shards", "40", "--shortest", "30"]).returncode == 0
    arguments = [*command, tmp_path / "killed/t", "--shards", "40", "--shortest", "30", "--workers", "2"]
    running = subprocess.Popen(arguments)
    while len(list((tmp_path / "killed").glob("*/*.json"))) < 5 and running.poll() is None:
        time.sleep(0.01)
    running.kill()
    assert running.wait() < 0, "killed before it was done"
    again = subprocess.run(arguments, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert ", 0 of them from before" not in again.stdout
    ours, theirs = bytes_of(tmp_path / "killed"), bytes_of(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name] and not name.endswith(".html")] == []
