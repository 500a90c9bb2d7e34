"""The shapes world as shards on disk."""

import concurrent.futures
import dataclasses
import importlib.util
import io
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from PIL import Image

from vlm_jax import errors
from vlm_jax.data import shapes, sources
from vlm_jax.data.shapes import dataset, examples

ROOT = Path(__file__).resolve().parents[2]
SMALL = shapes.World(
    one_object=80,
    two_objects=40,
    three_objects=20,
    four_objects=20,
    val=32,
    held_out=32,
    trained_pairs=48,
    relations=64,
    shards=2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return shapes.make(tmp_path_factory.mktemp("shapes") / "made", SMALL)


@pytest.fixture(scope="module")
def splits(folder) -> dict[str, list[dict]]:
    def read(split):
        source = sources.open_source(f"{folder}/{split}-*.array_record")
        return [source[index] for index in range(len(source))]

    return {split: read(split) for split in shapes.SPLITS}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_folder_holds_every_split_with_classes_tokenizer_and_manifest(folder, splits):
    assert {split: len(examples) for split, examples in splits.items()} == {
        split: SMALL.size(split) for split in shapes.SPLITS
    }
    assert len(list(folder.glob("train-*.array_record"))) == 2
    classes = json.loads((folder / "classes.json").read_text())
    assert classes["names"] == list(shapes.CLASSES) and classes["templates"][0] == "a {}"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["world"] == dataclasses.asdict(SMALL)
    assert manifest["held_out_pairs"] == [shapes.CLASSES[label] for label in shapes.HELD_OUT]
    assert [path.name for path in folder.parent.iterdir() if "unfinished" in path.name] == []


def test_counts_of_objects_are_those_of_the_configuration(splits):
    assert Counter(len(e["scene"]["objects"]) for e in splits["train"]) == {1: 80, 2: 40, 3: 20, 4: 20}
    assert Counter(len(e["scene"]["objects"]) for e in splits["val"]) == {1: 16, 2: 8, 3: 4, 4: 4}


def test_held_out_pairs_are_nowhere_but_in_their_split(splits):
    names = [shapes.CLASSES[label] for label in shapes.HELD_OUT]
    for split in ("train", "val", "trained_pairs", "relations"):
        for example in splits[split]:
            assert all(thing["label"] in shapes.TRAINED for thing in example["scene"]["objects"])
            texts = example["captions"] + [item["question"] for item in example["questions"]]
            assert not any(name in text for name in names for text in texts)
    assert Counter(e["label"] for e in splits["held_out"]) == dict.fromkeys(shapes.HELD_OUT, 2)
    assert Counter(e["label"] for e in splits["trained_pairs"]) == dict.fromkeys(shapes.TRAINED, 1)


def test_records_are_complete(splits):
    for split, made in splits.items():
        assert len({example["key"] for example in made}) == len(made)
        for example in made:
            scene = shapes.read_scene(example["scene"])
            drawn = shapes.render(scene)
            np.testing.assert_array_equal(pixels(example["image"]), drawn.image)
            masks = pixels(example["masks"])
            for k, thing in enumerate(example["scene"]["objects"]):
                np.testing.assert_array_equal(masks == k + 1, drawn.masks[k])
                assert thing["box"] == drawn.boxes[k].tolist()
                assert shapes.CLASSES[thing["label"]] == f"{thing['colour']} {thing['shape']}"
                assert thing["position"] == scene.position(k)
            assert len(example["captions"]) == (1 if split == "relations" else SMALL.captions)
            assert all(shapes.holds(shapes.parse(caption), scene) for caption in example["captions"])
            assert ("label" in example) == (len(scene.objects) == 1)


def test_a_relation_caption_is_true_of_its_own_scene_only(splits):
    scenes = [shapes.read_scene(example["scene"]) for example in splits["relations"]]
    for index, example in enumerate(splits["relations"]):
        (caption,) = example["captions"]
        assert [shapes.holds(shapes.parse(caption), scene) for scene in scenes] == [
            k == index for k in range(len(scenes))
        ]
    bags = Counter(" ".join(sorted(thing.name for thing in scene.objects)) for scene in scenes)
    assert set(bags.values()) == {4}


def test_the_largest_relations_split_still_has_no_scene_twice():
    pairs = examples._unordered_pairs(0)
    assert 4 * len(pairs) == examples._MAX_RELATIONS
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)


def test_the_tokenizer_knows_the_world(folder, splits):
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert tokenizer.vocab_size() == SMALL.vocabulary
    assert (tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id(), tokenizer.bos_id()) == (0, 1, 2, -1)
    texts = [caption for example in splits["train"] for caption in example["captions"]]
    texts += [item["question"] for example in splits["held_out"] for item in example["questions"]]
    texts += [template.format(name) for template in shapes.TEMPLATES for name in shapes.CLASSES]
    for text in texts:
        tokens = tokenizer.encode(text)
        assert 2 not in tokens and tokenizer.decode(tokens) == text
    for word in (*shapes.COLOURS, *shapes.SHAPES, "left", "right", "above", "below"):
        assert len(tokenizer.encode(word)) == 1, word
    pairs = [c for e in splits["train"] if len(e["scene"]["objects"]) <= 2 for c in e["captions"]]
    assert max(len(tokenizer.encode(caption)) for caption in pairs) < 24


