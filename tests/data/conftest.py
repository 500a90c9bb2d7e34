"""Small shards, images and vocabularies, written by the tests; a cache folder of their own."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
from PIL import Image

COLOURS = ("red", "green", "blue", "white", "black", "yellow", "pink", "brown")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Nothing is written to the user's cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("VLM_JAX_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def encode_image():
    """(array or PIL image, format) -> bytes."""

    def encode(image, form="PNG", **options) -> bytes:
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        out = io.BytesIO()
        image.save(out, form, **options)
        return out.getvalue()

    return encode


@pytest.fixture(scope="session")
def noise():
    """(seed, height, width) -> uint8 image."""
    return lambda seed, h, w: np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


@pytest.fixture(scope="session")
def write_tar():
    """(path, [(name, bytes)]) -> path."""

    def write(path, members) -> str:
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return str(path)

    return write


@pytest.fixture(scope="session")
def write_parquet():
    """(path, columns, what `datasets` would say of them, rows of a group) -> path."""

    def write(path, columns, features=None, rows=4) -> str:
        pq.write_table(_table(columns, features), path, row_group_size=rows)
        return str(path)

    return write


@pytest.fixture(scope="session")
def write_saved():
    """(folder, columns, what `datasets` would say of them) -> folder, as `Dataset.save_to_disk` leaves it."""

    def write(folder, columns, features=None) -> str:
        folder.mkdir(parents=True)
        table = _table(columns, features)
        with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
            stream.write_table(table, max_chunksize=4)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}))
        return str(folder)

    return write


def _table(columns, features) -> pa.Table:
    table = pa.table(columns)
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}) if features else table


@pytest.fixture(scope="session")
def pair_tars(tmp_path_factory, write_tar, encode_image, noise) -> str:
    """The pattern of two shards with 23 + 14 examples of three captions each."""
    folder = tmp_path_factory.mktemp("pairs")
    start = 0
    for shard, count in enumerate((23, 14)):
        members = []
        for i in range(start, start + count):
            captions = [f"a {COLOURS[i % 8]} thing {i} {word}" for word in ("here", "there", "everywhere")]
            members.append((f"{i:05d}.jpg", encode_image(noise(i, 20, 24), "JPEG", quality=90)))
            members.append((f"{i:05d}.json", json.dumps({"captions": captions, "group": i % 3}).encode()))
        write_tar(folder / f"pairs-{shard:05d}.tar", members)
        start += count
    return str(folder / "pairs-{00000..00001}.tar")


@pytest.fixture(scope="session")
def piece_model(tmp_path_factory) -> str:
    """A SentencePiece model of 80 pieces with pad 0, end 1, unknown 2 and begin 3."""
    prefix = tmp_path_factory.mktemp("pieces") / "tiny"
    sentences = [f"a {colour} thing {i} here there everywhere" for i in range(100) for colour in COLOURS]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_prefix=str(prefix), vocab_size=80, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=3, minloglevel=2,
    )  # fmt: skip
    return f"{prefix}.model"


@pytest.fixture(scope="session")
def merges(tmp_path_factory) -> str:
    """Five merges in CLIP's format: "lo", "low", "low" at the end, "er" at the end, "ne"."""
    path = tmp_path_factory.mktemp("merges") / "bpe_tiny.txt.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("#version: 0.2\nl o\nlo w\nlo w</w>\ne r</w>\nn e\n")
    return str(path)
