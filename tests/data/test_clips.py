"""Clips of frames: which frames are taken, that they stay together, and that hosts change nothing."""

import dataclasses
import json

import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.data import clips, collate, images, moving_shapes, pipeline, records, shapes, text
from vlm_jax.data.sources import clips as clip_sources

BATCH, STEPS, COUNT = 8, 3, 20


@pytest.fixture(scope="module")
def world() -> list[shapes.Clip]:
    return [shapes.clip(seed=0, frames=5, index=i, image_size=32) for i in range(COUNT)]


@pytest.fixture(scope="module")
def stream(world, tmp_path_factory, encode_image, piece_model) -> clips.Clips:
    """Moving shapes as shards of ArrayRecord."""
    folder = tmp_path_factory.mktemp("clips")
    made = ({"key": f"c{i}", "frames": [encode_image(f) for f in clip.frames], "captions": clip.captions} for i, clip in enumerate(world))
    records.write(str(folder / "train"), made, 2)
    pattern = f"{folder}/train-*.array_record"
    transform = images.Transform(size=24, resize_to=28, crop="random", flip=0.5)
    return clips.Clips(pattern, pattern, text.Tokenizer(piece_model, length=24), transform, frames=4)


def batches(stream, steps=STEPS, start=0, **options):
    iterator = pipeline.train_iterator({"video": stream}, batch_size=BATCH, seed=3, **options)
    try:
        iterator.set_state({"step": start})
        return [next(iterator)["video"] for _ in range(steps)]
    finally:
        iterator.close()


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_batch_has_its_fields(stream):
    assert {name: (value.shape, value.dtype.name) for name, value in batches(stream, 1)[0].items()} == {
        "frames": ((BATCH, 4, 24, 24, 3), "uint8"), "tokens": ((BATCH, 24), "int32"), "example": ((BATCH,), "int32"),
    } == {name: ((BATCH, *shape), dtype) for name, (shape, dtype) in stream.fields().items()}  # fmt: skip
    assert stream.describe().images == 4


@pytest.mark.parametrize(
    ("count", "frames", "offset", "expected"),
    [
        (8, 4, "middle", {(1, 3, 5, 7)}),
        (8, 4, "random", {(0, 2, 4, 6), (1, 3, 5, 7)}),
        (3, 3, "random", {(0, 1, 2)}),
        (2, 4, "random", {(0, 0, 1, 1)}),
        (9, 1, "middle", {(4,)}),
    ],
)
def test_frames_are_taken_at_equal_distances(encode_image, piece_model, count, frames, offset, expected):
    shades = [encode_image(np.full((4, 4, 3), 10 * i, np.uint8)) for i in range(count)]
    example = {"key": "k", "captions": ["a thing"], "frames": [lambda data=data: data for data in shades]}
    options = {"transform": images.Transform(size=4), "tokenizer": text.Tokenizer(piece_model, length=8).load()}
    seen = set()
    for seed in range(20):
        row = collate.clips(
            example, 0, caption="first", frames=frames, offset=offset, rng=np.random.default_rng(seed), **options
        )
        seen.add(tuple(int(frame[0, 0, 0]) // 10 for frame in row["frames"]))
    assert seen == expected


def test_all_frames_are_cropped_and_flipped_alike(stream, world, encode_image):
    """Of a clip whose frames are the same picture, all frames stay the same; over clips they differ."""
    one = stream.open(stream.train, "train")[0]
    still = {**one, "frames": [one["frames"][0]] * 5}
    rows = [stream.row(still, 0, "first", np.random.default_rng(seed))["frames"] for seed in range(6)]
    assert all((frames == frames[:1]).all() for frames in rows)
    assert len({frames.tobytes() for frames in rows}) > 3


def test_hosts_and_resumes_change_nothing(stream):
    """R7."""
    reference = batches(stream, threads=0)
    for hosts in (2, 4):
        for host in range(hosts):
            own = np.arange(BATCH)[host::hosts]
            assert_same(batches(stream, rows=lambda size, own=own: own), [{n: v[own] for n, v in b.items()} for b in reference])
    assert_same(batches(stream, steps=2, start=1, threads=2), reference[1:])
    print(f"R7: 4 hosts: {STEPS} global batches of clips identical to those of one")


def test_clips_come_from_tars_in_the_order_of_their_numbers(stream, tmp_path, write_tar, encode_image):
    members = []
    for name, caption in (("a/1", b"a thing"), ("a/2", b"there")):
        for number in (10, 9, 0):
            members.append((f"{name}.{number}.png", encode_image(np.full((32, 32, 3), number, np.uint8))))
        members.append((f"{name}.txt", caption))
    members += [("b.0.jpg", b"broken"), ("b.json", json.dumps({"captions": ["here", "there"], "group": 3}).encode())]
    write_tar(tmp_path / "clips.tar", members)
    source = clip_sources.open_clips(str(tmp_path / "clips.tar"))
    found = [(source[i]["key"], source[i]["captions"]) for i in range(3)]
    assert found == [("a/1", ["a thing"]), ("a/2", ["there"]), ("b", ["here", "there"])]
    assert [images.decode(read())[0, 0, 0] for read in source[0]["frames"]] == [0, 9, 10]
    assert source[2]["group"] == 3
    made = dataclasses.replace(stream, train=str(tmp_path / "clips.tar"), caption="all", bad_records=1.0, batch_size=4)
    assert made.describe().train_records == 4
    (batch,) = batches(made, steps=1)
    assert sorted(set(batch["example"].tolist())) == [0, 1]


def test_frames_may_be_an_array(tmp_path, world):
    records.write(str(tmp_path / "c"), [{"frames": world[0].frames, "caption": "moves"}, {"frames": 3, "caption": "no"}], 1)
    source = clip_sources.open_clips(f"{tmp_path}/c-*.array_record")
    np.testing.assert_array_equal([images.decode(read()) for read in source[0]["frames"]], world[0].frames)
    with pytest.raises(records.RecordError, match="its frames are no list of encoded images"):
        source[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "data.frames 0: at least 1"),
        ({"train": "{folder}/x.npz"}, "clips are read from .tar or .array_record files"),
        ({"train": "{folder}/no.tar"}, "no.tar: k: has no images; a clip is a key with several"),
        ({"batch_size": 21}, "batch_size 21 of video is more than its 20 training records"),
    ],
)
def test_what_cannot_work_is_refused(stream, tmp_path, write_tar, change, message):
    (tmp_path / "x.npz").write_bytes(b"")
    write_tar(tmp_path / "no.tar", [("k.txt", b"words")])
    change = {name: value.format(folder=tmp_path) if isinstance(value, str) else value for name, value in change.items()}
    with pytest.raises(errors.InputError, match=message):
        batches(dataclasses.replace(stream, **change))


def test_the_shapes_world_has_clips(monkeypatch):
    monkeypatch.setattr(moving_shapes, "COUNTS", {"clips": 8, "clips_val": 4})
    source = clip_sources.open_clips("shapes:clips")
    assert len(source) == 8 and len(source[3]["frames"]) == moving_shapes.FRAMES and source[3]["key"] == "clips-00003"
    made = shapes.clip(seed=0, frames=8, index=3, split="clips", objects=2)
    assert source[3]["captions"] == made.captions
    np.testing.assert_array_equal([images.decode(read()) for read in source[3]["frames"]], made.frames)
    assert len(clip_sources.open_clips("shapes:clips_val")) == 4