def test_the_bytes_depend_on_the_seed_and_not_on_the_processes(folder, tmp_path):
    other = shapes.make(tmp_path / "other", SMALL, workers=1)
    files = sorted(path.name for path in folder.iterdir())
    assert files == sorted(path.name for path in other.iterdir())
    assert all((folder / name).read_bytes() == (other / name).read_bytes() for name in files)
    assert shapes.example(SMALL, "train", 0) != shapes.example(dataclasses.replace(SMALL, seed=1), "train", 0)


def test_ensure_makes_a_set_once_however_many_ask(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_JAX_CACHE", str(tmp_path))
    tiny = dataclasses.replace(SMALL, one_object=8, two_objects=0, three_objects=0, four_objects=0, relations=0, val=0)
    calls = []
    write = dataset._write
    monkeypatch.setattr(dataset, "_write", lambda *arguments: (calls.append(1), write(*arguments)))
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        folders = list(threads.map(lambda _: shapes.ensure(None, tiny), range(4)))
    assert set(folders) == {shapes.cache_folder(tiny)} and folders[0].parent == tmp_path
    assert len(calls) == 1
    assert shapes.ensure(None, tiny) == folders[0] and len(calls) == 1
    assert not list(folders[0].glob("val-*"))
    with pytest.raises(errors.InputError, match="other settings"):
        shapes.ensure(folders[0], dataclasses.replace(tiny, seed=9))
    assert shapes.cache_folder(dataclasses.replace(tiny, seed=9)) != folders[0]


def test_a_run_that_fails_leaves_no_folder_and_the_next_one_clears_up(tmp_path, monkeypatch):
    tiny = dataclasses.replace(SMALL, one_object=8, two_objects=0, three_objects=0, four_objects=0, relations=0, val=0)
    (tmp_path / ".made.unfinished-1").mkdir()

    def fail(config):
        raise RuntimeError("no tokenizer today")

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "_tokenizer", fail)
        with pytest.raises(RuntimeError):
            shapes.make(tmp_path / "made", tiny)
    assert [path.name for path in tmp_path.iterdir()] == [".made.lock"]
    assert shapes.make(tmp_path / "made", tiny).is_dir()
    with pytest.raises(errors.InputError, match="is there already"):
        shapes.make(tmp_path / "made", tiny)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 8),
        ("image_size", 4096),
        ("seed", -1),
        ("two_objects", -1),
        ("val", -1),
        ("held_out", 10),
        ("trained_pairs", 47),
        ("relations", 6),
        ("relations", 4516),
        ("captions", 0),
        ("captions", 9),
        ("detail", 1.5),
        ("vocabulary", 30),
        ("shards", 0),
    ],
)
def test_values_that_make_no_set_are_refused_by_name(field, value):
    with pytest.raises(errors.InputError, match=rf"^{field} {value}: "):
        shapes.World(**{field: value})


def test_a_set_without_training_scenes_is_refused():
    with pytest.raises(errors.InputError, match="nothing to train on"):
        shapes.World(one_object=0, two_objects=0)


@pytest.fixture
def tool(monkeypatch, capsys):
    """Runs data/make_shapes.py in this process: exit code, standard output, standard error."""
    spec = importlib.util.spec_from_file_location("make_shapes", ROOT / "data" / "make_shapes.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_shapes", module)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["make_shapes.py", *map(str, arguments)])
        try:
            code = module.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def test_the_tool_writes_a_set_and_says_where_it_is(tool, tmp_path):
    counts = "--one-object 32 --two-objects 0 --val 0 --held-out 16 --trained-pairs 0 --relations 0 --shards 1"
    code, out, _ = tool("--out", tmp_path / "made", *counts.split())
    assert code == 0
    assert str(tmp_path / "made") in out and "a second" in out
    assert len(sources.open_source(f"{tmp_path}/made/held_out-*.array_record")) == 16


def test_the_tool_draws_the_contact_sheet(tool, tmp_path):
    code, _, _ = tool("--contact-sheet", tmp_path / "sheet.png")
    assert code == 0
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert sheet.width > 1000 and sheet.height > 2000
    tile = sheet.crop((72, 62, 72 + 128, 62 + 128))
    assert len(tile.getcolors(1 << 14)) > 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "out"),
        (("--out", "{file}/below"), "cannot be written"),
        (("--out", "{file}"), "is there already"),
        (("--out", "{new}", "--image-size", "3"), "image_size 3"),
        (("--out", "{new}", "--workers", "-1"), "workers -1"),
        (("--contact-sheet", "{file}/below.png"), "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tool, tmp_path, arguments, said):
    (tmp_path / "file").write_text("x")
    code, _, err = tool(*(a.format(file=tmp_path / "file", new=tmp_path / "new") for a in arguments))
    assert code == errors.BAD_INPUT
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_tool_names_every_field_in_its_help(tool):
    code, out, _ = tool("--help")
    assert code == 0
    for field in dataclasses.fields(shapes.World):
        assert f"--{field.name.replace('_', '-')}" in out
