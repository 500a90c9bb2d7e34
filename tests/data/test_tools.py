"""The tools in data/: what they print, write and refuse. Each is run as its command line says."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from PIL import Image

from vlm_jax import config as configs
from vlm_jax.data import contact_sheet, images, inspection, pipeline, records, sources, statistics, text

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(monkeypatch, capsys):
    """(tool, arguments) -> exit code, what it printed, what it complained of."""

    def run(tool, *arguments):
        spec = importlib.util.spec_from_file_location(f"tool_{tool}", ROOT / "data" / f"{tool}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"{tool}.py", *map(str, arguments)])
        code = module.main()
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.mark.parametrize("tool", ["to_array_record", "train_tokenizer", "inspect_data"])
def test_help_names_every_field_and_wrong_values_are_one_line(tool, run, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        run(tool, "--help")
    assert stopped.value.code == 0
    flags = {"to_array_record": "--dedup", "train_tokenizer": "--coverage", "inspect_data": "--recipe"}
    assert flags[tool] in capsys.readouterr().out
    arguments = [tmp_path / "nothing.tar"] + ([] if tool == "inspect_data" else [tmp_path / "x.model"])
    code, _, err = run(tool, *arguments)
    assert code == 2
    assert err.splitlines()[-1].startswith(f"{tool}: source {tmp_path / 'nothing.tar'}: does not exist")


class TestToArrayRecord:
    def test_tars_become_shards_with_a_page_that_shows_them(self, pair_tars, tmp_path, run):
        code, out, _ = run("to_array_record", pair_tars, tmp_path / "out", "--shards", "3", "--shortest", "16")
        assert code == 0
        source = sources.open_source(str(tmp_path / "out-*.array_record"))
        assert len(source) == 37 and source[0]["captions"][0] == "a red thing 0 here" and source[5]["group"] == 2
        assert images.decode(source[0]["image"]).shape == (16, 19, 3)
        assert "captions    3 an image, 111 in all" in out and "height      16 pixels" in out
        page = (tmp_path / "out.html").read_text()
        assert page.count("<img") == 24 and "a red thing 0 here" in page and "<script" not in page
        assert "http" not in re.sub(r"http-equiv", "", page), "no network"

    def test_words_of_the_data_do_not_become_part_of_the_page(self, encode_image, noise, tmp_path, run):
        hostile = "<script>alert(1)</script>"
        example = {"key": "k", "image": encode_image(noise(0, 8, 8)), "captions": [hostile], hostile: 1}
        records.write(str(tmp_path / "from"), [example, {"key": hostile, "captions": []}], 1)
        assert run("to_array_record", tmp_path / "from-*.array_record", tmp_path / "out")[0] == 0
        page = (tmp_path / "out.html").read_text()
        assert "<script" not in page and page.count("&lt;script&gt;alert(1)") >= 2 and "has no image" in page


class TestTrainTokenizer:
    def test_captions_become_a_vocabulary_with_our_ids(self, pair_tars, tmp_path, run):
        code, out, _ = run("train_tokenizer", pair_tars, tmp_path / "c.model", "--size", "60")
        assert code == 0
        loaded = text.Tokenizer(str(tmp_path / "c.model")).load()
        assert (loaded.pad_id, loaded.eos_id, loaded.bos_id) == (0, 1, None) and loaded.vocab_size <= 60
        assert loaded.decode(loaded.row("a red thing 3 here").tolist()) == "a red thing 3 here"
        assert "pad 0, end 1, unknown 2" in out and "unknown     0.000% of the tokens" in out and " | " in out

    def test_text_files_are_read_by_line_and_rare_characters_become_bytes(self, tmp_path, run):
        (tmp_path / "a.txt").write_text("the cat sat\n\nthe dog sat\n" * 20 + "naïve\n")
        (tmp_path / "b.txt").write_text("THE BIRD_sat!\n" * 20)
        arguments = [f"{tmp_path}/a.txt::{tmp_path}/b.txt", tmp_path / "t.model", "--size", "290", "--clean", "canonical"]
        assert run("train_tokenizer", *arguments, "--rare", "bytes", "--coverage", "0.99")[0] == 0
        model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t.model"))
        assert model.encode("ï", out_type=str)[-2:] == ["<0xC3>", "<0xAF>"]
        assert model.unk_id() not in model.encode("the bird sat 猫 !") and model.is_byte(3)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (["t.txt"], "ends in .model"),
            (["--coverage", "0"], "coverage 0.0"),
            (["--size", "3"], "size 3: must be at least 4"),
            (["--size", "4"], "vocabulary of 4 pieces"),
        ],
    )
    def test_what_cannot_work_is_refused(self, change, words, tmp_path, run):
        (tmp_path / "a.txt").write_text("some words\n")
        target = change.pop(0) if not change[0].startswith("-") else "t.model"
        code, _, err = run("train_tokenizer", tmp_path / "a.txt", tmp_path / target, *change)
        assert code == 2 and words in err and not (tmp_path / "t.model").exists()


class TestInspectData:
    def test_a_source_is_told_in_numbers_and_in_a_picture(self, pair_tars, piece_model, tmp_path, run):
        code, out, _ = run("inspect_data", pair_tars, "--picture", tmp_path / "p.png", "--samples", "7", "--tokenizer", piece_model)
        assert code == 0
        for line in ("examples    37", "JPEG 37", "width       24 pixels", "captions    3 an image, 111 in all", "words       5 a caption",
                     "bad         none of 37 looked at", "records/s", "images/s on one core"):  # fmt: skip
            assert line in out
        assert re.search(r"tokens      \d+ to \d+, half of them at most \d+ a caption", out)
        assert {"captions list of str", "group int", "image bytes", "key str"} <= set(re.search("fields +(.*)", out)[1].split(", "))
        with Image.open(tmp_path / "p.png") as picture:
            assert picture.width == 12 + 6 * 172 and 2 * 172 < picture.height < 600

    def test_bad_records_are_counted_by_reason(self, encode_image, noise, tmp_path, run):
        whole = encode_image(noise(0, 30, 30))
        examples = [{"key": str(i), "image": whole[: len(whole) - 40 * (i % 2)], "captions": ["a\x1b[31m"]} for i in range(6)]
        records.write(str(tmp_path / "d"), examples, 1)
        code, out, _ = run("inspect_data", tmp_path / "d-*.array_record", "--limit", "0")
        assert code == 0 and "examples    3" in out
        assert re.search(r"bad +3: image of N bytes cannot be decoded: .*, such as \S+d-00000-of-00001.array_record: record 1", out)

    def test_the_records_of_a_batch_are_those_that_training_takes(self, pair_tars, piece_model, tmp_path, run):
        recipe = tmp_path / "mine.py"
        recipe.write_text(
            "import dataclasses\nfrom vlm_jax import config as configs\nfrom vlm_jax.data import images, pipeline, text\n"
            f"demo, _ = configs.load_recipe({str(ROOT / 'configs' / 'demo.py')!r})\n"
            f"data = pipeline.Pairs({pair_tars!r}, {pair_tars!r}, text.Tokenizer({piece_model!r}, 16), images.Transform(16))\n"
            "def config(): return dataclasses.replace(demo, data=data, batch_size=5, seed=3)\n"
        )
        code, out, _ = run("inspect_data", "--recipe", recipe, "--batch", "9")
        assert code == 0 and "global batch 9" in out and "which step 10 trains on" in out
        config, _ = configs.load_recipe(str(recipe))
        iterator = pipeline.train_iterator(config.streams, batch_size=5, seed=3)
        batch = [next(iterator) for _ in range(10)][9]["pairs"]
        iterator.close()
        source = sources.open_source(pair_tars)
        rows = [line.split("  ") for line in out.splitlines()[1:]]
        assert [int(row[2]) for row in rows] == batch["example"].tolist()
        assert [row[3] for row in rows] == [source[i]["key"] for i in batch["example"].tolist()]
        loaded = text.Tokenizer(piece_model, 16).load()
        assert [row[5] for row in rows] == [loaded.decode(tokens.tolist()) for tokens in batch["tokens"]]
        (tmp_path / "run").mkdir()
        configs.save(tmp_path / "run" / "config.json", config)
        assert run("inspect_data", "--recipe", tmp_path / "run", "--batch", "9")[1].splitlines()[1:] == out.splitlines()[1:]

    def test_a_source_and_a_recipe_are_not_both_given(self, run):
        assert "not both" in run("inspect_data")[2]
        assert "not both" in run("inspect_data", "a.tar", "--recipe", "b.py")[2]
        assert "batch -1: the first one is 0" in run("inspect_data", "--recipe", ROOT / "configs" / "demo.py", "--batch=-1")[2]


def test_samples_are_spread_over_the_source(pair_tars):
    source = sources.open_source(pair_tars)
    found = inspection.survey(source, limit=10, samples=3)
    assert found.records == found.statistics.examples == 10
    assert [own[0] for own in found.captions] == [source[i]["captions"][0] for i in (0, 11, 22)]


def test_a_contact_sheet_holds_images_of_any_shape_and_texts_of_any_length(noise):
    shapes = [(4, 400), (300, 2), (20, 20)]
    sheet = contact_sheet.draw([noise(0, *shape) for shape in shapes], [["word " * 90], [], ["猫\x1b"]])
    assert sheet.width == 12 + 3 * 172
    assert np.asarray(sheet).min() < 60, "text is drawn"


def test_statistics_add_up_and_return_from_json(pair_tars):
    source = sources.open_source(pair_tars)
    whole, parts = statistics.Statistics(), statistics.Statistics()
    for i in range(20):
        whole.add(source[i], 24, 20 + i % 2)
    for start in (0, 8):
        part = statistics.Statistics()
        for i in range(start, (8, 20)[start > 0]):
            part.add(source[i], 24, 20 + i % 2)
        parts.update(statistics.Statistics.from_json(json.loads(json.dumps(part.to_json()))))
    assert parts == whole
    assert statistics.sides(whole.sizes) == {"width": {24: 20}, "height": {20: 10, 21: 10}}
    assert [statistics.quantile({1: 1, 5: 8, 9: 1}, share) for share in (0.0, 0.5, 0.9, 1.0)] == [1, 5, 5, 9]
