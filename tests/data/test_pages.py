"""Documents as rows of tokens and images: what a row says, and that it does not depend on hosts, workers and resumes."""

import base64
import collections
import dataclasses
import json

import fsspec
import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.data import images, mixtures, packing, pages, pipeline, records, text
from vlm_jax.data.sources import documents

BATCH, STEPS = 8, 5
COUNT = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encode_image, noise):
    """Forty documents of up to seven images, with the images beside them."""
    root = tmp_path_factory.mktemp("documents")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(COUNT):
        items = []
        for place in range(int(rng.integers(1, 8))):
            if rng.random() < 0.6:
                name = f"{number}-{place}.png"
                (root / name).write_bytes(encode_image(noise(len(lines) * 10 + place, 9, 10)))
                items.append({"image": name, "alt": ""})
            items.append({"text": f"thing {number} " + "here there everywhere " * int(rng.integers(0, 4))})
        lines.append(json.dumps({"key": f"d{number}", "items": items}))
    (root / "docs.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def stream(folder, piece_model) -> pages.Pages:
    file = str(folder / "docs.jsonl")
    transform = images.Transform(size=8, crop="random", flip=0.5)
    return pages.Pages(file, file, text.Tokenizer(piece_model, length=32), transform, images=3, next_image=0.5, bad_records=0.1)


def batches(streams, steps=STEPS, start=0, seed=3, batch_size=BATCH, **options):
    streams = streams if isinstance(streams, dict) else {"pages": streams}
    iterator = pipeline.train_iterator(streams, batch_size=batch_size, seed=seed, **options)
    try:
        iterator.set_state({"step": start})
        return [next(iterator) for _ in range(steps)]
    finally:
        iterator.close()


@pytest.fixture(scope="module")
def reference(stream):
    return batches(stream, threads=0)


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].keys() == b[name].keys()
            for field in a[name]:
                np.testing.assert_array_equal(a[name][field], b[name][field])


def test_a_batch_has_its_fields(stream, reference):
    assert {name: (value.shape, value.dtype.name) for name, value in reference[0]["pages"].items()} == {
        "tokens": ((BATCH, 32), "int32"), "segments": ((BATCH, 32), "int32"), "positions": ((BATCH, 32), "int32"),
        "image_index": ((BATCH, 32), "int32"), "loss_weights": ((BATCH, 32), "float32"),
        "images": ((BATCH, 3, 8, 8, 3), "uint8"), "image_segments": ((BATCH, 3), "int32"), "example": ((BATCH,), "int32"),
    } == with_batch(stream.fields())  # fmt: skip


def with_batch(fields):
    return {name: ((BATCH, *shape), dtype) for name, (shape, dtype) in fields.items()}


def rows(run):
    for batch in run:
        for number in range(len(batch["pages"]["example"])):
            yield {name: value[number] for name, value in batch["pages"].items()}


def test_nothing_of_a_row_reaches_another_segment(stream, reference):
    image_id = stream.form.image_id
    looked = 0
    for row in rows(reference):
        segments = row["segments"]
        assert (np.diff(segments)[segments[1:] > 0] >= 0).all() and set(segments) - {0} == set(range(1, segments.max() + 1))
        for segment in range(1, segments.max() + 1):
            own = segments == segment
            assert row["positions"][own].tolist() == list(range(own.sum()))
            assert row["loss_weights"][own][0] == 0
            slots = np.flatnonzero(row["image_segments"] == segment) + 1
            seen = set(row["image_index"][own].tolist()) - {0}
            assert seen <= set(slots.tolist())
            assert (row["tokens"][own] == image_id).sum() == len(slots)
            looked += len(seen)
        padding = segments == 0
        assert not row["loss_weights"][padding].any() and not row["image_index"][padding].any()
        assert not row["loss_weights"][row["tokens"] == image_id].any()
        assert not row["images"][row["image_segments"] == 0].any()
    assert looked > 40


