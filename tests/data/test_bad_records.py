"""Gates R7 and R8 together: records of every kind of damage among good ones change nothing but their own rows."""

import dataclasses
import json
import re

import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.data import bad_records, images, pipeline, records, sources, text

COUNT, BATCH, STEPS, SEED = 200, 16, 25, 3
"""Two epochs: 400 examples in 25 batches."""
BAD = {17: "none of the known formats", 101: "has no caption"}
"""1 % of the records, and what is said of them."""


def example(i, encode_image, noise):
    return {"key": f"k{i}", "image": encode_image(noise(i, 12, 14), "PNG"), "captions": [f"low {i}", f"newer {i}"]}


@pytest.fixture(scope="module")
def streams(tmp_path_factory, encode_image, noise, merges):
    """The same data whole and with bad records; the order is that of the count and the seed."""

    def stream(name, examples):
        records.write(str(tmp_path_factory.mktemp(name) / "train"), examples, 2)
        (folder,) = [p.parent for p in tmp_path_factory.getbasetemp().glob(f"{name}0/train-00000-*")]
        return pipeline.Pairs(
            train=f"{folder}/train-*.array_record", val=f"{folder}/train-*.array_record", tokenizer=text.Tokenizer(merges, length=12),
            image=images.Transform(size=8, resize_to=10, crop="random", flip=0.5),
        )  # fmt: skip

    whole = [example(i, encode_image, noise) for i in range(COUNT)]
    broken = [*whole]
    for i in BAD:
        broken[i] = whole[i] | ({"image": b"\xff\xd8 broken"} if "formats" in BAD[i] else {"captions": []})
    return stream("whole", whole), stream("broken", broken)


def number_at(place: int) -> int:
    """The number of the example at this place of the source: two shards were filled in turn."""
    return place * 2 if place < COUNT // 2 else (place - COUNT // 2) * 2 + 1


def start(stream, **options):
    return pipeline.train_iterator({"pairs": stream}, batch_size=BATCH, seed=SEED, **options)


def take(iterator, steps=STEPS):
    try:
        return [next(iterator)["pairs"] for _ in range(steps)]
    finally:
        iterator.close()


@pytest.fixture(scope="module")
def reference(streams):
    return [take(start(stream, threads=0)) for stream in streams]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys() == {"image", "tokens", "example"}
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_bad_records_change_their_own_rows_only(streams, reference):
    """R8: 1 % bad, training goes on, the count is right, the order of the others is that of whole data."""
    iterator = start(streams[1])
    broken = take(iterator)
    assert_same(broken, reference[1])
    changed = 0
    for whole, other in zip(reference[0], broken, strict=True):
        own = np.array([number_at(int(i)) in BAD for i in whole["example"]])
        changed += own.sum()
        for name in whole:
            np.testing.assert_array_equal(whole[name][~own], other[name][~own])
        assert not {number_at(int(i)) for i in other["example"]} & BAD.keys()
    assert iterator.bad_records.count == changed == 2 * len(BAD)
    print(f"R8: {changed} of {STEPS * BATCH} examples bad and replaced, counted {iterator.bad_records.count}, all other rows unchanged")


@pytest.mark.parametrize(("hosts", "options"), [(1, {"workers": 2}), (2, {"workers": 1}), (4, {}), (8, {"threads": 0})])
def test_hosts_and_workers_replace_alike(streams, reference, hosts, options):
    """R7 with bad records."""
    bad = 0
    joined = [{name: np.empty_like(value) for name, value in batch.items()} for batch in reference[1]]
    for host in range(hosts):
        own = np.arange(BATCH)[host::hosts]
        iterator = start(streams[1], rows=lambda size, own=own: own, **{"threads": 1} | options)
        for step, batch in enumerate(take(iterator)):
            for name, value in batch.items():
                joined[step][name][own] = value
        bad += iterator.bad_records.count
    assert_same(joined, reference[1])
    assert bad == 2 * len(BAD)
    print(f"R7: {hosts} hosts, {options}: {STEPS} global batches identical, {bad} bad examples in all of them together")


