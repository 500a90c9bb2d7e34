"""Texts as rows of tokens: every text once, nothing between them, the same for any number of hosts, workers and resumes."""

import collections
import dataclasses
import gzip
import itertools
import json

import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.data import mixtures, packing, pipeline, records, text, texts
from vlm_jax.data.sources import texts as sources

BATCH, STEPS, LENGTH = 8, 4, 16
BOOKS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Books of some paragraphs, one of them packed; documents; pairs."""
    root = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for book in range(BOOKS):
        paragraphs = [f"a thing {book}\n" + "here there everywhere " * int(rng.integers(1, 9)) for _ in range(int(rng.integers(1, 9)))]
        words = "\n \n".join(paragraphs) + "\n"
        if book == 3:
            (root / "03.txt.gz").write_bytes(gzip.compress(words.replace("\n", "\r\n").encode()))
        else:
            (root / f"{book:02d}.txt").write_text(words)
    image, lines = {"image": "no.png"}, [{"text": f"a red thing {i}"} for i in range(20)]
    lines += [{"items": [image, {"text": "a"}, image, {"text": "thing"}]}, {"items": [image]}]
    (root / "docs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pairs = [{"captions": [f"a blue thing {i}", "", f"a thing {i} there"], "image": b""} for i in range(20)]
    records.write(str(root / "pairs"), [*pairs, {"captions": [], "image": b""}], 2)
    return root


@pytest.fixture(scope="module")
def stream(folder, piece_model) -> texts.Texts:
    train = f"{folder}/0*.txt*::{folder}/1*.txt"
    return texts.Texts(train, train, text.Tokenizer(piece_model, length=LENGTH))


def batches(streams, steps=STEPS, start=0, seed=3, batch_size=BATCH, **options):
    streams = streams if isinstance(streams, dict) else {"texts": streams}
    iterator = pipeline.train_iterator(streams, batch_size=batch_size, seed=seed, **options)
    try:
        iterator.set_state({"step": start})
        return [next(iterator)["texts"] for _ in range(steps)]
    finally:
        iterator.close()


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for field in a:
            np.testing.assert_array_equal(a[field], b[field])


def epoch(stream):
    """All rows of an epoch, in the order of the plan."""
    count = stream.describe().train_records
    (batch,) = batches(stream, steps=1, batch_size=count)
    order = np.argsort(batch["example"])
    assert batch["example"][order].tolist() == list(range(count))
    return {name: values[order] for name, values in batch.items()}


def test_a_batch_has_its_fields(stream):
    (batch,) = batches(stream, steps=1)
    assert {name: (value.shape[1:], value.dtype.name) for name, value in batch.items()} == stream.fields()
    assert len(batch["example"]) == BATCH


@pytest.mark.parametrize(
    ("read", "unit", "count"), [("documents", "file", BOOKS), ("documents", "paragraph", None), ("documents", "line", None)]
)
def test_an_epoch_has_every_token_of_every_text_once(stream, folder, read, unit, count):
    stream = dataclasses.replace(stream, read=read, unit=unit)
    tokenizer = stream.tokenizer.load()
    opened = stream.opened(stream.train, "train")
    found = [words for index in range(len(opened)) for words in opened[index]]
    whole = [[tokenizer.bos_id, *tokenizer.encode(words), tokenizer.eos_id] for words in found]
    rows = epoch(stream)
    held = collections.Counter(rows["tokens"][rows["segments"] > 0].tolist())
    assert held == collections.Counter(token for ids in whole for token in ids)
    assert count in (None, len(found)) and "\r" not in "".join(found)
    begun = collections.Counter()
    for row in range(len(rows["example"])):
        tokens, segments, positions, weights = (rows[name][row] for name in ("tokens", "segments", "positions", "loss_weights"))
        assert not tokens[segments == 0].any() and not weights[segments == 0].any()
        for segment in range(1, segments.max() + 1):
            own = segments == segment
            assert positions[own].tolist() == list(range(own.sum())) and weights[own].tolist() == [0] + [1] * (own.sum() - 1)
            begun[tuple(tokens[own].tolist())] += 1
    pieces = collections.Counter(tuple(ids[i : i + LENGTH]) for ids in whole for i in range(0, len(ids), LENGTH))
    assert begun == pieces


def test_documents_lose_their_images_and_captions_are_texts_of_their_own(stream, folder):
    opened = sources.open_texts(f"{folder}/docs.jsonl")
    assert [opened[i] for i in (0, 20, 21)] == [["a red thing 0"], ["a\n\nthing"], []]
    captions = sources.open_texts(f"{folder}/pairs-*.array_record", read="captions")
    assert sorted(words for i in range(len(captions)) for words in captions[i]) == sorted(
        words for i in range(20) for words in (f"a blue thing {i}", f"a thing {i} there")
    )
    longer = dataclasses.replace(stream.tokenizer, length=64)
    rows = epoch(dataclasses.replace(stream, train=f"{folder}/pairs-*.array_record", val="", read="captions", tokenizer=longer))
    assert (rows["tokens"] == longer.load().eos_id).sum() == 40 and 5 < len(rows["example"]) < 20


def test_a_long_text_is_cut_into_stretches_that_lose_nothing():
    words = " ".join(f"word{i}" for i in range(900)) + "\n\n\n" + "line of words\n" * 300 + "x" * 5000
    parts = list(packing.stretches(words, 1000))
    assert "".join(parts) == words and max(map(len, parts)) <= 2000 and len(parts) > 8
    assert all(part[-1] == "\n" or after[0] == " " for part, after in itertools.pairwise(parts) if "x" not in part)
    assert list(packing.stretches("")) == []


def test_tokens_are_made_once_whatever_the_length_of_a_row(stream, monkeypatch):
    texts._packed.cache_clear()
    short = epoch(stream)
    monkeypatch.setattr(sources.TextFiles, "__getitem__", None)
    texts._packed.cache_clear()
    assert_same([epoch(stream)], [short])
    longer = dataclasses.replace(stream, tokenizer=dataclasses.replace(stream.tokenizer, length=40))
    assert (epoch(longer)["segments"] > 0).sum() == (short["segments"] > 0).sum()


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_feed_the_rows(stream, hosts):
    reference = batches(stream, threads=0)
    for host in range(hosts):
        own = np.arange(BATCH)[host::hosts]
        assert_same(batches(stream, rows=lambda size, own=own: own), [{k: v[own] for k, v in batch.items()} for batch in reference])


def test_a_resumed_stream_goes_on_with_the_next_row(stream):
    whole = batches(stream, steps=12)
    assert_same(batches(stream, steps=6, start=6), whole[6:])
    assert len({tuple(batch["example"]) for batch in whole}) == 12


@pytest.mark.slow
def test_a_worker_process_makes_the_same_rows(stream):
    assert_same(batches(stream, steps=2, start=3, workers=1), batches(stream, steps=5)[3:])


def test_texts_are_mixed_and_share_a_vocabulary(stream, folder):
    asked = dataclasses.replace(stream, tokenizer=text.Tokenizer("captions:60", length=LENGTH, begin="</s>"))
    parts = {"books": asked, "web": dataclasses.replace(asked, train=f"{folder}/docs.jsonl")}
    mixed = mixtures.Mixture(parts, {"books": 3, "web": 1}).prepared()
    tokenizer = mixed.tokenizer.load()
    assert tokenizer.decode(tokenizer.encode("a thing there")) == "a thing there"
    (batch,) = batches(mixed, steps=1, batch_size=40)
    assert 20 <= (batch["source"] == 0).sum() < 40 and mixed.describe().vocab_size == tokenizer.vocab_size


def test_a_vocabulary_is_of_long_lines_too(folder, tmp_path, stream):
    (tmp_path / "long.txt").write_text("a thing here and there " * 1000)
    asked = dataclasses.replace(stream, train=str(tmp_path / "long.txt"), tokenizer=text.Tokenizer("captions:40", length=LENGTH))
    tokenizer = asked.prepared().tokenizer.load()
    assert tokenizer.decode(tokenizer.encode("here and there")) == "here and there"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"read": "pages"}, "data.read 'pages': choose documents or captions"),
        ({"unit": "word"}, "data.unit 'word': choose file or paragraph or line"),
        ({"bad_records": 2.0}, "data.bad_records 2.0: a share"),
        ({"train": "{folder}/no.txt"}, "train .*no.txt: does not exist"),
        ({"train": "{folder}/00.txt::{folder}/docs.jsonl"}, "text files and others in one source"),
        ({"train": "{folder}/pairs-*.array_record"}, "21 of 21 documents .* cannot be used, such as .*has neither items"),
        ({"train": "{tmp}/empty.txt"}, "train .*empty.txt: its 1 records have no text"),
        ({"train": "{tmp}/latin.txt"}, r"1 of 1 documents \(100.00%\) cannot be used, such as .*latin.txt: 'utf-8' codec can't decode"),
        ({"train": "{tmp}/half.txt.gz"}, "half.txt.gz: .*end-of-stream"),
        ({"train": "{tmp}/no.txt.gz"}, "no.txt.gz: Not a gzipped file"),
        ({"train": "{tmp}/a.docx"}, "a.docx: documents are read from .jsonl, .tar and .array_record files, texts alone from .txt"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(stream, folder, tmp_path, change, message):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("früher".encode("latin-1"))
    (tmp_path / "half.txt.gz").write_bytes(gzip.compress(b"a thing" * 100)[:-9])
    (tmp_path / "no.txt.gz").write_bytes(b"a thing")
    (tmp_path / "a.docx").write_bytes(b"PK")
    change = {k: v.format(folder=folder, tmp=tmp_path) if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises(errors.InputError, match=message):
        dataclasses.replace(stream, **change).describe()


def test_a_file_that_is_no_text_is_left_out_where_that_is_allowed(stream, folder, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"\xff")
    some = dataclasses.replace(stream, train=f"{stream.train}::{tmp_path}/latin.txt", bad_records=0.2)
    assert some.describe().train_records == stream.describe().train_records
