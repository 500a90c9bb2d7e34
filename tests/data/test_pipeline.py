import collections
import dataclasses
import json
import threading

import grain
import numpy as np
import pytest
from etils import epath

from vlm_jax import errors
from vlm_jax.data import images, pipeline, records, sources, text

BATCH = 8
STEPS = 7
"""Steps compared: 56 positions of 37 records, so an epoch ends inside the sixth batch."""


@pytest.fixture(scope="session")
def pairs(pair_tars, merges) -> pipeline.Pairs:
    return pipeline.Pairs(
        train=pair_tars,
        val=pair_tars,
        tokenizer=text.Tokenizer(merges, length=24),
        image=images.Transform(size=8, resize_to=12, crop="random", flip=0.5),
    )


def batches(stream, steps=STEPS, start=0, batch_size=BATCH, seed=3, **options) -> list[pipeline.Batch]:
    iterator = pipeline.train_iterator({"pairs": stream}, batch_size=batch_size, seed=seed, **options)
    try:
        iterator.set_state({"step": start})
        return [next(iterator) for _ in range(steps)]
    finally:
        iterator.close()


@pytest.fixture(scope="session")
def reference(pairs) -> list[pipeline.Batch]:
    return batches(pairs, threads=0)


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for stream in a:
            assert a[stream].keys() == b[stream].keys()
            for name in a[stream]:
                np.testing.assert_array_equal(a[stream][name], b[stream][name])
                assert a[stream][name].dtype == b[stream][name].dtype


def examples(run) -> list[int]:
    return [int(i) for batch in run for i in batch["pairs"]["example"]]


def test_a_batch_has_its_fields(pairs, reference):
    batch = reference[0]["pairs"]
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "image": ((BATCH, 8, 8, 3), "uint8"),
        "tokens": ((BATCH, 24), "int32"),
        "example": ((BATCH,), "int32"),
    } == {name: ((BATCH, *shape), dtype) for name, (shape, dtype) in pairs.fields().items()}


def test_rows_belong_to_the_record_they_name(pairs, reference):
    source = sources.open_source(pairs.train)
    tokenizer = pairs.tokenizer.load()
    for batch in reference[:2]:
        for index, tokens in zip(batch["pairs"]["example"], batch["pairs"]["tokens"], strict=True):
            assert tokens.tolist() in tokenizer(source[int(index)]["captions"]).tolist()


def test_every_epoch_has_every_record_once_in_another_order(pairs):
    order = examples(batches(pairs, steps=14))
    assert sorted(order[:37]) == sorted(order[37:74]) == sorted(order[74:111]) == list(range(37))
    assert len({tuple(order[:37]), tuple(order[37:74]), tuple(order[74:111])}) == 3
    assert order[:37] != sorted(order[:37])


def test_draws_differ_from_epoch_to_epoch(pairs):
    seen = collections.defaultdict(set)
    for batch in batches(pairs, steps=46):
        for index, image, tokens in zip(*(batch["pairs"][name] for name in ("example", "image", "tokens")), strict=True):
            seen[int(index)].add((image.tobytes(), tokens.tobytes()))
    assert min(map(len, seen.values())) >= 6


def test_the_seed_decides_order_and_draws(pairs, reference):
    assert_same(batches(pairs), reference)
    other = batches(pairs, seed=4)
    assert examples(other) != examples(reference)
    ends = [sorted(examples(run)[37:]) for run in (reference, other)]
    assert ends[0] != ends[1]


def test_epochs_of_neighbouring_seeds_are_unrelated(pairs):
    """Grain seeds the shuffle of epoch e with seed + e: seed 4 must not begin with the second epoch of seed 3."""
    second = examples(batches(pairs, steps=10))[37:74]
    assert examples(batches(pairs, steps=5, seed=4))[:37] != second


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
@pytest.mark.parametrize("layout", ["blocks", "stripes"])
def test_hosts_together_feed_the_global_batch(pairs, reference, hosts, layout):
    """R7."""
    per_host = BATCH // hosts
    joined = [{name: np.empty_like(value) for name, value in batch["pairs"].items()} for batch in reference]
    for host in range(hosts):
        own = np.arange(BATCH)[host::hosts] if layout == "stripes" else np.arange(host * per_host, (host + 1) * per_host)
        for step, batch in enumerate(batches(pairs, rows=lambda size, own=own: own)):
            for name, value in batch["pairs"].items():
                assert len(value) == per_host
                joined[step][name][own] = value
    assert_same([{"pairs": batch} for batch in joined], reference)
    print(f"R7: {hosts} hosts in {layout}: {len(reference)} global batches of {BATCH} identical to those of one host")


