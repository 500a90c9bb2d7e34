"""Gate R14: what a stranger's data may try is refused, escaped or replaced, and nothing of it runs or is written elsewhere."""

import io
import json
import os
import pickle
import struct
import tarfile
import zlib
from pathlib import Path

import msgpack
import numpy as np
import pytest
from PIL import Image, ImageFile

from vlm_jax import config as configs
from vlm_jax import errors
from vlm_jax.data import images, pipeline, records, sources, text
from vlm_jax.evaluation import base, report

SIDE = 12_000
SCRIPT = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_JAX_CACHE", str(tmp_path / "cache"))


class Armed:
    """Its pickle makes a folder when it is read."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def picture(seed: int = 0) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def bomb(form: str) -> bytes:
    """A small file that says it holds 144 million pixels."""
    if form == "PNG":
        squeezed = zlib.compressobj(9)
        data = b"".join(squeezed.compress(bytes(1 + SIDE // 8)) for _ in range(SIDE)) + squeezed.flush()
        parts = (b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")
        chunks = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts)
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    out = io.BytesIO()
    Image.new("L" if form == "JPEG" else "P", (8, 8)).save(out, form)
    data = bytearray(out.getvalue())
    if form == "GIF":
        data[6:10] = struct.pack("<HH", SIDE, SIDE)
    elif form == "JPEG":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", SIDE, SIDE)
    else:
        data[18:26] = struct.pack("<ii", SIDE, SIDE)
    return bytes(data)


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.mark.parametrize("form", ["PNG", "GIF", "JPEG", "BMP"])
def test_an_image_bomb_is_refused_before_it_is_decoded(form, monkeypatch):
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image))
    data = bomb(form)
    with pytest.raises(records.RecordError, match=f"image of {SIDE} x {SIDE} pixels, more than the limit"):
        images.Transform(size=8)(data)
    assert not decoded
    print(f"R14: a {form} of {len(data):,} bytes and {SIDE * SIDE:,} pixels refused undecoded")


def test_a_run_goes_past_bombs_climbing_names_and_scripts(tmp_path, monkeypatch):
    """Keys are names in a log, never places; a bomb is one bad record."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    members = [(f"k{i}.{kind}", data) for i in range(14) for kind, data in (("png", picture(i)), ("txt", SCRIPT.encode()))]
    members += [("../../climbed.png", bomb("PNG")), ("../../climbed.txt", b"x"), ("/tmp/root.png", b""), ("/tmp/root.txt", b"x")]
    shard = tar_of(tmp_path / "here" / "a.tar", members)
    (tmp_path / "here" / "bpe.txt").write_text("#version: 0.2\nl o\n")
    stream = pipeline.Pairs(train=shard, val=shard, tokenizer=text.Tokenizer("bpe.txt", length=8), image=images.Transform(size=8))
    before = {p for p in tmp_path.rglob("*") if "cache" not in p.parts}
    iterator = pipeline.train_iterator({"pairs": stream}, batch_size=16, seed=0, threads=1)
    iterator.bad_records.log_to(Path("bad_records.jsonl"))
    next(iterator)
    iterator.close()
    assert {p for p in tmp_path.rglob("*") if "cache" not in p.parts} - before == {tmp_path / "here" / "bad_records.jsonl"}
    assert not (tmp_path.parent / "climbed.png").exists() and not Path("/tmp/root.png").exists()
    rows = {row["key"]: row["reason"] for row in map(json.loads, Path("bad_records.jsonl").read_text().splitlines())}
    assert rows.keys() == {"../../climbed", "/tmp/root"} and "more than the limit" in rows["../../climbed"]
    print(f"R14: a bomb and an empty image under climbing names, 2 of 16 replaced, written: {len(rows)} lines of bad_records.jsonl")


def test_a_key_commands_no_terminal(tmp_path):
    source = sources.open_source(tar_of(tmp_path / "a.tar", [("a\x1b[2J\nerror: b.png", b"i"), ("a\x1b[2J\nerror: b.txt", b"\xff")]))
    with pytest.raises(errors.InputError) as error:
        source[0]
    assert str(error.value).startswith(f"{tmp_path}/a.tar: a\\x1b[2J\\nerror: b: ") and str(error.value).isprintable()