@pytest.mark.parametrize("stop", range(0, STEPS, 4))
def test_a_resumed_run_has_rows_and_count_of_an_uninterrupted_one(streams, reference, stop, tmp_path):
    first, second = start(streams[1]), start(streams[1])
    first.bad_records.log_to(tmp_path / "bad_records.jsonl")
    head = [next(first)["pairs"] for _ in range(stop)]
    state = json.loads(json.dumps(first.get_state()))
    ahead = [next(first) for _ in range(min(4, STEPS - stop))]  # steps after the last save, made again below
    first.close()
    second.set_state(state)
    second.bad_records.log_to(tmp_path / "bad_records.jsonl")
    assert_same(head + take(second, STEPS - stop), reference[1])
    assert ahead and second.bad_records.count == 2 * len(BAD)
    (count, seen, reasons) = second.get_state()["bad_records"]["pairs"]
    assert (second.get_state()["step"], count, seen) == (STEPS, 2 * len(BAD), STEPS * BATCH)
    assert sum(reasons.values()) == 2 * len(BAD) and set(reasons.values()) == {2} and len(reasons) == len(BAD), reasons
    rows = [json.loads(line) for line in (tmp_path / "bad_records.jsonl").read_text().splitlines()]
    assert sorted(row["key"] for row in rows) == sorted(f"k{i}" for i in BAD), "each record once, over epochs and resumes"


def test_the_log_names_stream_shard_key_and_reason(streams, tmp_path, caplog):
    path = tmp_path / "bad_records.jsonl"
    path.write_text('{"stream": "pairs", "record": 500, "key": "earlier"}\n{"stream": "pai')
    iterator = start(streams[1], workers=1)
    iterator.bad_records.log_to(path)
    take(iterator, 13)
    earlier, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert earlier["key"] == "earlier"
    assert {row["key"] for row in rows} == {f"k{i}" for i in BAD}
    for row in rows:
        index = int(row["key"][1:])
        assert number_at(row["record"]) == index and row["stream"] == "pairs" and 1 <= row["step"] <= 13 and 0 <= row["row"] < BATCH
        assert row["where"].endswith(f"train-{index % 2:05d}-of-00002.array_record: record {index // 2}")
        assert BAD[index] in row["reason"] and str(tmp_path) not in row["reason"]
    first, last = (record.getMessage() for record in caplog.records)
    assert "another takes its place" in first
    total = sum(map(int, re.findall(r"(\d+) x '", last)))
    assert last.startswith(f"bad records of pairs: {total} of {13 * BATCH} examples could not be used: ") and total >= len(BAD)
    assert all(reason in last for reason in BAD.values())


def test_a_flipped_byte_and_damaged_text_are_replaced_too(tmp_path, write_tar, encode_image, noise, merges):
    def stream(path):
        tokenizer = text.Tokenizer(merges, length=12)
        return pipeline.Pairs(train=path, val=path, tokenizer=tokenizer, image=images.Transform(size=8))

    examples = [example(i, encode_image, noise) for i in range(40)]
    (path,) = records.write(str(tmp_path / "a"), examples, 1)
    data = bytearray(open(path, "rb").read())
    data[data.index(examples[7]["image"]) + 60] ^= 1
    open(path, "wb").write(data)
    members = [(f"k{i}.{kind}", value) for i in range(40) for kind, value in (("png", examples[i]["image"]), ("txt", b"low"))]
    members[1], members[9] = ("k0.txt", b"\xff\xfe\xfa"), ("k4.json", b"[" * 100_000)
    tar = write_tar(tmp_path / "b.tar", members)
    for pattern, wanted in ((path, {7: "hash mismatch"}), (tar, {0: "codec can't decode", 4: "recursion"})):
        iterator = pipeline.train_iterator({"pairs": stream(pattern)}, batch_size=8, seed=0)
        iterator.bad_records.log_to(tmp_path / "log.jsonl")
        take(iterator, 10)
        rows = {row["record"]: row["reason"] for row in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())}
        assert rows.keys() == wanted.keys() and all(wanted[i] in rows[i] for i in rows)
        assert iterator.bad_records.count == 2 * len(wanted)
        (tmp_path / "log.jsonl").unlink()


def account(share, rows=16):
    return bad_records.Account({"pairs": share}, {"pairs": rows})


def bad(number):
    return ("pairs", 0, bad_records.BadRecord(number, f"a.tar: k{number}", f"k{number}", "broken"))


