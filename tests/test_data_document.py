"""The training commands of docs/data.md, run: each with a few records under the very names that it gives, for two steps."""

import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_documents
from etils import epath
from PIL import Image

from vlm_jax import evaluate, train
from vlm_jax.data import sources

ROOT = Path(__file__).resolve().parents[1]
SHORT = "--steps 2 --batch-size 8 --eval-every 0 --save-every 2".split()
SMALL = [f"--system.{tower}.{flag}" for tower in ("image", "text") for flag in ("depth=1", "width=48", "mlp-dim=48")]
WORDS = "a red boat beside two dogs while birds fly over green fields near old stone houses".split()
COMMANDS = test_documents.commands((ROOT / "docs" / "data.md").read_text())
BLOCKS = [block for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.S) if "train_iterator" in block]
TRAINED = [line for line in COMMANDS if "vlm_jax.train configs/clip_" in line]
TOOLS = sorted((line for line in COMMANDS if line.startswith("python data/")), key=lambda line: "train_tokenizer" not in line)
"""Scripts, those first that write the vocabulary that others name."""


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (72, 80, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def caption(number: int) -> str:
    return " ".join(np.random.default_rng(number).permutation(WORDS)[:6].tolist())


def write_tars(folder: Path, names: list[str], each: int, told: bool) -> None:
    folder.mkdir(exist_ok=True)
    for shard, name in enumerate(names):
        with tarfile.open(folder / name, "w") as tar:
            for i in range(shard * each, (shard + 1) * each):
                text = {"caption": caption(i), "status": "success", "key": f"{i:09d}"}
                members = {"jpg": picture(i), "txt": caption(i).encode()} | ({"json": json.dumps(text).encode()} if told else {})
                for kind, data in members.items():
                    info = tarfile.TarInfo(f"{i:09d}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def write_pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i}.jpg").write_bytes(picture(i))
    return [f"{i}.jpg" for i in range(count)]


def write_tfds(folder: Path) -> None:
    import tensorflow_datasets as tfds

    class CocoCaptions(tfds.core.GeneratorBasedBuilder):
        pkg_dir_path = epath.Path(folder)
        VERSION = tfds.core.Version("1.1.0")

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
            captions = tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()})
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"image": image, "captions": captions}))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(8), "val": self._generate_examples(4)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"image": io.BytesIO(picture(i)), "captions": [{"id": i, "text": caption(i)}]}

    CocoCaptions(data_dir=str(folder), file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with all the data that the commands name."""
    root = tmp_path_factory.mktemp("data_document")
    write_tars(root / "shards", [f"train-{i:05d}.tar" for i in range(42)], 1, told=False)
    write_tars(root / "shards", ["val-00000.tar"], 4, told=False)
    write_tars(root / "laion", ["00000.tar", "00001.tar"], 4, told=True)
    (root / "laion" / "00000.parquet").write_bytes(b"beside")
    (root / "laion" / "00000_stats.json").write_text("{}")
    for folder, count in (("photos", 8), ("photos_val", 4)):
        rows = [f"{name},{caption(i)}" for i, name in enumerate(write_pictures(root / folder, count))]
        (root / folder / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    (root / "pairs.csv").write_text("\n".join(["filepath\ttitle", *(f"photos/{i}.jpg\t{caption(i)}" for i in range(8))]))
    (root / "val.jsonl").write_text("\n".join(json.dumps({"image": f"photos_val/{i}.jpg", "alt": caption(i)}) for i in range(4)))
    (root / "data").mkdir()
    for shard in range(2):
        numbers = range(4 * shard, 4 * shard + 4)
        table = pa.table({"image": [{"bytes": picture(i), "path": f"{i}.jpg"} for i in numbers], "alt_text": [caption(i) for i in numbers]})
        pq.write_table(table, root / "data" / f"train-{shard:05d}-of-00002.parquet")
    (root / "saved" / "train").mkdir(parents=True)
    table = table.rename_columns(["image", "text"])
    with pa.ipc.new_stream(str(root / "saved" / "train" / "data.arrow"), table.schema) as stream:
        stream.write_table(table)
    (root / "saved" / "train" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (root / "annotations").mkdir()
    for split, count in (("train2017", 8), ("val2017", 4)):
        names = write_pictures(root / split, count)
        told = [{"id": i, "file_name": name, "width": 80, "height": 72} for i, name in enumerate(names)]
        captions = [{"image_id": i, "caption": caption(i)} for i in range(count)]
        (root / "annotations" / f"captions_{split}.json").write_text(json.dumps({"images": told, "annotations": captions}))
    (root / "tfds").mkdir()
    write_tfds(root / "tfds")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("line", TRAINED)
def test_a_command_runs_on_data_of_the_names_that_it_gives(line, place, monkeypatch):
    """And so do the evaluations of the run that it makes."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("VLM_JAX_CACHE", str(place / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(place / "tfds"))
    _, _, _, recipe, *flags = shlex.split(line)
    workdir = flags[flags.index("--workdir") + 1]
    assert train.main([str(ROOT / recipe), *flags, *SHORT, *SMALL]) == 0
    losses = [row["loss"] for row in map(json.loads, (place / workdir / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
    assert losses and all(np.isfinite(losses))
    for command in COMMANDS:
        if f"--checkpoint {workdir} " in command:
            _, _, _, *flags = shlex.split(command)
            assert evaluate.main(flags) == 0
            assert (place / flags[flags.index("--out") + 1]).is_dir()


@pytest.mark.slow
def test_the_tools_do_what_their_commands_say(place, monkeypatch):
    """With vocabularies as small as the texts here allow."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("VLM_JAX_CACHE", str(place / "cache"))
    (place / "book.txt").write_text("\n".join(caption(i) for i in range(40)))
    for line in TOOLS:
        _, script, *arguments = shlex.split(line.replace("configs/", f"{ROOT}/configs/"))
        small = ["--size", "290" if "bytes" in arguments else "60"] if "--size" in arguments else []
        done = subprocess.run([sys.executable, ROOT / script, *arguments, *small], capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert (place / "samples.png").stat().st_size and (place / "words.model").is_file()
    for target, count in (("photos", 8), ("train", 42)):
        assert len(sources.open_source(f"packed/{target}-*.array_record")) == count
        assert (place / "packed" / f"{target}.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_the_streams_that_the_document_writes_down_give_batches(block, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("VLM_JAX_CACHE", str(place / "cache"))
    (place / "pages" / "images").mkdir(parents=True, exist_ok=True)
    write_pictures(place / "pages" / "images", 8)
    lines = []
    for i in range(40):
        text, image = " ".join(caption(i + j) for j in range(40)), f"images/{i % 8}.jpg"
        lines.append(json.dumps({"items": [{"text": text}, {"image": image}, {"text": caption(i)}]}))
    (place / "pages" / "docs.jsonl").write_text("\n".join(lines))
    found: dict = {}
    exec(block.replace("captions:2000", "captions:60"), found)
    iterator = found["batches"]
    (fields,) = next(iterator).values()
    assert {len(values) for values in fields.values()} == {8}
    iterator.close()


def test_the_document_leads_from_a_folder_from_tars_and_from_a_name_to_training():
    words = [shlex.split(line) for line in TRAINED]
    given = {line[line.index("--data.train") + 1].partition("#")[0] for line in words if "--data.train" in line}
    assert {"photos", "laion", "shards/train-{00000..00041}.tar", "tfds:coco_captions/train", "pairs.csv", "data/train-*.parquet"} <= given
    assert any("--checkpoint runs/photos " in line for line in COMMANDS)
