"""Records of results, written whole."""

import csv
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
        intervals={"acc1": (0.4, 0.6), "acc5": (math.nan, 1.0)},
        blind={"acc1": 0.2},
        note="Features before the projection.",
        made_of="1234",
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
        "intervals": {"acc1": [0.4, 0.6], "acc5": [None, 1.0]},
        "blind": {"acc1": 0.2},
        "note": "Features before the projection.",
        "made_of": "1234",
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


def test_a_csv_has_one_line_for_each_metric(tmp_path):
    beside = {"model": "m", "pretrained": "p", "step": 3, "weights": "raw"}
    one = records.record("a, b", "t", {"acc1": 0.5, "rsum": math.nan}, chance={"acc1": 0.1}, intervals={"acc1": (0.4, 0.6)}, **beside)
    records.write_csv(tmp_path / "c.csv", [one, {"dataset": "old", "task": "t", "metrics": {"acc1": 1.0}}])
    with (tmp_path / "c.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["dataset"], line["metric"], line["value"]) for line in lines] == [
        ("a, b", "acc1", "0.5"), ("a, b", "rsum", ""), ("old", "acc1", "1.0")
    ]  # fmt: skip
    assert [lines[0][name] for name in ("low", "high", "chance", "step")] == ["0.4", "0.6", "0.1", "3"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"dataset": "a"}]', "[[]]", "null"])
def test_another_file_holds_no_records(tmp_path, text):
    (tmp_path / "evaluation.json").write_text(text)
    assert records.read_evaluation_json(tmp_path / "evaluation.json") == []
    assert records.read_evaluation_json(tmp_path / "none.json") == []