def test_above_the_share_the_run_stops_with_words(tmp_path):
    some = account(0.01)
    some.log_to(tmp_path / "bad_records.jsonl")
    with pytest.raises(errors.InputError) as error:
        for step in range(1000):
            some.add(step, [bad(step)])
    assert some.count == bad_records.ENOUGH
    message = str(error.value)
    assert message.startswith("data.bad_records 0.01 of pairs: 20 of 320 examples (6.25%) cannot be used: 20 x 'broken'; such as a.tar")
    assert "a.tar: k2: broken. Mend the shards, or raise data.bad_records; " in message and "k3" not in message
    assert f"{tmp_path}/bad_records.jsonl lists every one" in message and "\n" not in message
    assert len((tmp_path / "bad_records.jsonl").read_text().splitlines()) == 20, "the last ones, too"


def test_none_and_all_may_be_bad():
    none, every = account(0.0), account(1.0, rows=1)
    none.add(0, [])
    with pytest.raises(errors.InputError, match=r"data\.bad_records 0 of pairs: 1 of 32 examples \(3\.12%\)"):
        none.add(1, [bad(0)])
    for step in range(1000):
        every.add(step, [bad(step)])


def test_data_with_just_the_share_pass_and_with_twice_the_share_do_not():
    """The first thousands of examples hold more than the share half of the time, by chance."""
    rng, stopped = np.random.default_rng(0), {0.01: 0, 0.02: 0}
    for share in stopped:
        for _ in range(50):
            run = account(0.01, rows=100)
            try:
                for step in range(200):
                    run.add(step, [bad(i) for i in range(rng.binomial(100, share))])
            except errors.InputError:
                stopped[share] += 1
    assert stopped == {0.01: 0, 0.02: 50}


def test_the_share_goes_on_where_another_number_of_hosts_saved():
    """A state of a process that fed 100 rows a batch, read by one that feeds 10."""
    before, after = account(0.02, rows=100), account(0.02, rows=10)
    before.add(0, [bad(i) for i in range(3)])
    after.set_state(1, before.state())
    after.add(1, [])
    assert after.state() == {"pairs": [3, 110, {"broken": 3}]}


def test_data_without_a_usable_record_stop_at_the_first_batch(tmp_path, merges):
    (path,) = records.write(str(tmp_path / "a"), [{"image": b"x", "captions": ["low"]}] * 20, 1)
    stream = pipeline.Pairs(
        train=path, val=path, tokenizer=text.Tokenizer(merges, length=12), image=images.Transform(size=8), bad_records=1.0
    )
    with pytest.raises(errors.InputError, match=r"record .*known formats; nor can 100 others be used"):
        take(start(stream))


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_is_from_0_to_1(streams, share):
    with pytest.raises(errors.InputError, match=r"data\.bad_records .*: a share"):
        dataclasses.replace(streams[0], bad_records=share)


def test_a_failing_disk_is_no_bad_record(tmp_path, write_tar, encode_image, noise, monkeypatch):
    image = encode_image(noise(0, 8, 8))
    source = sources.open_source(write_tar(tmp_path / "a.tar", [("a.png", image), ("a.txt", b"low")]))

    def pread(*_):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("os.pread", pread)
    with pytest.raises(errors.InfrastructureError, match=r"a\.tar: a: cannot be read .*Stale"):
        source[0]


def test_reasons_are_counted_without_their_numbers_and_few_are_kept(caplog):
    some = account(1.0)
    for step in range(30):
        why = f"image of {step:,} bytes cannot be decoded" if step % 3 else f"reason {chr(97 + step) * 3}"
        some.add(step, [("pairs", 0, dataclasses.replace(bad(step)[2], reason=why)) for _ in range(2)])
    reasons = some.state()["pairs"][2]
    assert sum(reasons.values()) == some.count == 60 and reasons["image of # bytes cannot be decoded"] == 40
    for step in range(30, 60):
        some.add(step, [("pairs", 0, dataclasses.replace(bad(step)[2], reason=chr(97 + step) * 3))])
    assert sum(some.state()["pairs"][2].values()) == 90 and some.state()["pairs"][2]["other reasons"] == 21
    some.conclude()
    said = "90 of 960 examples could not be used: 40 x 'image of # bytes cannot be decoded', 21 x 'other reasons', 2 x 'reason aaa'"
    assert caplog.messages[-1].startswith(f"bad records of pairs: {said}")
