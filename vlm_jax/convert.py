"""Pretrained weights in and out: `python -m vlm_jax.convert SOURCE TARGET --to vlm_jax|hf|open_clip`.

SOURCE is a run or checkpoint of ours, or a directory or file of Hugging Face transformers, open_clip or big_vision.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vlm_jax import config as configs
from vlm_jax import decoder, image_tower, imported
from vlm_jax import files as whole
from vlm_jax.data import text as tokenizers
from vlm_jax.data import tokenizer_json
from vlm_jax.errors import DONE, InputError
from vlm_jax.models import captioner, resnet, text, vit
from vlm_jax.models import flamingo as flamingos
from vlm_jax.models.convert import files, hugging_face, idefics, layout, open_clip, vocabularies
from vlm_jax.systems import coca, flamingo, siglip, two_tower
from vlm_jax.training import tree

_WEIGHTS = {"hf": "model.safetensors", "open_clip": "open_clip_model.safetensors"}
WRITERS: Mapping[str, Any] = {"hf": hugging_face.write, "open_clip": open_clip.write}


def layout_of(config: configs.Config) -> layout.Layout | idefics.Layout:
    """How a run's model is described to other codebases; its table, where it has one, is empty.

    Raises:
      InputError: the system or its towers have no counterpart there.
    """
    system, seen = config.system, imported.preprocessing_of(config)
    if isinstance(system, flamingo.Flamingo) and seen is not None:
        plain = flamingos.Config(**{field.name: getattr(system, field.name) for field in dataclasses.fields(flamingos.Config)})
        return idefics.Layout(config=plain, preprocessing=seen, begin_id=system.begin_id, end_id=system.end_id)
    if not isinstance(system, two_tower.TwoTower):
        raise InputError(
            f"system {type(system).__name__}: only systems with an image and a text tower, and Flamingo, are exported; of others the "
            "image tower or the language model, with --part"
        )
    captions = isinstance(system, coca.Coca)
    tower, words = (system.image.tower, captioner.Config) if captions else (system.image, text.Config)
    if not isinstance(tower, vit.Config if captions else (vit.Config, resnet.Config)) or not isinstance(system.text, words):
        raise InputError(f"system.image {type(tower).__module__}: only ViT and modified ResNet towers are exported, with CoCa only ViT")
    assert seen is not None, "a system with two towers has images"
    return layout.Layout(
        family="coca" if captions else "siglip" if isinstance(system, siglip.Siglip) else "clip",
        image=system.image,
        text=system.text,
        preprocessing=seen,
        table=(),
    )


# ------------------------------------------------------------------------------------------------ out


def export(source: imported.Source, target: Path, to: str) -> tuple[str, ...]:
    """Writes a directory of Hugging Face transformers ("hf") or open_clip ("open_clip"); returns the notes of its card.

    Raises:
      InputError: the other codebase cannot hold the model; nothing is written then.
    """
    model = layout_of(source.config)
    if model.family == "coca" and to != "open_clip":
        raise InputError(f"to {to}: transformers has no CoCa; give --to open_clip")
    if model.family == "idefics" and to != "hf":
        raise InputError(f"to {to}: open_clip has no Flamingo; give --to hf, for Idefics of transformers")
    made, contents = idefics.write(model) if isinstance(model, idefics.Layout) else WRITERS[to](model)
    weights = made.to_theirs({path: np.asarray(x) for path, x in tree.flatten(source.variables).items()})
    target.mkdir(parents=True, exist_ok=True)
    files.write_safetensors(target / _WEIGHTS[to], weights, format="pt")
    for name, content in contents.items():
        files.write_json(target / name, content)
    source = dataclasses.replace(source, notes=(*source.notes, *_write_tokenizer(source, target)))
    whole.write_text(target / "README.md", imported.card_of(source, target.name, to))
    return source.notes


def _write_tokenizer(source: imported.Source, target: Path) -> list[str]:
    """Writes what transformers can do, and returns what to say where it cannot."""
    with source.tokenizer() as tokenizer:
        if not tokenizer.path:
            return []
        system: Any = source.config.system
        if isinstance(system, flamingo.Flamingo):
            _, notes = decoder.write_tokenizer(tokenizer, target, rows=system.lm.vocab_size, added=idefics.ADDED)
            return list(notes)
        loaded = tokenizer.load()
        path = Path(loaded.config.path)
        prepared = (tokenizer.case, tokenizer.punctuation, loaded.bos_id)
        if isinstance(loaded, tokenizers.BytePairs):
            vocabularies.write_merges(target, path, size=loaded.vocab_size, pad=loaded.pad_id, length=tokenizer.length)
        elif isinstance(loaded, tokenizers.SentencePiece) and prepared == ("lower", "strip", None):
            vocabularies.write_sentencepiece(target, path, pad=tokenizer.pad, length=tokenizer.length)
        elif isinstance(loaded, tokenizer_json.TokenizerJson) and prepared == ("lower", "keep", None):
            vocabularies.write_tokenizer_json(target, path, end=loaded.eos_id, pad=loaded.pad_id, length=tokenizer.length)
        else:
            return [
                "no tokenizer is written: transformers has none that prepares texts with "
                f"case {tokenizer.case!r}, punctuation {tokenizer.punctuation!r}, begin token {loaded.bos_id}"
            ]
        return []


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
        "--part",
        choices=("all", "image", "lm"),
        default="all",
        help="for transformers (--to hf): the image tower alone, as ViTModel, or the language model, as GPT-2, OPT or LLaMA",
    )
    parser.add_argument(
        "--allow", nargs="+", default=(), metavar="REGEX", help="names in SOURCE that may be unknown, missing or narrowed"
    )
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="for weights that do not tell")
    parser.add_argument("--tokenizer", default="", metavar="FILE", help="a vocabulary: *.model, merges *.txt, *.txt.gz, or tokenizer.json")
    parser.add_argument("--weights", choices=("auto", "ema", "raw"), default="auto", help="of a run of ours (default: the run's)")
    options = parser.parse_args(list(arguments))
    target = Path(options.target)
    imported.check_target(target)
    if options.part != "all":
        return _export_part(options, target)
    source = imported.load(
        options.source, allow=options.allow, image_size=options.image_size, tokenizer=options.tokenizer, weights=options.weights
    )
    notes = source.notes
    if options.to == "vlm_jax":
        imported.save(source, target)
    else:
        notes = export(source, target, options.to)
    for note in notes:
        print(note)
    count = sum(x.size for x in jax.tree.leaves(source.variables))
    print(f"{count:,} parameters of {options.source} written to {target} ({options.to})")
    return DONE


def _export_part(options: argparse.Namespace, target: Path) -> int:
    part = {"image": "an image tower", "lm": "a language model"}[options.part]
    if options.to != "hf":
        raise InputError(f"to {options.to}: {part} alone is written for transformers; give --to hf, or leave out --part")
    if options.part == "image":
        count, notes = image_tower.export(
            options.source, target, allow=options.allow, image_size=options.image_size, weights=options.weights
        )
    else:
        count, notes = decoder.export(options.source, target, allow=options.allow, weights=options.weights)
    print(*notes, f"{count:,} parameters of {options.source} written to {target} (hf, {part} alone)", sep="\n")
    return DONE


if __name__ == "__main__":
    configs.entry_point(main)
