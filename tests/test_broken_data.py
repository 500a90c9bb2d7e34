"""Whole runs on a mixture with bad records in it: they go on, count, resume bit for bit, and stop with words above the share."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import run as runs
from vlm_jax.data import pipeline, records, sources
from vlm_jax.training import checkpoint, loop, tree
from vlm_jax.training import state as states

ROOT = Path(__file__).resolve().parents[1]
RECIPE = str(Path(__file__).parent / "tiny_recipe.py")
STEPS, BATCH, BAD = 13, 16, (3, 60)


@pytest.fixture(scope="module")
def shards(tiny_world, tmp_path_factory):
    """The training shards of the tiny world with two images of 128 broken."""
    source = sources.open_source(f"{tiny_world}/train-*.array_record")
    folder = tmp_path_factory.mktemp("broken")
    rows = [source[i] | ({"image": source[i]["image"][:40]} if i in BAD else {}) for i in range(len(source))]
    records.write(str(folder / "train"), rows, 1)
    return f"{folder}/train-*.array_record"


def build(tiny_world, shards, workdir, **changes) -> runs.Run:
    """Two streams: pairs of two joined sources with bad records among them, and others that are fed beside them."""
    default, _ = configs.load_recipe(RECIPE)
    pairs = dataclasses.replace(
        default.data,
        train=f"{shards}::{tiny_world}/trained_pairs-*.array_record",
        val=f"{tiny_world}/val-*.array_record",
        tokenizer=dataclasses.replace(default.data.tokenizer, path=f"{tiny_world}/tokenizer.model"),
    )
    more = dataclasses.replace(pairs, train=f"{tiny_world}/held_out-*.array_record::{shards}", batch_size=12, caption="first")
    config = dataclasses.replace(
        default, workdir=str(workdir), steps=STEPS, save_every=4, keep=4, data={"pairs": pairs, "more": more}, evaluators={}
    )
    return runs.Run.build(dataclasses.replace(config, **changes), name="mixture", devices=jax.devices()[:1])


def train(run: runs.Run, monkeypatch) -> dict[int, str]:
    """Trains; what every batch of the run held, by step."""
    seen = {}

    def fit(state, batches, **arguments):
        def hashed():
            for number, batch in enumerate(batches, start=int(state["step"]) + 1):
                flat = sorted(tree.flatten(batch).items())
                seen[number] = hashlib.sha256(b"".join(name.encode() + np.asarray(x).tobytes() for name, x in flat)).hexdigest()
                yield batch

        return whole(state, hashed(), **arguments)

    whole = loop.fit
    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", fit)
        run.train()
    return seen


def met(streams, tiny_world, shards) -> list[int]:
    """How often the places of the bad records came up to each step, where nothing is broken: the order is the same."""
    whole = f"{tiny_world}/train-*.array_record"
    sound = {name: dataclasses.replace(stream, train=stream.train.replace(shards, whole)) for name, stream in streams.items()}
    places = {"pairs": set(BAD), "more": {len(sources.open_source(f"{tiny_world}/held_out-*.array_record")) + i for i in BAD}}
    iterator, counts = pipeline.train_iterator(sound, batch_size=BATCH, seed=0), [0]
    for _ in range(STEPS):
        batch = next(iterator)
        counts.append(counts[-1] + sum(int(i) in places[name] for name in places for i in batch[name]["example"]))
    iterator.close()
    return counts[1:]


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def curve(workdir: Path) -> list[tuple]:
    return [(row["step"], row["loss"], row.get("bad_records", 0)) for row in rows(workdir / "metrics.jsonl") if "loss" in row]


def weights(run: runs.Run, workdir: Path):
    return jax.device_get(checkpoint.load_weights(workdir, None, states.weights_of(run.model), run.mesh)[0])


@pytest.mark.slow
def test_a_mixture_with_bad_records_resumes_bit_for_bit(tiny_world, shards, tmp_path, monkeypatch):
    """R8 and the mixture of R1: from the save of step 8 on with two workers, as if killed before the next one."""
    whole = build(tiny_world, shards, tmp_path / "whole")
    wanted = train(whole, monkeypatch)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in (12, 13):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(step))
    again = train(build(tiny_world, shards, tmp_path / "cut", workers=2, threads=1), monkeypatch)
    assert list(again) == list(range(9, 14)) and again == {step: wanted[step] for step in again}
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, *(weights(whole, tmp_path / name) for name in ("cut", "whole")))

    counts = [count for *_, count in curve(tmp_path / "whole")]
    logged = [rows(tmp_path / name / "bad_records.jsonl") for name in ("cut", "whole")]
    assert counts == met(whole.config.streams, tiny_world, shards)
    assert all({row["stream"] for row in log} == {"pairs", "more"} and len(log) == 2 * len(BAD) for log in logged)
    print(f"R8: {counts[-1]:.0f} bad of {STEPS * (BATCH + 12)} in two streams; curve and weights equal bit for bit after a resume")


def test_above_the_share_the_command_stops_with_2_and_says_which_field(tiny_world, shards, tmp_path):
    flags = [
        *("--data.train", shards, "--data.val", f"{tiny_world}/val-*.array_record", "--workdir", str(tmp_path / "run")),
        *("--data.tokenizer.path", f"{tiny_world}/tokenizer.model", "--batch-size", "128", "--data.bad-records", "0"),
    ]
    command = [sys.executable, "-m", "vlm_jax.train", RECIPE, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: data.bad_records 0 of pairs: 2 of 128 ") and "train-00000-of-00001.array_record: record " in line
    assert "raise data.bad_records" in line and "cannot be decoded" in line
    assert [row["stream"] for row in rows(tmp_path / "run" / "bad_records.jsonl")] == ["pairs"] * 2
