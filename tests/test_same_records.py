"""The same 64 records as a user may have them: equal keys, pixels and captions, and equal loss curves."""

import csv
import dataclasses
import io
import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm_jax import config as configs
from vlm_jax import run as runs
from vlm_jax.data import images, records, sources

ROOT = Path(__file__).resolve().parents[1]
COUNT, STEPS = 64, 20
KINDS = "array_record", "tar", "parquet", "jsonl", "csv", "folder"


@pytest.fixture(scope="module")
def made(tiny_world, tmp_path_factory) -> dict[str, str]:
    """Kind to pattern."""
    root = tmp_path_factory.mktemp("same")
    world = sources.open_source(f"{tiny_world}/train-*.array_record")
    examples = [{"key": f"scene{i:03d}", "image": world[i]["image"], "captions": list(world[i]["captions"])} for i in range(COUNT)]
    suffix = images_suffix(examples[0]["image"])
    records.write(str(root / "set"), examples, 1)
    with tarfile.open(root / "set.tar", "w") as tar:
        for example in examples:
            for end, data in ((suffix, example["image"]), (".json", json.dumps({"captions": example["captions"]}).encode())):
                info = tarfile.TarInfo(example["key"] + end)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    table = pa.table({name: [example[name] for example in examples] for name in examples[0]})
    pq.write_table(table, root / "set.parquet", row_group_size=10)
    (root / "folder").mkdir()
    rows, lines = [], []
    for example in examples:
        name = f"{example['key']}{suffix}"
        (root / "folder" / name).write_bytes(example["image"])
        (root / "folder" / f"{example['key']}.txt").write_text("\n".join(example["captions"]))
        rows += [(example["key"], f"folder/{name}", caption) for caption in example["captions"]]
        lines.append(json.dumps({"key": example["key"], "image": f"folder/{name}", "captions": example["captions"]}))
    (root / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    with open(root / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows([("key", "filepath", "title"), *rows])
    return {
        "array_record": f"{root}/set-*.array_record", "tar": f"{root}/set.tar", "parquet": f"{root}/set.parquet",
        "jsonl": f"{root}/pairs.jsonl", "csv": f"{root}/pairs.csv", "folder": f"{root}/folder",
    }  # fmt: skip


def images_suffix(data: bytes) -> str:
    return ".png" if data.startswith(b"\x89PNG") else ".jpg"


@pytest.mark.parametrize("kind", KINDS[1:])
def test_keys_pixels_and_captions_are_equal(made, kind):
    reference, source = sources.open_source(made["array_record"]), sources.open_source(made[kind])
    assert len(source) == COUNT
    for i in range(COUNT):
        wanted, found = reference[i], source[i]
        assert found["key"].partition(".")[0] == wanted["key"], "in a folder the name of the file"
        assert found["captions"] == wanted["captions"]
        np.testing.assert_array_equal(images.decode(found["image"]), images.decode(wanted["image"]))


@pytest.mark.slow
def test_the_demo_learns_the_same_from_every_kind(made, tiny_world, tmp_path):
    demo, _ = configs.load_recipe(str(ROOT / "configs" / "demo.py"))
    tokenizer = dataclasses.replace(demo.data.tokenizer, path=f"{tiny_world}/tokenizer.model")
    curves = {}
    for kind in KINDS:
        data = dataclasses.replace(demo.data, train=made[kind], val=made[kind], tokenizer=tokenizer)
        config = dataclasses.replace(
            demo, data=data, workdir=str(tmp_path / kind), steps=STEPS, batch_size=16, log_every=1, eval_every=0, save_every=STEPS,
            evaluators={},
        )  # fmt: skip
        runs.Run.build(config, name="demo", devices=jax.devices()[:1]).train()
        rows = [json.loads(line) for line in (tmp_path / kind / "metrics.jsonl").read_text().splitlines()]
        curves[kind] = [row["loss"] for row in rows if "loss" in row]
    assert len(curves["tar"]) == STEPS and curves["tar"][-1] < curves["tar"][0]
    assert all(curve == curves["tar"] for curve in curves.values()), curves
    print(f"six kinds of sources, {STEPS} steps: losses equal bit for bit, from {curves['tar'][0]:.4f} to {curves['tar'][-1]:.4f}")