def test_hosts_may_feed_the_same_rows(pairs, reference):
    """Model-parallel devices of two hosts hold the same rows."""
    run = batches(pairs, rows=lambda size: np.array([1, 2, 5]))
    assert_same(run, [{"pairs": {n: v[[1, 2, 5]] for n, v in batch["pairs"].items()}} for batch in reference])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(pairs, reference, threads):
    assert_same(batches(pairs, threads=threads), reference)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing_and_any_number_resumes(pairs, reference, workers):
    """Begun without workers, gone on with workers in the middle of an epoch, gone on again without."""
    iterator = pipeline.train_iterator({"pairs": pairs}, batch_size=BATCH, seed=3, workers=workers, threads=1)
    try:
        iterator.set_state({"step": 3})
        assert_same([next(iterator) for _ in range(3)], reference[3:6])
        state = json.loads(json.dumps(iterator.get_state()))
        assert state == {"step": 6}
    finally:
        iterator.close()
    assert_same(batches(pairs, steps=1, start=state["step"]), reference[6:])


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 4, 6])
def test_a_saved_state_resumes_exactly(pairs, reference, threads, stop):
    first = pipeline.train_iterator({"pairs": pairs}, batch_size=BATCH, seed=3, threads=threads)
    for _ in range(stop):
        next(first)
    state = first.get_state()
    rest = [next(first) for _ in range(STEPS - stop)]
    assert state == {"step": stop}
    first.close()
    assert_same(rest, reference[stop:])
    assert_same(batches(pairs, steps=STEPS - stop, start=state["step"], threads=threads), reference[stop:])


def test_grains_checkpoint_handler_saves_and_restores_it(pairs, reference, tmp_path):
    first, second = (pipeline.train_iterator({"pairs": pairs}, batch_size=BATCH, seed=3) for _ in range(2))
    for _ in range(2):
        next(first)
    handler = grain.checkpoint.CheckpointHandler()
    handler.save(epath.Path(tmp_path), first)
    handler.restore(epath.Path(tmp_path), second)
    assert_same([next(second)], reference[2:3])
    first.close()
    second.close()


def test_an_iterator_can_be_set_back(pairs, reference):
    iterator = pipeline.train_iterator({"pairs": pairs}, batch_size=BATCH, seed=3)
    run = [next(iterator) for _ in range(3)]
    iterator.set_state({"step": 1})
    run += [next(iterator) for _ in range(2)]
    iterator.close()
    assert_same(run, [reference[i] for i in (0, 1, 2, 1, 2)])
    with pytest.raises(ValueError, match="negative"):
        iterator.set_state({"step": -1})


def test_a_closed_iterator_ends_its_threads_and_says_so(pairs):
    before = set(threading.enumerate())
    iterator = pipeline.train_iterator({"pairs": pairs}, batch_size=BATCH, seed=3, threads=3)
    next(iterator)
    started = set(threading.enumerate()) - before
    assert len(started) == 3
    iterator.close()
    iterator.close()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


def test_far_positions_cost_nothing(pairs):
    (batch,) = batches(pairs, steps=1, start=10**12)
    assert len(batch["pairs"]["example"]) == BATCH


