"""Pretrained weights in and out: `python -m vlm_jax.convert SOURCE TARGET --to vlm_jax|hf|open_clip`.

SOURCE is a run or checkpoint of ours, or a directory or file of Hugging Face transformers, open_clip or big_vision.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlm_jax import config as configs
from vlm_jax import files as whole
from vlm_jax.data import images, pipeline
from vlm_jax.data import text as tokenizers
from vlm_jax.errors import DONE, InputError
from vlm_jax.evaluation import retrieval
from vlm_jax.models import resnet, text, vit
from vlm_jax.models.convert import card, files, hugging_face, layout, open_clip, pretrained, vocabularies
from vlm_jax.systems import clip, siglip, two_tower
from vlm_jax.training import checkpoint, sharding, tree
from vlm_jax.training import state as states

_WEIGHTS = {"hf": "model.safetensors", "open_clip": "open_clip_model.safetensors"}
WRITERS: Mapping[str, Any] = {"hf": hugging_face.write, "open_clip": open_clip.write}
_USAGE = {
    "hf": "from transformers import AutoModel, AutoProcessor\n\nmodel = AutoModel.from_pretrained(folder)",
    "open_clip": "import open_clip\n\nmodel, preprocess = open_clip.create_model_from_pretrained('local-dir:' + folder)",
}
_LIBRARIES = {"hf": "transformers", "open_clip": "open_clip"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A model with everything that belongs to it, whatever it came from."""

    config: configs.Config
    """A run of it; of foreign weights one that was never trained."""
    variables: dict[str, Any]
    """All parameters and buffers, nested."""
    step: int
    notes: tuple[str, ...]
    """What was decided where files leave a choice."""
    vocabulary: vocabularies.Vocabulary | None
    """Of foreign weights; ours is in `config`."""
    results: tuple[Mapping[str, Any], ...] = ()
    """Records of evaluation.json."""


def load(
    path: str, *, allow: Sequence[str] = (), image_size: int | None = None, tokenizer: str = "", weights: str = "auto"
) -> Source:
    """Reads a model from a run of ours or from the files of another codebase.

    Args:
      allow: regular expressions of whole names of theirs that may be unknown, missing (they stay as initialised) or narrowed.
      image_size: in pixels, for foreign weights that do not tell.
      tokenizer: a vocabulary file in place of the one that lies beside the weights.
      weights: trained weights of ours or their average: "auto", "ema", "raw".

    Raises:
      InputError: there is no model, or its files contradict each other.
    """
    if _is_ours(Path(path)):
        return _load_run(path, tokenizer, weights)
    return _load_foreign(path, allow, image_size, tokenizer)


def _is_ours(path: Path) -> bool:
    try:
        workdir, _ = checkpoint.locate(path)
        return "_type" in json.loads((workdir / "config.json").read_text())
    except (InputError, OSError, ValueError):
        return False


def _load_run(path: str, tokenizer: str, weights: str) -> Source:
    config, workdir, at = configs.of_checkpoint(path)
    data: Any = next(iter(config.streams.values())).kept(str(workdir))
    if tokenizer:
        data = dataclasses.replace(data, tokenizer=dataclasses.replace(data.tokenizer, path=tokenizer))
    model = states.Model.of(config.system)
    loaded, step = checkpoint.load_weights(workdir, at, states.weights_of(model), sharding.Mesh().make())
    chosen = config.weights if weights == "auto" else weights
    evaluation = workdir / "evaluation.json"
    results = files.read_json(evaluation, "evaluation") if evaluation.is_file() else ()
    return Source(
        config=dataclasses.replace(config, data=data),
        variables=jax.device_get(states.variables(loaded, chosen)),
        step=step,
        notes=(),
        vocabulary=None,
        results=tuple(record for record in results if record.get("step") == step),
    )


def _load_foreign(path: str, allow: Sequence[str], image_size: int | None, tokenizer: str) -> Source:
    found = pretrained.load(path, allow=allow, image_size=image_size)
    system = system_of(found.layout)
    params = dict(found.params)
    notes = [f"from {found.source} ({', '.join(found.dtypes)})", *found.layout.notes]
    if found.missing:
        fresh = tree.flatten(nnx.to_pure_dict(nnx.state(system.build(rngs=nnx.Rngs(0)))))
        params |= {name: np.asarray(fresh[name]) for name in found.missing}
        notes.append(f"freshly initialised, as allowed: {', '.join(found.missing)}")
    vocabulary = None if tokenizer else vocabularies.read(Path(found.source).parent, found.layout.family)
    if vocabulary is None and not tokenizer:
        notes.append("no vocabulary that is read lies beside the weights: give --tokenizer, or --data.tokenizer.path to evaluate")
    seen = found.layout.preprocessing
    config = configs.Config(
        batch_size=64,
        system=system,
        data=pipeline.Pairs(
            train="",
            val="",
            tokenizer=_tokenizer(vocabulary, tokenizer, system.text.length, found.layout.family),
            image=images.Transform(size=seen.size, resize=seen.resize, resize_to=seen.resize_to, interpolation=seen.interpolation),
        ),
        evaluators={"retrieval": retrieval.Retrieval()},
    )
    return Source(config, tree.unflatten(params), 0, tuple(notes), vocabulary)