def test_an_epoch_has_every_token_of_every_document_once(stream):
    count = stream.describe().train_records
    opened, tokenizer = documents.open_documents(stream.train), stream.tokenizer.load()
    epochs = [next(rows(batches(stream, steps=1, start=step, batch_size=1))) for step in range(2 * count)]
    assert sorted(int(row["example"]) for row in epochs[:count]) == list(range(count))
    assert [int(row["example"]) for row in epochs[:count]] != [int(row["example"]) for row in epochs[count:]]
    found = collections.Counter(int(i) for row in epochs[:count] for i in row["tokens"][row["segments"] > 0])
    wanted = collections.Counter(int(i) for index in range(COUNT) for i in stream.form.tokens(opened[index]))
    assert found == wanted
    assert tokenizer.vocab_size + 1 in found


def test_looks_at_the_image_that_the_masks_of_the_card_say(oracles):
    cases = json.loads((oracles / "flamingo_masks.json").read_text())["cases"]
    for case in cases:
        is_image = np.array([token == "<image>" for token in case["tokens"]])
        assert pages.image_index(is_image, "previous").tolist() == case["phi_prev"]
        assert pages.image_index(is_image, "next").tolist() == case["phi_next"]


def test_each_piece_looks_back_or_ahead_as_often_as_was_said(stream):
    def ahead(share: float) -> float:
        changed = dataclasses.replace(stream, next_image=share)
        looks = [0, 0]
        for row in rows(batches(changed, steps=10)):
            for segment in range(1, row["segments"].max() + 1):
                own = row["segments"] == segment
                slots = np.flatnonzero(row["image_segments"] == segment)
                is_image = row["tokens"][own] == stream.form.image_id
                both = [pages.image_index(is_image, look) for look in ("previous", "next")]
                if len(slots) and not np.array_equal(*both):
                    offset = np.where(row["image_index"][own] > 0, row["image_index"][own] - slots[0], 0)
                    looks[[np.array_equal(offset, b) for b in both].index(True)] += 1
        return looks[1] / sum(looks)

    assert ahead(0.0) == 0 and ahead(1.0) == 1
    assert 0.35 < ahead(0.5) < 0.65


def test_the_loss_may_be_of_what_looks_at_an_image(stream, reference):
    seeing = list(rows(batches(dataclasses.replace(stream, loss="seeing"))))
    less = 0
    for row, all_text in zip(seeing, rows(reference), strict=True):
        expected = all_text["loss_weights"] * (all_text["image_index"] > 0)
        np.testing.assert_array_equal(row["loss_weights"], expected)
        less += int(all_text["loss_weights"].sum() - expected.sum())
    assert less > 0


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_together_feed_the_rows(stream, reference, hosts):
    """R7."""
    for host in range(hosts):
        own = np.arange(BATCH)[host::hosts]
        part = [{"pages": {name: value[own] for name, value in batch["pages"].items()}} for batch in reference]
        assert_same(batches(stream, rows=lambda size, own=own: own), part)
    print(f"R7: {hosts} hosts: {STEPS} global batches of packed documents identical to those of one")


def test_streams_of_different_kinds_step_together_with_workers_and_without(stream, reference, pair_tars, merges):
    pairs = pipeline.Pairs(pair_tars, pair_tars, text.Tokenizer(merges, length=24), images.Transform(size=8), batch_size=16)
    both = batches({"pairs": pairs, "pages": stream}, steps=2) + batches({"pairs": pairs, "pages": stream}, 3, 2, workers=1)
    assert_same([{"pages": batch["pages"]} for batch in both], reference)
    assert_same([{"pairs": batch["pairs"]} for batch in both], batches({"pairs": pairs}))
    assert len(both[0]["pairs"]["example"]) == 16
    iterator = pipeline.train_iterator({"pairs": pairs, "pages": stream}, batch_size=BATCH, seed=3)
    said = iterator.metrics()
    iterator.close()
    assert said["pages/fill"] > 0.85 and said["pages/epochs"] == 0