def test_streams_step_together_with_their_own_batch_sizes(pairs, reference):
    streams = {"pairs": pairs, "more": dataclasses.replace(pairs, batch_size=3, caption="first")}
    for workers_rows in (None, lambda size: np.arange(size - 1)):
        iterator = pipeline.train_iterator(streams, batch_size=BATCH, seed=3, rows=workers_rows)
        run = [next(iterator) for _ in range(4)]
        iterator.close()
        kept = slice(None) if workers_rows is None else slice(-1)
        assert_same(
            [{"pairs": b["pairs"]} for b in run],
            [{"pairs": {n: v[kept] for n, v in b["pairs"].items()}} for b in reference[:4]],
        )
        assert [len(b["more"]["example"]) for b in run] == [3 if workers_rows is None else 2] * 4
    first = [int(i) for b in run for i in b["more"]["example"]]
    assert first != examples(reference)[: len(first)]


@pytest.mark.parametrize(
    "options,message",
    [
        ({"batch_size": 38}, "batch_size 38 of pairs is more than its 37 training records; use at most 37"),
        ({"batch_size": 0}, "batch_size 0 of pairs: at least 1"),
        ({"workers": -1}, "workers -1"),
        ({"threads": -1}, "threads -1"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(pairs, options, message):
    with pytest.raises(errors.InputError, match=message):
        pipeline.train_iterator({"pairs": pairs}, **{"batch_size": BATCH, "seed": 0} | options)


@pytest.mark.parametrize("rows", [[], [[0]], [8], [-1], [0.5]])
def test_rows_outside_the_batch_are_refused(pairs, rows):
    with pytest.raises(ValueError, match="rows of pairs"):
        pipeline.train_iterator({"pairs": pairs}, batch_size=BATCH, seed=0, rows=lambda size: np.array(rows))


@pytest.fixture
def broken(tmp_path, pairs, write_tar, encode_image, noise) -> pipeline.Pairs:
    members = []
    for i in range(10):
        members += [(f"k{i}.jpg", b"no image" if i == 4 else encode_image(noise(i, 8, 8), "JPEG")), (f"k{i}.txt", b"low")]
    return dataclasses.replace(pairs, train=write_tar(tmp_path / "broken.tar", members))


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 2}, {"workers": 1, "threads": 1}], ids=str)
def test_where_none_may_be_bad_a_broken_image_names_its_shard_and_key(broken, options):
    with pytest.raises(errors.InputError, match=r"broken\.tar: k4: image of 8 bytes cannot be decoded"):
        batches(dataclasses.replace(broken, bad_records=0), steps=2, **options)


def test_a_description_has_what_the_model_must_match(pairs):
    assert dataclasses.asdict(pairs.describe()) == {
        "vocab_size": 519, "length": 24, "bos_id": 517, "eos_id": 518, "pad_id": 0, "image_size": 8,
        "train_records": 37, "val_records": 37, "fingerprint": sources.open_source(pairs.train).fingerprint,
        "images": 1, "image_id": None, "chunk_end_id": None,
    }  # fmt: skip


@pytest.mark.parametrize("field", ["train", "val"])
def test_a_missing_shard_names_its_field(pairs, field):
    with pytest.raises(errors.InputError, match=rf"^{field} /nowhere/a\.tar: does not exist"):
        dataclasses.replace(pairs, **{field: "/nowhere/a.tar"}).describe()


@pytest.mark.parametrize("threads", [0, 2])
def test_reading_is_in_order_and_in_the_evaluation_form(pairs, threads):
    source = sources.open_source(pairs.train)
    wanted = [5, 30, 1]
    evaluation = pairs.image.evaluation()
    read = list(pipeline.read(source, pairs.image, wanted, threads))
    assert [index for index, *_ in read] == wanted
    for index, example, image in read:
        assert example["key"] == f"{index:05d}"
        np.testing.assert_array_equal(image, evaluation(example["image"]))
    assert [index for index, *_ in pipeline.read(source, pairs.image, threads=threads)] == list(range(37))
    assert list(pipeline.read(source, pairs.image, [])) == []


def test_reading_a_broken_image_names_its_shard_and_key(broken):
    with pytest.raises(records.RecordError, match=r"broken\.tar: k4: .* An evaluation leaves nothing out: mend this record"):
        list(pipeline.read(sources.open_source(broken.train), broken.image))