@pytest.mark.parametrize("kind", ["symlink", "hardlink"])
def test_links_in_a_tar_lead_nowhere(tmp_path, kind):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("x.png")
        info.type, info.linkname = (tarfile.SYMTYPE if kind == "symlink" else tarfile.LNKTYPE), "/etc/passwd"
        tar.addfile(info)
        text_info = tarfile.TarInfo("x.txt")
        text_info.size = 1
        tar.addfile(text_info, io.BytesIO(b"t"))
    with pytest.raises(errors.InputError, match="none of its 2 members make an example"):
        sources.open_source(str(path))


def test_nothing_is_unpickled(tmp_path):
    """As a shard, a record, an array in a record, the bytes of an image, and a tokenizer."""
    folder = tmp_path / "ran"
    armed = pickle.dumps(Armed(folder))
    np.savez(tmp_path / "a.npz", image=np.array([Armed(folder)], dtype=object))
    npz = (tmp_path / "a.npz").read_bytes()
    array = msgpack.ExtType(records.ARRAY, msgpack.packb(["|O", [1]]) + armed)
    refused = [
        lambda: sources.open_source(str(tmp_path / "a.npz")),
        lambda: records.decode(armed),
        lambda: records.decode(npz),
        lambda: records.decode(msgpack.packb({"image": array})),
        lambda: images.decode(armed),
        lambda: images.decode(npz),
        lambda: text.Tokenizer(str(tmp_path / "b.model")).load(),
    ]
    (tmp_path / "b.model").write_bytes(armed)
    for attempt in refused:
        with pytest.raises(errors.InputError):
            attempt()
    assert not folder.exists()
    pickle.loads(armed)
    assert folder.exists(), "it would have"
    print(f"R14: pickles refused in {len(refused)} places")


@pytest.mark.parametrize(
    "header",
    [["|O", [1]], ["<f4", [2**62]], ["<f4", ["x"]], ["<f4", [-1, -1]], [[["a", "|O"]], [1]], ["<i4,(9,9)", [1]], ["", None], "x", []],
    ids=str,
)
def test_an_array_with_a_header_of_nonsense_is_refused(header):
    data = msgpack.packb({"a": msgpack.ExtType(records.ARRAY, msgpack.packb(header) + bytes(64))})
    with pytest.raises(records.RecordError):
        records.decode(data)


def test_random_damage_to_a_record_is_refused_or_harmless():
    rng, refused = np.random.default_rng(0), 0
    whole = records.encode({"key": "k", "image": picture(), "captions": ["a", "b"], "box": np.eye(3, dtype=np.float32)})
    for _ in range(2000):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        try:
            assert isinstance(records.decode(bytes(data)), dict)
        except records.RecordError:
            refused += 1
    assert refused > 50
    print(f"R14: of 2000 damaged records {refused} refused, the others maps of plain values")


@pytest.mark.parametrize("captions", ["one string", {"a": 1}, 7, [b"bytes"], [["nested"]], [None]], ids=str)
def test_captions_of_another_shape_are_a_bad_record(tmp_path, captions):
    whole = [{"image": picture(), "captions": ["fine"]}] * 7
    (path,) = records.write(str(tmp_path / "a"), [*whole, {"key": "odd", "image": picture(), "captions": captions}], 1)
    (tmp_path / "bpe.txt").write_text("#version: 0.2\nl o\n")
    tokenizer = text.Tokenizer(str(tmp_path / "bpe.txt"), length=8)
    stream = pipeline.Pairs(train=path, val=path, tokenizer=tokenizer, image=images.Transform(size=8))
    iterator = pipeline.train_iterator({"pairs": stream}, batch_size=8, seed=0, threads=0)
    next(iterator)
    assert iterator.bad_records.count == 1
    iterator.close()


def test_a_script_in_a_caption_is_text_in_the_report(tmp_path):
    shown = base.Example(SCRIPT, base.Entry(text=SCRIPT), (base.Entry(SCRIPT, score=0.1, verdict="wrong"),), base.Entry(SCRIPT))
    result = base.Result({"acc1": 0.5}, examples=[shown], chance={"acc1": 0.1}, note=SCRIPT)
    file = tmp_path / "report.html"
    report.write(file, title=SCRIPT, config={"steps": 1}, metrics_history=[], results={SCRIPT: result}, environment={})
    page = file.read_text()
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;alert(1)" in page
    print(f"R14: a script in captions, {page.count('&lt;script&gt;')} times escaped in report.html, run nowhere")


def test_a_configuration_imports_nothing_from_elsewhere(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_type": "subprocess.Popen", "args": ["touch", str(tmp_path / "ran")]}))
    with pytest.raises(errors.InputError, match="not from this package"):
        configs.load(tmp_path / "config.json")
    assert not (tmp_path / "ran").exists()
