"""Records of results, written whole."""

import json
import math

import pytest

from vlm_jax.evaluation import records


def test_a_record_has_the_fields_of_clip_benchmark_and_where_the_weights_come_from():
    made = records.record(
        "held_out",
        "zeroshot_classification",
        {"acc1": 0.5, "acc5": math.nan},
        model="demo",
        pretrained="/runs/demo",
        step=1000,
        weights="ema",
        chance={"acc1": 0.1},
    )
    assert made == {
        "dataset": "held_out",
        "model": "demo",
        "pretrained": "/runs/demo",
        "task": "zeroshot_classification",
        "metrics": {"acc1": 0.5, "acc5": None},
        "language": "en",
        "step": 1000,
        "weights": "ema",
        "chance": {"acc1": 0.1},
    }


def test_the_file_is_a_list_and_is_replaced_at_once(tmp_path, monkeypatch):
    path = tmp_path / "below" / "evaluation.json"
    records.write_evaluation_json(path, [{"dataset": "é"}])
    assert json.loads(path.read_text(encoding="utf-8")) == [{"dataset": "é"}]

    def fails(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="disk full"):
        records.write_evaluation_json(path, [])
    assert json.loads(path.read_text(encoding="utf-8")) == [{"dataset": "é"}]
    assert [file.name for file in path.parent.iterdir()] == ["evaluation.json"], "no part is left behind"
