"""Mixtures of streams: exact shares, every part in its own order, the same batches for any hosts and after any resume."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import errors
from vlm_jax.data import images, mixtures, pipeline, records, sources, text

BATCH, STEPS = 12, 9


@pytest.fixture(scope="module")
def parts(tmp_path_factory, pair_tars, merges, encode_image, noise) -> dict[str, pipeline.Pairs]:
    """Three sources: two tars, a shard of ArrayRecord with other rules, and a folder of five images."""
    root = tmp_path_factory.mktemp("parts")
    made = ({"key": f"r{i}", "image": encode_image(noise(i, 10, 9)), "captions": [f"low &amp; {i}", "new"]} for i in range(20))
    records.write(str(root / "shards"), made, 1)
    (root / "folder").mkdir()
    for i in range(5):
        (root / "folder" / f"{i}.png").write_bytes(encode_image(noise(i, 9, 9)))
        (root / "folder" / f"{i}.txt").write_text(f"lower {i}")
    tars = pipeline.Pairs(
        train=pair_tars,
        val=pair_tars,
        tokenizer=text.Tokenizer(merges, length=24),
        image=images.Transform(size=8, resize_to=12, crop="random", flip=0.5),
    )
    return {
        "tars": tars,
        "shards": dataclasses.replace(
            tars, train=f"{root}/shards-*.array_record", image=images.Transform(size=8), caption="key", clean="whitespace"
        ),
        "folder": dataclasses.replace(tars, train=str(root / "folder"), caption="first"),
    }


@pytest.fixture(scope="module")
def mixture(parts) -> mixtures.Mixture:
    return mixtures.Mixture(parts, {"tars": 3, "shards": 2, "folder": 1})


def batches(stream, steps=STEPS, start=0, seed=3, **options):
    iterator = pipeline.train_iterator({"pairs": stream}, batch_size=BATCH, seed=seed, **options)
    try:
        iterator.set_state({"step": start})
        return [next(iterator)["pairs"] for _ in range(steps)]
    finally:
        iterator.close()


def taken(run) -> list[tuple[int, int]]:
    return [(int(s), int(e)) for batch in run for s, e in zip(batch["source"], batch["example"], strict=True)]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys() == {"image", "tokens", "example", "source"}
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def reference(mixture):
    return batches(mixture, threads=0)


@pytest.mark.parametrize("counts", [(5000, 3333, 1667), (9999, 1), (10000,)])
def test_positions_are_dealt_in_exact_shares(counts):
    order = mixtures.Order(counts, seed=5)
    dealt = [order(position) for position in range(20_000)]
    for part, count in enumerate(counts):
        assert [place for p, place in dealt if p == part] == list(range(2 * count))
    parts = [part for part, _ in dealt]
    assert len(counts) == 1 or parts[:10_000] != parts[10_000:]
    for position in (0, 1, 7_777, 10_000, 13_131):
        assert order.before(position) == [parts[:position].count(part) for part in range(len(counts))]
    assert order.before(10**15) == [10**11 * count for count in counts]


def test_rows_are_those_of_their_parts(parts, reference):
    opened = [sources.open_source(part.train) for part in parts.values()]
    tokenizer = parts["tars"].tokenizer.load()
    for batch in reference:
        for source, index, tokens in zip(batch["source"], batch["example"], batch["tokens"], strict=True):
            captions = [caption.replace("&amp;", "&") for caption in opened[source][int(index)]["captions"]]
            assert tokens.tolist() in tokenizer(captions).tolist()


def test_a_batch_has_its_fields(mixture, reference):
    found = {name: (value.shape[1:], value.dtype.name) for name, value in reference[0].items()}
    assert found == mixture.fields() and found["source"] == ((), "int32")


def test_parts_follow_their_own_epochs(mixture):
    by_part = collections.defaultdict(list)
    for source, index in taken(batches(mixture, steps=30)):
        by_part[source].append(index)
    for source, count in enumerate((37, 20, 5)):
        epochs = [by_part[source][start : start + count] for start in range(0, len(by_part[source]) - count + 1, count)]
        assert len(epochs) >= 3 and all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert len(set(map(tuple, epochs))) > 1


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_feed_the_mixture(mixture, reference, hosts):
    """R7."""
    for host in range(hosts):
        own = np.arange(BATCH)[host::hosts]
        assert_same(batches(mixture, rows=lambda size, own=own: own), [{n: v[own] for n, v in b.items()} for b in reference])
    print(f"R7: {hosts} hosts: {STEPS} global batches of a mixture of three sources identical to those of one")


def test_threads_and_resumes_change_nothing(mixture, reference):
    assert_same(batches(mixture, steps=4, start=5, threads=3), reference[5:])


def test_the_weights_are_in_the_fingerprint_and_nothing_of_an_equal_mixture_changes_it(mixture):
    same = mixtures.Mixture(mixture.parts, {"tars": 30, "shards": 20, "folder": 10})
    other = mixtures.Mixture(mixture.parts, {"tars": 3, "shards": 1, "folder": 1})
    assert same.describe() == mixture.describe()
    assert other.describe().fingerprint != mixture.describe().fingerprint
    assert mixture.describe().train_records == 62


def test_without_weights_all_parts_end_their_epochs_together(parts):
    iterator = pipeline.train_iterator({"pairs": mixtures.Mixture(parts)}, batch_size=62, seed=0)
    iterator.set_state({"step": 1000})
    said = iterator.metrics()
    assert [said[f"pairs/{name}/epochs"] for name in parts] == pytest.approx([1000] * 3, rel=2e-3)
    assert sum(said[f"pairs/{name}/examples"] for name in parts) == 62_000
    iterator.close()


def test_counts_by_part_are_those_of_all_hosts(mixture, reference):
    """A process that feeds some rows says what all of them have been fed."""
    iterator = pipeline.train_iterator({"pairs": mixture}, batch_size=BATCH, seed=3, rows=lambda size: np.array([2, 5]))
    for _ in range(STEPS):
        next(iterator)
    counted = collections.Counter(source for source, _ in taken(reference))
    said = iterator.metrics()
    iterator.close()
    assert [said[f"pairs/{name}/examples"] for name in mixture.parts] == [counted[source] for source in range(3)]
    assert said["pairs/folder/epochs"] == counted[2] / 5


def test_bad_records_are_counted_by_part(parts, tmp_path, encode_image, noise):
    """A part with too many stops the run by its name, though the mixture as a whole has few."""
    made = ({"key": f"r{i}", "image": encode_image(noise(i, 9, 9)) if i % 4 else b"no", "captions": ["low"]} for i in range(40))
    records.write(str(tmp_path / "shards"), made, 1)
    broken = dataclasses.replace(parts["shards"], train=f"{tmp_path}/shards-*.array_record", bad_records=0.5)
    mixed = mixtures.Mixture({"tars": parts["tars"], "broken": broken}, {"tars": 3, "broken": 1})
    iterator = pipeline.train_iterator({"pairs": mixed}, batch_size=40, seed=0)
    iterator.bad_records.log_to(tmp_path / "bad.jsonl")
    for _ in range(4):
        next(iterator)
    state = iterator.get_state()["bad_records"]
    iterator.close()
    assert list(state) == ["pairs/broken"] and state["pairs/broken"][1] == 40 and 5 <= state["pairs/broken"][0] <= 15
    assert {json.loads(line)["stream"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()} == {"pairs/broken"}
    strict = dataclasses.replace(mixed, parts=mixed.parts | {"broken": dataclasses.replace(broken, bad_records=0.0)})
    with pytest.raises(errors.InputError, match=r"data.bad_records 0 of pairs/broken: . of \d+ examples"):
        batches(strict, steps=9)


@pytest.mark.parametrize(
    ("parts_of", "weights", "message"),
    [
        (lambda p: {}, {}, "data.parts: at least one"),
        (lambda p: p, {"tars": 1}, "data.weights tars: the parts are tars, shards, folder; give each a weight"),
        (lambda p: {"tars": p["tars"]}, {"tars": 0.0}, "data.weights.tars 0: above 0 is needed"),
        (lambda p: {"tars": p["tars"]}, {"tars": -1.0}, "data.weights.tars -1: above 0 is needed"),
        (lambda p: {"tars": p["tars"]}, {"tars": float("nan")}, "data.weights.tars nan: above 0"),
        (lambda p: {"a/b": p["tars"]}, {}, "data.parts 'a/b': a name without /"),
        (lambda p: {"a": mixtures.Mixture(p)}, {}, "data.parts.a: is a mixture itself"),
        (lambda p: {"a": dataclasses.replace(p["tars"], batch_size=3)}, {}, "data.parts.a.batch_size 3: a mixture has one"),
        (
            lambda p: {"a": p["tars"], "b": dataclasses.replace(p["tars"], image=images.Transform(size=9))}, {},
            "data.parts.b: image_size 9 is not the 8 of a",
        ),
        (
            lambda p: {"a": p["tars"], "b": dataclasses.replace(p["tars"], tokenizer=_changed(p["tars"].tokenizer, pad="eos"))}, {},
            "data.parts.b: pad_id 518 is not the 0 of a",
        ),
        (
            lambda p: {"a": p["tars"], "b": dataclasses.replace(p["tars"], tokenizer=_changed(p["tars"].tokenizer, case="lower"))}, {},
            "data.parts.b: another tokenizer than that of a",
        ),
        (lambda p: {"a": p["tars"], "b": p["folder"]}, {"a": 1.0, "b": 1e-5}, "b would be 1.0e-05 of the examples, less than one in"),
        (lambda p: {"a": dataclasses.replace(p["tars"], train="/nowhere/a.tar")}, {}, "data.parts.a: train /nowhere/a.tar: does not exist"),
    ],
)  # fmt: skip
def test_mixtures_that_cannot_work_are_refused(parts, parts_of, weights, message):
    with pytest.raises(errors.InputError, match=message):
        mixtures.Mixture(parts_of(parts), weights).describe()


def _changed(tokenizer: text.Tokenizer, **fields) -> text.Tokenizer:
    return dataclasses.replace(tokenizer, **fields)


def test_fewer_records_than_a_batch_are_refused(mixture):
    with pytest.raises(errors.InputError, match="batch_size 63 of pairs is more than its 62 training records"):
        pipeline.train_iterator({"pairs": mixture}, batch_size=63, seed=0)


def test_a_vocabulary_is_trained_on_the_captions_of_all_parts(parts):
    asked = {name: dataclasses.replace(part, tokenizer=text.Tokenizer("captions:60", length=24)) for name, part in parts.items()}
    made = mixtures.Mixture(asked).prepared()
    tokenizer = made.tokenizer.load()
    assert {part.tokenizer.path for part in made.parts.values()} == {made.tokenizer.path}
    assert tokenizer.decode(tokenizer.encode("low & lower thing")) == "low & lower thing"
    asked["folder"] = parts["folder"]
    with pytest.raises(errors.InputError, match="must be the same in all parts"):
        mixtures.Mixture(asked).prepared()


def test_parts_and_weights_are_flags_and_json(mixture):
    def parsed(stream, flags: str):
        return configs.parse(_Recipe(stream), flags.split(), prog="", description="").data

    changed = parsed(mixture, "--data.parts.shards.train x.tar --data.weights.tars 7 --data.parts.tars.clean lower")
    assert (changed.parts["shards"].train, changed.weights["tars"], changed.parts["tars"].clean) == ("x.tar", 7, "lower")
    weights = parsed(mixtures.Mixture(mixture.parts), "--data.weights tars 1 shards 2 folder 3").weights
    assert weights == {"tars": 1, "shards": 2, "folder": 3}
    assert configs.from_json(json.loads(json.dumps(configs.to_json(mixture)))) == mixture


def test_the_vocabulary_of_a_mixture_goes_with_its_checkpoint(mixture, tmp_path):
    mixture.keep(str(tmp_path))
    kept = mixture.kept(str(tmp_path))
    assert {part.tokenizer.path for part in kept.parts.values()} == {f"{tmp_path}/pairs.txt.gz"}
    assert kept.describe() == mixture.describe()


@dataclasses.dataclass(frozen=True)
class _Recipe:
    data: mixtures.Mixture