def _tokenizer(vocabulary: vocabularies.Vocabulary | None, path: str, length: int, family: str) -> tokenizers.Tokenizer:
    if vocabulary is None:
        siglip_texts = family == "siglip"
        return tokenizers.Tokenizer(
            path, length, "eos", "lower" if siglip_texts else "keep", "strip" if siglip_texts else "keep"
        )
    return tokenizers.Tokenizer("", length, vocabulary.pad, vocabulary.case, vocabulary.punctuation)


def system_of(found: layout.Layout) -> two_tower.TwoTower:
    """The system of an imported model.

    Raises:
      InputError: it is an image tower alone, for which there is no system.
    """
    if found.text is None:
        raise InputError(
            "source: an image tower alone, and a checkpoint needs both towers; vlm_jax.models.convert.pretrained.load reads it in Python"
        )
    fields: dict[str, Any] = {"image": found.image, "text": found.text}
    fields |= {"mean": found.preprocessing.mean, "std": found.preprocessing.std}
    return siglip.Siglip(**fields) if found.family == "siglip" else clip.Clip(**fields)


def layout_of(config: configs.Config) -> layout.Layout:
    """How a run's model is described to other codebases; its table is empty.

    Raises:
      InputError: the system or its towers have no counterpart there.
    """
    system, data = config.system, next(iter(config.streams.values()))
    if not isinstance(system, two_tower.TwoTower):
        raise InputError(f"system {type(system).__name__}: only systems with an image and a text tower are exported")
    if not isinstance(system.image, (vit.Config, resnet.Config)) or not isinstance(system.text, text.Config):
        raise InputError(f"system.image {type(system.image).__module__}: only ViT and modified ResNet towers are exported")
    transform = data.image
    return layout.Layout(
        family="siglip" if isinstance(system, siglip.Siglip) else "clip",
        image=system.image,
        text=system.text,
        preprocessing=layout.Preprocessing(
            size=transform.size,
            mean=system.mean,
            std=system.std,
            resize=transform.resize,
            resize_to=transform.resize_to,
            interpolation=transform.interpolation,
        ),
        table=(),
    )


# ------------------------------------------------------------------------------------------------ out