def test_documents_are_mixed_as_pairs_are(stream, reference, folder):
    lines = (folder / "docs.jsonl").read_text().splitlines()[:9]
    (folder / "few.jsonl").write_text("\n".join(lines))
    (folder / "bad.jsonl").write_text('{"items": [{"image": "gone.png"}, {"text": "a thing here and there"}]}\n' * 40)
    parts = {"all": stream, **{name: dataclasses.replace(stream, train=f"{folder}/{name}.jsonl") for name in ("few", "bad")}}
    mixed = mixtures.Mixture(parts, {"all": 2, "few": 1, "bad": 1})
    lenient = dataclasses.replace(mixed, parts=parts | {"bad": dataclasses.replace(parts["bad"], bad_records=1.0)})
    iterator = pipeline.train_iterator({"pages": lenient}, batch_size=BATCH, seed=3)
    batch, said = next(iterator)["pages"], iterator.metrics()
    iterator.close()
    counts = [int((batch["source"] == part).sum()) for part in range(3)]
    assert counts == [said[f"pages/{name}/examples"] for name in parts] and all(counts)
    assert batch.keys() == reference[0]["pages"].keys() | {"source"} and said["pages/few/fill"] > 0.5
    assert not batch["image_segments"][batch["source"] == 2].any()
    with pytest.raises(errors.InputError, match=r"data.bad_records 0.1 of pages/bad: .* cannot be used"):
        batches(mixed, steps=20)


