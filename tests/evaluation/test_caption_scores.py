"""Scores of captions from their strings, exact on COCO, and the command that prints them."""

import gzip
import json
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from vlm_jax.errors import InputError
from vlm_jax.evaluation import caption_metrics, caption_scores, ptb

REFERENCES = {
    "1": ["A man rides a wave on a surfboard.", "Man surfing on a wave"],
    "2": ["A cat sits on a wooden table.", "A black cat, on the table."],
    "3": ["Two dogs play with a red ball.", "Dogs in the grass"],
}
CANDIDATES = {"1": "a man rides a wave on a board", "2": "A cat on a table.", "3": "two dogs play with a ball"}


@pytest.mark.parametrize("kind", [pytest.param("fakecap", marks=pytest.mark.slow), "mixed_human"])
def test_every_number_equals_that_of_pycocoevalcap_on_coco(shared_data, kind):
    folder = shared_data / "coco_captions_val2017"

    def read(name):
        return json.loads(gzip.decompress((folder / f"{name}.json.gz").read_bytes()))

    told, each = json.loads((folder / "oracle_scores.json").read_text())[kind]["scores"], read(f"per_image_{kind}")
    candidates = caption_scores.read_candidates(str(folder / f"predictions_{kind}.json.gz"))
    references = caption_scores.read_references(str(folder / "references.json.gz"))
    ids = caption_scores.select(candidates, references, "candidates")
    assert ids == list(map(str, each["ids"]))
    start = time.process_time()
    found = caption_scores.score([candidates[key] for key in ids], [references[key] for key in ids])
    assert time.process_time() - start < 30, "4 seconds; with room for a slow machine"
    for name, title in caption_scores.METRICS.items():
        theirs = {"CIDEr-D": "CIDEr", "ROUGE-L": "ROUGE_L"}.get(title, title.replace("BLEU-", "Bleu_"))
        assert found.values[name] == pytest.approx(told[theirs], abs=1e-12)
        np.testing.assert_allclose(found.images[name], each[theirs], atol=1e-6, rtol=0, err_msg=name)
        low, high = found.intervals[name]
        assert low <= found.values[name] <= high and high - low < 0.1
    if kind == "mixed_human":
        spread = 1.96 * found.images["cider_d"].std() / len(ids) ** 0.5
        assert np.ptp(found.intervals["cider_d"]) == pytest.approx(2 * spread, rel=0.1)


def test_intervals_of_bleu_are_those_of_drawing_images():
    rng = np.random.default_rng(0)
    words = np.array("a dog runs on the grass with two cats".split())
    references = [[" ".join(rng.choice(words, 8)) for _ in range(3)] for _ in range(40)]
    candidates = [own[0] if i % 2 else " ".join(rng.choice(words, 8)) for i, own in enumerate(references)]
    found = caption_scores.score(candidates, references)
    counts = caption_metrics.bleu_counts(ptb.tokenize(candidates), [ptb.tokenize(own) for own in references])
    drawn = [caption_metrics.bleu(counts[rng.integers(0, 40, 40)].sum(0)) for _ in range(2000)]
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    for i, name in enumerate(caption_scores.BLEU):
        assert found.intervals[name] == pytest.approx((low[i], high[i]), abs=0.15 * (high[i] - low[i]))


def test_where_nothing_matches_shares_have_the_binomial_bound_and_cider_d_a_point():
    found = caption_scores.score(["x", "y", "z"], list(REFERENCES.values()))
    assert max(found.values.values()) < 1e-6
    assert found.intervals["rouge_l"] == (0, pytest.approx(1 - 0.025 ** (1 / 3)))
    assert found.intervals["cider_d"] == (0, 0)


def test_frequencies_of_a_corpus_change_cider_d_alone():
    candidates, references = list(CANDIDATES.values()), list(REFERENCES.values())
    corpus = caption_metrics.DocumentFrequencies.of([ptb.tokenize(own) for own in [*references, ["Dogs and a cat"], ["A man"]]])
    own, other = caption_scores.score(candidates, references), caption_scores.score(candidates, references, corpus)
    assert {name for name in own.values if own.values[name] != other.values[name]} == {"cider_d"}


@pytest.mark.parametrize(("candidates", "references"), [([], []), (["a"], []), (["a"], [[]]), (["a"], ["a dog"])])
def test_one_list_of_references_is_wanted_for_each_candidate(candidates, references):
    with pytest.raises(InputError, match="references"):
        caption_scores.score(candidates, references)


@pytest.fixture
def files(tmp_path):
    """Writes a file of each and returns the arguments that name them."""

    def write(candidates=None, references=None):
        if candidates is None:
            candidates = [{"image_id": int(key), "caption": caption} for key, caption in CANDIDATES.items()]
        contents = candidates, REFERENCES if references is None else references
        paths = [tmp_path / "candidates.json", tmp_path / "references.json"]
        for path, content in zip(paths, contents, strict=True):
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return list(map(str, paths))

    return write


