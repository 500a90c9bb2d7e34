"""Captions from a run: in its report, and in three lines for a user. Slow: a run is trained."""

import json
from pathlib import Path

import pytest

from vlm_jax import inference, train
from vlm_jax.data import sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import captioning
from vlm_jax.models import generation

RECIPE = str(Path(__file__).parent / "tiny_captioner_recipe.py")


@pytest.mark.slow
def test_a_run_shows_its_captions_and_a_user_gets_the_same(tiny_world, tmp_path):
    workdir = tmp_path / "run"
    data = [
        *("--data.train", f"{tiny_world}/train-*.array_record", "--data.val", f"{tiny_world}/val-*.array_record"),
        *("--data.tokenizer.path", f"{tiny_world}/tokenizer.model", "--workdir", str(workdir)),
    ]
    assert train.main([RECIPE, *data]) == 0
    (record,) = json.loads((workdir / "evaluation.json").read_text())
    assert record["task"] == "captioning"
    assert record["metrics"].keys() >= {"bleu_1", "bleu_4", "rouge_l", "cider_d", "objects_accuracy", "grammatical_share"}
    report = (workdir / "report.html").read_text()
    assert all(words in report for words in ("BLEU-4", "CIDEr-D", "Captions right in shape and colour", "Wrong captions", "data:image"))

    model = inference.load(workdir)
    source = sources.open_source(f"{tiny_world}/val-*.array_record")
    captions = model.caption([source[i]["image"] for i in range(5)])
    assert captions == captioning.write(model.subject, source, 5, generation.Decoding())
    assert model.caption([]) == []
    begun = model.caption([source[0]["image"]], prompt="a red", decoding=generation.Decoding(strategy="beam", max_new_tokens=4))
    assert begun[0].startswith("a red")
    with pytest.raises(InputError, match="give a list"):
        model.caption("photo.jpg")
    with pytest.raises(InputError, match=r"picture nothing\.jpg"):
        model.caption(["nothing.jpg"])