def test_a_broken_image_is_blank_and_changes_nothing_else(stream, reference, folder, tmp_path, caplog):
    """R8."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "3-0.png").unlink(missing_ok=True)
    broken = sorted(tmp_path.glob("1*-*.png"))[::4]
    for file in broken:
        file.write_bytes(b"no image")
    same_files = dataclasses.replace(stream, train=str(tmp_path / "docs.jsonl"), bad_records=1.0)
    iterator = pipeline.train_iterator({"pages": same_files}, batch_size=BATCH, seed=3)
    iterator.bad_records.log_to(tmp_path / "bad.jsonl")
    blank = 0
    for whole in reference:
        batch = next(iterator)["pages"]
        for name in ("tokens", "segments", "positions", "example"):
            np.testing.assert_array_equal(batch[name], whole["pages"][name])
        lost = (whole["pages"]["image_segments"] > 0) & (batch["image_segments"] == 0)
        blank += lost.sum()
        assert not batch["images"][lost].any()
        np.testing.assert_array_equal(batch["images"][~lost], whole["pages"]["images"][~lost])
        looks = whole["pages"]["image_index"]
        at_lost = np.take_along_axis(np.pad(lost, ((0, 0), (1, 0))), looks, 1)
        np.testing.assert_array_equal(batch["image_index"], np.where(at_lost, 0, looks))
    iterator.close()
    assert blank == iterator.bad_records.count > 2
    logged = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert all("docs.jsonl: document" in row["where"] and ", image " in row["where"] for row in logged)
    assert "; it is blank" in caplog.text and "another takes its place" not in caplog.text
    print(f"R8: {blank} broken images of documents blank, counted {iterator.bad_records.count}, all else unchanged")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 0}, "data.images 0"),
        ({"next_image": 1.5}, "data.next_image 1.5"),
        ({"train": "/nowhere.jsonl"}, "train /nowhere.jsonl: does not exist"),
        ({"train": "{folder}/empty.jsonl"}, "empty.jsonl: holds no documents"),
        ({"train": "{folder}/blank.jsonl"}, "blank.jsonl: its 1 documents are all empty"),
        ({"train": "{folder}/x.jsonl.gz"}, "x.jsonl.gz: compressed, and so without random access; unpack it first, such as gunzip"),
        ({"train": "{folder}/x.csv"}, "x.csv: documents are read from .jsonl, .tar and .array_record files"),
        ({"train": "{folder}/bad.jsonl"}, r"1 of 3 documents \(33.33%\) cannot be used, such as .*bad.jsonl: document 1: Expecting value"),
    ],
)
def test_what_cannot_work_is_refused(stream, tmp_path, change, message):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text('{"items": []}\n')
    (tmp_path / "x.jsonl.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "x.csv").write_text("a,b")
    (tmp_path / "bad.jsonl").write_text('{"items": [{"text": "a"}]}\nno json\n\n{"items": [{"text": "b"}]}\n')
    change = {name: value.format(folder=tmp_path) if isinstance(value, str) else value for name, value in change.items()}
    with pytest.raises(errors.InputError, match=message):
        dataclasses.replace(stream, bad_records=0, **change).describe()


def test_fewer_rows_than_a_batch_are_refused(stream):
    count = stream.describe().train_records
    with pytest.raises(errors.InputError, match=f"batch_size {count + 1} of pages is more than its {count} training records"):
        batches(stream, batch_size=count + 1)


def test_a_description_names_the_tokens_beyond_the_vocabulary(stream):
    described, tokenizer = stream.describe(), stream.tokenizer.load()
    assert (described.images, described.image_id, described.chunk_end_id) == (3, tokenizer.vocab_size, tokenizer.vocab_size + 1)
    assert f"packed into {described.train_records} rows of 32 tokens and 3 images" in described.fingerprint


def test_a_vocabulary_is_trained_on_the_texts(stream):
    made = dataclasses.replace(stream, tokenizer=text.Tokenizer("captions:60", length=32)).prepared()
    tokenizer = made.tokenizer.load()
    assert tokenizer.decode(tokenizer.encode("thing 12 everywhere")) == "thing 12 everywhere"


def test_the_book_is_read_and_fills_its_rows(shared_data, piece_model):
    book = str(shared_data / "interleaved_scaling_book" / "docs.jsonl")
    opened = documents.open_documents(book)
    items = [item for index in range(len(opened)) for item in opened[index].items]
    texts = [item for item in items if isinstance(item, str)]
    assert (len(opened), len(items) - len(texts)) == (10, 73)
    made = pages.Pages(book, "", text.Tokenizer("captions:2000", length=256), images.Transform(size=32)).prepared()
    examples = made.examples(0)
    fill = examples.metrics(0)["fill"]
    print(f"book: {len(examples)} rows of 256 tokens, {fill:.1%} of them filled")
    assert fill >= 0.95
    plan = packing.plan(opened, made.form)
    assert plan.images == 73
    seen = sum(int((examples.rows[row]["image_segments"] > 0).sum()) for row in range(len(examples)))
    assert seen == 73


def read(path) -> list:
    opened = documents.open_documents(str(path))
    return [(d.key, [i if isinstance(i, str) else i() for i in d.items]) for d in (opened[n] for n in range(len(opened)))]


def test_three_forms_of_a_document_are_one(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    coded = base64.b64encode(b"b.png").decode()
    forms = [
        {"items": [{"text": "one"}, {"text": "two"}, {"image": "a.png"}, {"image": "b.png"}, {"text": "three"}]},
        {"texts": ["one", "two", None, None, "three"], "images": [None, None, "a.png", "b.png", None]},
        {
            "text_list": ["one", "two", "three"],
            "image_info": [{"image_name": "a.png", "matched_text_index": 2}, {"image_base64": coded, "matched_text_index": 2}],
        },
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(form) + "\r\n" for form in forms))
    rest = [b"a.png", b"b.png", "three"]
    assert read(tmp_path / "docs.jsonl") == [("0", ["one\n\ntwo", *rest]), ("1", ["one\n\ntwo", *rest]), ("2", ["one two", *rest])]
    records.write(str(tmp_path / "docs"), [{"key": "k", "items": [{"text": "one"}, {"image": b"a.png"}]}], 1)
    assert read(tmp_path / "docs-*.array_record") == [("k", ["one", b"a.png"])]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "is a list, not a map"),
        ({}, "has neither items, nor text_list, nor texts and images"),
        ({"items": [{"text": 3}]}, "the text of an item is no string"),
        ({"items": [{"both": 1}]}, "its items are not a list"),
        ({"items": [{"image": "https://x.org/a.png"}]}, "an image is an address, https://x.org/a.png; download"),
        ({"items": [{"image": 3}]}, "an image is a int, not a name"),
        ({"texts": ["a"], "images": []}, "not two lists of the same length"),
        ({"texts": ["a"], "images": ["b"]}, "a place has not one of a text and an image"),
        ({"text_list": ["a"], "image_info": [{"image_name": "a", "matched_text_index": 1}]}, "matched_text_index 1 of an image"),
        ({"text_list": [1]}, "its text_list is not a list of texts"),
    ],
)
def test_what_is_no_document_says_why(record, message):
    with pytest.raises(ValueError, match=message):
        documents.parse(record, "0", lambda name: lambda: b"")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a\0b", "gone.png", "link.png"])
def test_images_lie_below_the_folder_of_their_document(tmp_path, name):
    """R14."""
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "below" / "docs.jsonl").write_text(json.dumps({"items": [{"image": name}]}))
    with pytest.raises(records.RecordError, match=r"is not below|no such file"):
        read(tmp_path / "below" / "docs.jsonl")


def test_pages_of_tars_have_their_images_beside_them(tmp_path, write_tar):
    page = {"items": [{"image": "1.png"}, {"text": "one"}, {"image": "a/p1.0.jpg"}, {"text": "two"}]}
    members = [("a/p1.0.jpg", b"zero"), ("a/p1.json", json.dumps(page).encode()), ("a/p1.1.png", b"one")]
    write_tar(tmp_path / "pages.tar", [*members, ("p2.json", b"{}"), ("p3.jpg", b"")])
    opened = documents.open_documents(str(tmp_path / "pages.tar"))
    document = opened[0]
    assert (document.key, [i if isinstance(i, str) else i() for i in document.items]) == ("a/p1", [b"one", "one", b"zero", "two"])
    with pytest.raises(records.RecordError, match=r"^\S+pages.tar: p2: has neither items"):
        opened[1]
    with pytest.raises(records.RecordError, match=r"^\S+pages.tar: p3: has no member json"):
        opened[2]
    missing = dict(page, items=[{"image": "7.png"}])
    write_tar(tmp_path / "other.tar", [("x.json", json.dumps(missing).encode())])
    (image,) = documents.open_documents(str(tmp_path / "other.tar"))[0].items
    assert not isinstance(image, str)
    with pytest.raises(records.RecordError, match=r"x: has no member 7\.png"):
        image()


def test_pages_of_tars_may_lie_behind_a_network(tmp_path, write_tar, encode_image, noise, stream):
    members = []
    for i in range(8):
        members += [(f"{i}.json", json.dumps({"items": [{"image": "0.png"}, {"text": f"thing {i}"}]}).encode())]
        members += [(f"{i}.0.png", encode_image(noise(i, 9, 9)))]
    write_tar(tmp_path / "p.tar", members)
    fsspec.filesystem("memory").pipe("memory://pages/p.tar", (tmp_path / "p.tar").read_bytes())
    near = dataclasses.replace(stream, train=str(tmp_path / "p.tar"), val="", batch_size=2)
    far = dataclasses.replace(near, train="memory://pages/p.tar")
    assert_same(batches(far), batches(near))
    with pytest.raises(errors.InputError, match=r"memory://pages/d.jsonl: lines with documents are read from disks only"):
        fsspec.filesystem("memory").pipe("memory://pages/d.jsonl", b"{}")
        dataclasses.replace(near, train="memory://pages/d.jsonl").describe()


def test_a_tar_of_pages_that_is_cut_is_refused(tmp_path, write_tar):
    write_tar(tmp_path / "pages.tar", [(f"{i}.json", b'{"items": []}') for i in range(30)])
    (tmp_path / "pages.tar").write_bytes((tmp_path / "pages.tar").read_bytes()[:9000])
    with pytest.raises(errors.InputError, match=r"pages.tar: truncated: 9 members"):
        documents.open_documents(str(tmp_path / "pages.tar"))
