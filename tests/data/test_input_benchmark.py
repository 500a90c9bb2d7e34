"""The benchmark of the input pipeline measures what it says, on a handful of images."""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_way_has_a_row_with_rates_that_go_together(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("input_benchmark", ROOT / "benchmarks" / "input.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "POLLS", 1)
    monkeypatch.setattr(module, "PLACES", {"0 threads": (0, 0), "2 threads": (0, 2)})
    monkeypatch.setattr(sys, "argv", ["input.py", "--count", "8", "--rounds", "1", "--size", "32", "--out", str(tmp_path / "input.json")])
    assert module.main() == 0
    rows = json.loads((tmp_path / "input.json").read_text())
    decoders = {row["decoder"] for row in rows}
    assert {(row["container"], row["place"]) for row in rows} == {(c, p) for c in ("tar", "ArrayRecord") for p in module.PLACES}
    assert len(rows) == 4 * len(decoders)
    for row in rows:
        assert row["decode"] > 0 and row["pipeline"] < 1.5 * row["transform"] and 0 < row["of_ideal"] < 3
    assert capsys.readouterr().out.count("| ArrayRecord | pillow |") == 2
    monkeypatch.setattr(sys, "argv", ["input.py", "--rounds", "0"])
    assert module.main() == 2 and "rounds 0: must be at least 1" in capsys.readouterr().err
