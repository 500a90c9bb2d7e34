"""The training commands of docs/language.md and of the texts of docs/data.md, run: with a few texts under the very names that they give."""

import contextlib
import io
import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import test_documents

from vlm_jax import evaluate, train
from vlm_jax.data import records

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
    line
    for name in ("language", "data")
    for line in test_documents.commands((ROOT / "docs" / f"{name}.md").read_text())
    if "configs/lm_text.py" in line or "--tasks perplexity" in line
]
TRAINED = list(dict.fromkeys(line for line in COMMANDS if "vlm_jax.train" in line))
SMALL = (
    "--system.lm.width 32 --system.lm.depth 1 --system.lm.mlp-dim 32 --system.lm.num-heads 2 --system.lm.vocab-size 256 --batch-size 8 "
    "--data.tokenizer.path captions:60 --data.tokenizer.length 32 --evaluators.perplexity.examples 0 --log-every 1"
).split()
WORDS = "a red boat beside two dogs while birds fly over green fields near old stone houses".split()


def sentence(number: int) -> str:
    return " ".join(np.random.default_rng(number).permutation(WORDS)[:9].tolist())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with all the texts that the commands name."""
    root = tmp_path_factory.mktemp("language")
    (root / "books").mkdir()
    for book in range(3):
        (root / "books" / f"{book}.txt").write_text("\n\n".join(sentence(100 * book + i) for i in range(40)))
    (root / "held_out.txt").write_text("\n".join(map(sentence, range(900, 930))))
    (root / "wiki.jsonl").write_text("\n".join(json.dumps({"text": sentence(i)}) for i in range(60)))
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir()
        for i in range(40):
            (root / f"{split}2017" / f"{i}.jpg").write_bytes(b"never decoded")
        images = [{"id": i, "file_name": f"{i}.jpg", "width": 1, "height": 1} for i in range(40)]
        captions = [{"id": i, "image_id": i, "caption": sentence(i)} for i in range(40)]
        (root / "annotations" / f"captions_{split}2017.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return root


@contextlib.contextmanager
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VLM_JAX_CACHE", str(folder / "cache"))
    yield


def run(line: str, *flags: str) -> str:
    words = shlex.split(line)
    words[words.index("configs/lm_text.py")] = str(ROOT / "configs" / "lm_text.py")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert train.main([*words[3:], *SMALL, *flags]) == 0
    return said.getvalue()


def losses(workdir: Path) -> list[float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.slow
def test_a_language_model_trains_resumes_and_is_evaluated_as_the_document_says(place, monkeypatch):
    """Its loss falls, a run that was stopped goes on bit by bit, and the evaluation has its intervals and its blind number."""
    line, *_ = TRAINED
    with inside(place, monkeypatch):
        run(line, "--steps", "10", "--save-every", "5", "--workdir", "runs/whole")
        run(line, "--steps", "10", "--save-every", "5")
        last = Path("runs/lm/checkpoints/10")
        last.rename("runs/taken")
        (place / "runs/lm/metrics.jsonl").unlink()
        said = run(line, "--steps", "10", "--save-every", "5")
        assert "resumed from step 5" in said
        whole = losses(Path("runs/whole"))
        assert losses(Path("runs/lm")) == whole[5:] and whole[-1] < whole[0] - 0.1
        command = next(line for line in COMMANDS if "--tasks perplexity" in line)
        with contextlib.redirect_stdout(io.StringIO()):
            assert evaluate.main([*shlex.split(command)[3:], "--evaluators.perplexity.examples", "2"]) == 0
        (record,) = json.loads(Path("runs/lm_held_out/evaluation.json").read_text())
    assert record["task"] == "language_modelling" and 1 < record["metrics"]["token_perplexity"] < 256
    low, high = record["intervals"]["token_perplexity"]
    assert low < record["metrics"]["token_perplexity"] < high and record["blind"]["token_perplexity"] < 60
    page = (place / "runs/lm_held_out/report.html").read_text()
    assert "Continuations" in page and "Bits per byte" in page


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in TRAINED[1:] if "shards" not in line])
def test_a_training_command_of_the_documents_runs(line, place, monkeypatch):
    with inside(place, monkeypatch):
        run(line, "--steps", "2")
        assert os.path.exists(f"{shlex.split(line)[-1]}/evaluation.json")


@pytest.mark.slow
def test_pairs_of_any_source_train_a_language_model(place, monkeypatch):
    (line,) = [line for line in TRAINED if "shards" in line]
    with inside(place, monkeypatch):
        records.write("pairs", [{"image": b"", "captions": [sentence(i)]} for i in range(60)], 1)
        shards = re.sub(r"\S*shards/\S+", "'pairs-*.array_record'", line)
        run(shards, "--steps", "2", "--workdir", "runs/pairs")