def check_target(target: Path) -> None:
    """Raises InputError where something is at the target already."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"target {target}: exists and is not empty; choose another")


def save(source: Source, target: Path) -> None:
    """Writes a checkpoint of ours, at the step of the source and without an optimizer's state: to evaluate, export or start from.

    Raises:
      InputError: the vocabulary does not fit the text tower.
    """
    system: Any = source.config.system
    model = states.Model.of(system)
    flat, buffers = tree.flatten(source.variables), tree.flatten(model.buffers)
    params, frozen = tree.partition(tree.unflatten({path: x for path, x in flat.items() if path not in buffers}), system.frozen)
    config: Any = dataclasses.replace(source.config, workdir=str(target))
    if source.vocabulary is not None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"vocabulary{source.vocabulary.suffix}"
            file.write_bytes(source.vocabulary.content)
            tokenizer = dataclasses.replace(config.data.tokenizer, path=str(file))
            _check_tokenizer(tokenizer, system.text)
            tokenizer.keep(target, config.data.stream)
        config = dataclasses.replace(config, data=config.data.kept(str(target)))
    elif config.data.tokenizer.path:
        _check_tokenizer(config.data.tokenizer, system.text)
        config.data.keep(str(target))
    states.cast_like(source.variables, tree.flatten(model.params) | tree.flatten(model.buffers))
    saved = checkpoint.Checkpoints(target, keep=1)
    try:
        statistics = tree.unflatten({path: flat[path] for path in buffers})
        state = {"params": params, "frozen": frozen, "buffers": statistics, "average": {}, "opt_state": {}, "extra": {}}
        state = jax.tree.map(jnp.asarray, state) | {"step": jnp.asarray(source.step, jnp.int32)}
        saved.save(source.step, state, {"position": None, "order": {}})
        saved.wait()
    finally:
        saved.close()
    configs.save(target / "config.json", config)
    whole.write_text(target / "README.md", _card(source, target.name, "vlm_jax"))


def _check_tokenizer(tokenizer: tokenizers.Tokenizer, tower: text.Config) -> None:
    loaded = tokenizer.load()
    if loaded.vocab_size > tower.vocab_size:
        raise InputError(f"tokenizer {tokenizer.path}: {loaded.vocab_size} tokens, the text tower has {tower.vocab_size}; give --tokenizer")
    if tower.pool == "eos" and loaded.eos_id != tower.eos_id:
        raise InputError(f"tokenizer {tokenizer.path}: its end token is {loaded.eos_id}, the text tower takes the text at {tower.eos_id}")
    if tower.pool == "argmax" and loaded.eos_id != loaded.vocab_size - 1:
        raise InputError(
            f"tokenizer {tokenizer.path}: its end token {loaded.eos_id} is not its largest id, where the text tower takes the text"
        )


def export(source: Source, target: Path, to: str) -> tuple[str, ...]:
    """Writes a directory of Hugging Face transformers ("hf") or open_clip ("open_clip"); returns the notes of its card.

    Raises:
      InputError: the other codebase cannot hold the model; nothing is written then.
    """
    model = layout_of(source.config)
    made, contents = WRITERS[to](model)
    weights = made.to_theirs({path: np.asarray(x) for path, x in tree.flatten(source.variables).items()})
    files.write_safetensors(target / _WEIGHTS[to], weights, format="pt")
    for name, content in contents.items():
        files.write_json(target / name, content)
    source = dataclasses.replace(source, notes=(*source.notes, *_write_tokenizer(source, target)))
    whole.write_text(target / "README.md", _card(source, target.name, to))
    return source.notes


def _write_tokenizer(source: Source, target: Path) -> list[str]:
    """Writes what transformers can do, and returns what to say where it cannot."""
    tokenizer: Any = next(iter(source.config.streams.values())).tokenizer
    with tempfile.TemporaryDirectory() as folder:
        if source.vocabulary is not None:
            file = Path(folder) / f"vocabulary{source.vocabulary.suffix}"
            file.write_bytes(source.vocabulary.content)
            tokenizer = dataclasses.replace(tokenizer, path=str(file))
        if not tokenizer.path:
            return []
        loaded = tokenizer.load()
        path = Path(loaded.config.path)
        if isinstance(loaded, tokenizers.BytePairs):
            vocabularies.write_merges(target, path, size=loaded.vocab_size, pad=loaded.pad_id, length=tokenizer.length)
        elif (tokenizer.case, tokenizer.punctuation, loaded.bos_id) == ("lower", "strip", None):
            vocabularies.write_sentencepiece(target, path, pad=tokenizer.pad, length=tokenizer.length)
        else:
            return [
                "no tokenizer is written: transformers has none that prepares texts with "
                f"case {tokenizer.case!r}, punctuation {tokenizer.punctuation!r}, begin token {loaded.bos_id}"
            ]
        return []


def _card(source: Source, name: str, to: str) -> str:
    config = source.config
    data: Any = next(iter(config.streams.values()))
    trained = {
        "system": type(config.system).__name__,
        "steps": source.step or "none here: imported",
        "batch size": config.batch_size,
        "data": data.train or "see the source of the weights",
        "seed": config.seed,
        "optimizer": type(config.optimizer).__name__,
        "image size": data.image.size,
        "text length": data.tokenizer.length,
    }
    usage = _USAGE.get(to, f"python -m vlm_jax.evaluate --checkpoint {name} --evaluators.retrieval.data SHARDS")
    return card.text(name, library=_LIBRARIES.get(to, "vlm_jax"), usage=usage, facts=trained, results=source.results, notes=source.notes)


def main(arguments: Sequence[str]) -> int:
    """Parses the command line, reads and writes."""
    if list(arguments[:1]) == ["interpolate"]:
        from vlm_jax import interpolate  # which is made of this module's parts

        return interpolate.main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m vlm_jax.convert",
        description="Converts pretrained weights with their preprocessing and tokenizer.",
        epilog="python -m vlm_jax.convert interpolate FIRST SECOND TARGET writes weights between two models (--help). "
        "Exit codes: 0 done, 1 fault in code, 2 bad input, 4 infrastructure.",
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="a run or checkpoint of ours, or a directory or file of transformers, open_clip, big_vision"
    )
    parser.add_argument("target", metavar="TARGET", help="a directory that does not exist yet, or is empty")
    parser.add_argument("--to", required=True, choices=("vlm_jax", "hf", "open_clip"), help="whose layout TARGET gets")
    parser.add_argument(
        "--allow", nargs="+", default=(), metavar="REGEX", help="names in SOURCE that may be unknown, missing or narrowed"
    )
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="for weights that do not tell")
    parser.add_argument("--tokenizer", default="", metavar="FILE", help="a vocabulary: *.model, or merges *.txt, *.txt.gz")
    parser.add_argument("--weights", choices=("auto", "ema", "raw"), default="auto", help="of a run of ours (default: the run's)")
    options = parser.parse_args(list(arguments))
    target = Path(options.target)
    check_target(target)
    source = load(
        options.source, allow=options.allow, image_size=options.image_size, tokenizer=options.tokenizer, weights=options.weights
    )
    target.mkdir(parents=True, exist_ok=True)
    notes = source.notes
    if options.to == "vlm_jax":
        save(source, target)
    else:
        notes = export(source, target, options.to)
    for note in notes:
        print(note)
    count = sum(x.size for x in jax.tree.leaves(source.variables))
    print(f"{count:,} parameters of {options.source} written to {target} ({options.to})")
    return DONE


if __name__ == "__main__":
    configs.entry_point(main)
