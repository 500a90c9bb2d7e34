"""The same records in every kind of source: equal images, and what the pipeline promises of batches holds for all."""

import base64
import json
import pickle

import numpy as np
import pytest

from vlm_jax.data import images, pipeline, records, sources, text

COUNT, BATCH = 21, 6
KINDS = (
    *("array_record", "tar", "wds", "folder", "table", "pixels", "encoded", "csv", "tsv", "jsonl", "base64"),
    *("parquet", "structs", "saved", "coco"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory, encode_image, noise, write_tar, write_parquet, write_saved):
    """Kind -> pattern; the captions of record i are "record i" and "again i"."""
    root = tmp_path_factory.mktemp("kinds")
    files = [encode_image(noise(i, 10, 12)) for i in range(COUNT)]
    lines = [(f"record {i}", f"again {i}") for i in range(COUNT)]
    found = {"array_record": records.write(str(root / "r"), ({"image": f, "captions": c} for f, c in zip(files, lines, strict=True)), 1)[0]}
    members = [(f"{i:03d}.{k}", d) for i in range(COUNT) for k, d in (("png", files[i]), ("txt", "\n".join(lines[i]).encode()))]
    found["tar"] = write_tar(root / "t.tar", [(n, d if n.endswith("png") else d.partition(b"\n")[0]) for n, d in members])
    for kind in ("wds/test", "folder", "table/sub"):
        (root / kind).mkdir(parents=True)
    (root / "wds" / "test" / "nshards.txt").write_text("1")
    write_tar(root / "wds" / "test" / "0.tar", members)
    for name, data in members:
        (root / "folder" / name).write_bytes(data)
        if name.endswith("png"):
            (root / "table" / "sub" / name).write_bytes(data)
    rows = [f"sub/{i:03d}.png,{caption}" for i in range(COUNT) for caption in lines[i]]
    (root / "table" / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    pixels = np.stack([noise(i, 10, 12) for i in range(COUNT)])
    np.savez(root / "pixels.npz", images=pixels, captions=np.array(lines))
    offsets = np.cumsum([0, *map(len, files)])
    np.savez_compressed(root / "encoded.npz", jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets, captions=np.array(lines))
    sub = root / "table" / "sub"
    (root / "pairs.csv").write_text("\n".join(["photo,words", *(f"table/{row}" for row in rows)]))
    (root / "pairs.tsv").write_text("\n".join(["filepath\ttitle", *(f"{sub}/{row[4:]}".replace(",", "\t") for row in rows)]))
    maps = [{"image": f"table/sub/{i:03d}.png", "captions": lines[i]} for i in range(COUNT)]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, maps)) + "\n")
    maps = [{"image": base64.b64encode(files[i]).decode(), "captions": lines[i]} for i in range(COUNT)]
    (root / "base64.jsonl").write_text("\n".join(map(json.dumps, maps)))
    captions = [list(line) for line in lines]
    write_parquet(root / "plain.parquet", {"jpg": files, "caption": captions})
    structs = {"picture": [{"bytes": data, "path": None} for data in files], "caption": captions}
    write_parquet(root / "structs.parquet", structs, {"picture": {"_type": "Image"}})
    write_saved(root / "saved", structs, {"picture": {"_type": "Image"}})
    (root / "captions.json").write_text(json.dumps({
        "images": [{"id": i, "file_name": f"{i:03d}.png", "width": 12, "height": 10} for i in range(COUNT)],
        "annotations": [{"image_id": i, "caption": caption} for i in range(COUNT) for caption in lines[i]],
    }))  # fmt: skip
    found |= {"csv": f"{root}/pairs.csv#image=photo&caption=words", "tsv": f"{root}/pairs.tsv", "jsonl": f"{root}/pairs.jsonl"}
    found |= {"parquet": f"{root}/plain.parquet", "structs": f"{root}/structs.parquet", "coco": f"{root}/captions.json#root={sub}"}
    found["base64"] = f"{root}/base64.jsonl"
    found |= {kind: str(root / kind) for kind in ("wds", "folder", "table", "saved")}
    return found | {kind: str(root / f"{kind}.npz") for kind in ("pixels", "encoded")}


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_captions_are_equal(made, kind, noise):
    source = sources.open_source(made[kind])
    assert len(source) == COUNT
    for i in (0, 9, 20):
        example = source[i]
        assert isinstance(example["key"], str) and isinstance(example["image"], bytes)
        np.testing.assert_array_equal(images.decode(example["image"]), noise(i, 10, 12))
        assert example["captions"] == [f"record {i}", f"again {i}"][: 1 if kind == "tar" else 2]
    assert source.fingerprint == sources.open_source(made[kind]).fingerprint
    assert all(isinstance(path, str) for path in source.paths)
    assert pickle.loads(pickle.dumps(source))[3] == source[3]


def stream(pattern, merges) -> pipeline.Pairs:
    transform = images.Transform(size=8, crop="random")
    return pipeline.Pairs(pattern, pattern, text.Tokenizer(merges, length=12), transform, caption="first")


def batches(pattern, merges, steps, start=0, **options):
    iterator = pipeline.train_iterator({"pairs": stream(pattern, merges)}, batch_size=BATCH, seed=1, **options)
    try:
        iterator.set_state({"step": start})
        return [next(iterator)["pairs"] for _ in range(steps)]
    finally:
        iterator.close()


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_the_same_from_every_source_and_after_a_resume(made, kind, merges):
    reference = batches(made["array_record"], merges, 5, threads=0)
    for steps, start, options in ((5, 0, {"threads": 2}), (2, 3, {"threads": 0}), (2, 3, {"rows": lambda size: np.arange(2, size)})):
        rows = slice(2, None) if "rows" in options else slice(None)
        for got, wanted in zip(batches(made[kind], merges, steps, start, **options), reference[start:], strict=start > 0 or steps == 5):
            for field in wanted:
                np.testing.assert_array_equal(got[field], wanted[field][rows])


def test_a_worker_reads_every_kind_too(made, merges):
    streams = {kind: stream(made[kind], merges) for kind in ("folder", "encoded", "wds", "csv", "jsonl", "parquet", "saved", "coco")}
    read = {}
    for workers in (0, 1):
        iterator = pipeline.train_iterator(streams, batch_size=BATCH, seed=1, workers=workers)
        read[workers] = next(iterator)
        iterator.close()
    for kind in streams:
        np.testing.assert_array_equal(read[1][kind]["image"], read[0][kind]["image"])


def test_bad_images_of_a_folder_and_of_arrays_are_replaced_in_their_rows(tmp_path, merges, encode_image, noise):
    files = [encode_image(noise(i, 10, 12)) for i in range(COUNT)]
    files[4] = b"no image"
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(tmp_path / "a.npz", jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets, captions=np.array(["c"] * COUNT))
    (tmp_path / "folder").mkdir()
    for i, data in enumerate(files):
        (tmp_path / "folder" / f"{i:03d}.png").write_bytes(data)
        (tmp_path / "folder" / f"{i:03d}.txt").write_text("c")
    found = []
    for pattern in (tmp_path / "a.npz", tmp_path / "folder"):
        iterator = pipeline.train_iterator({"pairs": stream(str(pattern), merges)}, batch_size=COUNT, seed=1, threads=0)
        found.append(next(iterator)["pairs"])
        assert iterator.bad_records.count == 1
        iterator.close()
    np.testing.assert_array_equal(found[0]["image"], found[1]["image"])
    assert sorted(found[0]["example"].tolist()).count(4) == 0