def test_the_command_prints_a_table_and_writes_the_numbers(files, tmp_path, capsys):
    out = tmp_path / "scores.json"
    assert caption_scores.main([*files(), "--out", str(out)]) == 0
    found = caption_scores.score(list(CANDIDATES.values()), list(REFERENCES.values()))
    printed = capsys.readouterr().out
    assert "3 images, 6 references; all values times 100" in printed
    for name, title in caption_scores.METRICS.items():
        line = next(line for line in printed.splitlines() if line.startswith(title))
        low, high = found.intervals[name]
        assert line.split(maxsplit=2)[1:] == [f"{100 * found.values[name]:.2f}", f"[{100 * low:.2f}, {100 * high:.2f}]"]
    written = json.loads(out.read_text())
    assert written["metrics"] == found.values
    assert [entry["image_id"] for entry in written["images"]] == list(REFERENCES)
    assert [entry["cider_d"] for entry in written["images"]] == found.images["cider_d"].tolist()


def test_annotations_of_coco_are_read_in_the_order_of_their_images(files):
    annotations = [{"image_id": int(key), "caption": text} for key in ("2", "1", "3") for text in REFERENCES[key]]
    coco = {"images": [{"id": 3}, {"id": 1}, {"id": 2}], "annotations": annotations}
    _, path = files(references=coco)
    assert list(caption_scores.read_references(path).items()) == [(key, REFERENCES[key]) for key in ("3", "1", "2")]


def test_packed_files_are_read(files, tmp_path):
    _, path = files()
    packed = tmp_path / "references.json.gz"
    packed.write_bytes(gzip.compress(open(path, "rb").read()))
    assert caption_scores.read_references(str(packed)) == REFERENCES


def test_only_images_with_a_candidate_are_taken_where_that_is_asked_for(files, capsys):
    paths = files(candidates=[{"image_id": "3", "caption": "dogs"}, {"image_id": "1", "caption": "a man"}])
    assert caption_scores.main([*paths, "--images", "candidates"]) == 0
    assert "2 images, 4 references" in capsys.readouterr().out


def test_a_caption_without_words_counts_as_0_where_that_is_asked_for(files, capsys, tmp_path):
    candidates = [{"image_id": int(key), "caption": " ." if key == "2" else text} for key, text in CANDIDATES.items()]
    out = tmp_path / "scores.json"
    assert caption_scores.main([*files(candidates=candidates), "--empty", "zero", "--out", str(out)]) == 0
    assert "image 2 without words count as 0" in capsys.readouterr().out
    of_two = json.loads(out.read_text())["images"][1]
    assert max(of_two[name] for name in caption_scores.METRICS) < 1e-6


CAPTION = {"image_id": 1, "caption": "a man"}
LIST = "not a list of"


@pytest.mark.parametrize(
    ("candidates", "words"),
    [
        ("{", "is not JSON"),
        ({}, LIST),
        ([{"image_id": 1}], LIST),
        ([{"image_id": 1, "caption": None}], LIST),
        ([{"image_id": True, "caption": "a"}], LIST),
        ([], "3 images (1, 2, 3) have none; caption them, or evaluate the others alone with --images candidates"),
        ([CAPTION, CAPTION], "image 1 occur more than once"),
        ([CAPTION, {"image_id": 9, "caption": "a"}], "image 9 have no references"),
        ([CAPTION], "2 images (2, 3) have none"),
        ([CAPTION, {"image_id": "\x1b[2J", "caption": "a"}], r"image '\x1b[2J' have no references"),
        ([{"image_id": k, "caption": "a" if k > 1 else "..."} for k in (1, 2, 3)], "the captions of image 1 have no words"),
    ],
)
def test_what_is_wrong_with_candidates_is_said(files, candidates, words):
    with pytest.raises(InputError) as error:
        caption_scores.main(files(candidates=candidates))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("references", "words"),
    [
        ("", "is not JSON"),
        ([], "neither COCO's annotations"),
        ({"1": "a man"}, "neither COCO's annotations"),
        ({"annotations": [{"image_id": 1, "bbox": []}]}, "not of boxes"),
        ({}, "no images have no caption with words"),
        ({**REFERENCES, "2": []}, "image 2 have no caption with words"),
        ({**REFERENCES, "2": ["", "."]}, "image 2 have no caption with words"),
    ],
)
def test_what_is_wrong_with_references_is_said(files, references, words):
    with pytest.raises(InputError) as error:
        caption_scores.main(files(references=references))
    assert words in str(error.value)


def test_the_command_ends_with_one_line_and_2_and_loads_no_jax(files):
    candidates, references = files()
    code = "import sys; from vlm_jax.evaluation import caption_scores; assert 'jax' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    command = [sys.executable, "-m", "vlm_jax.evaluation.caption_scores", f"{candidates}.gz", references]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith("error: candidates ") and ended.stderr.count("\n") == 1


def test_the_examples_of_the_documents_run_and_give_what_they_say():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    captions, answers = (code for code in re.findall("```python\n(.*?)```", text, re.DOTALL) if code.startswith("from vlm_jax"))
    names: dict = {}
    exec(captions, names)
    assert len(names["rewards"]) == 2 and (names["rewards"] > 0).all()
    assert set(names["scores"].values) == set(caption_scores.METRICS)
    told = re.findall("(vqa_accuracy.accuracies.*)  # (.*)", answers)
    exec(answers, names)
    assert len(told) == 2
    for call, result in told:
        assert eval(call, names).tolist() == pytest.approx(eval(result))
