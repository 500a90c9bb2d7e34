"""The caption metrics of COCO without Java: `python -m vlm_jax.evaluation.caption_scores CANDIDATES.json REFERENCES.json`.

CANDIDATES is a file of results in COCO's format, a list of `{"image_id": ..., "caption": ...}`. REFERENCES is COCO's annotation file, or an
object from image ids to lists of captions. Either may be packed (`.json.gz`).
"""

import argparse
import dataclasses
import gzip
import json
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlm_jax import errors
from vlm_jax.errors import InputError
from vlm_jax.evaluation import caption_metrics, intervals, ptb

BLEU = {"bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4"}
METRICS = {**BLEU, "rouge_l": "ROUGE-L", "cider_d": "CIDEr-D"}
"""By name, as papers write them; what they call CIDEr is CIDEr-D."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """The metrics of a set of captions; `METRICS` has the names."""

    values: dict[str, float]
    """BLEU over the corpus, means over images of the others; CIDEr-D in 0..10, the others in 0..1. Papers write 100 times as much."""
    intervals: dict[str, tuple[float, float]]
    """Within which a value lies with 95 % confidence over other images; the frequencies of CIDEr-D stay those of these references."""
    images: dict[str, np.ndarray]
    """[n] for each image. BLEU of single captions is near 0 wherever no four words match; its mean is not that of the corpus."""


def score(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    frequencies: caption_metrics.DocumentFrequencies | None = None,
) -> Scores:
    """Tokenizes and counts, as pycocoevalcap does: 5,000 captions with five references each in about four seconds.

    Args:
      candidates: one caption for each image.
      references: for each image what people wrote, at least one.
      frequencies: for CIDEr-D, of n-grams of words of `ptb.tokenize`. None: those of these references.

    Raises:
      InputError: there is no candidate, not one list of references for each, or an empty one.
    """
    caption_metrics.check(candidates, references)
    words, others = ptb.tokenize(candidates), _tokenized(references)
    counts = caption_metrics.bleu_counts(words, others)
    rouge_l = caption_metrics.rouge_l(words, others)
    cider_d = caption_metrics.cider_d(words, others, frequencies)

    def named(bleu):
        return dict(zip(BLEU, bleu, strict=True))

    return Scores(
        values={
            **named(caption_metrics.bleu(counts.sum(0)).tolist()),
            "rouge_l": float(rouge_l.mean()),
            "cider_d": float(cider_d.mean()),
        },
        intervals={
            **named(intervals.of_estimates(drawn) for drawn in caption_metrics.bleu(intervals.sums(counts)).T),
            "rouge_l": intervals.of_mean(rouge_l),
            "cider_d": intervals.of_mean(cider_d, kind="number"),
        },
        images={**named(caption_metrics.bleu(counts).T), "rouge_l": rouge_l, "cider_d": cider_d},
    )


def read_candidates(path: str) -> dict[str, str]:
    """The caption of each image by its id.

    Raises:
      InputError: the file is not one of COCO's results, or an image has two captions.
    """
    found = _read(path, "candidates")
    if not isinstance(found, list) or not all(_is_caption(entry) for entry in found):
        raise InputError(f'candidates {path}: not a list of {{"image_id": ..., "caption": "..."}}, the format of COCO\'s results')
    captions: dict[str, str] = {}
    twice = []
    for entry in found:
        key = str(entry["image_id"])
        twice += [key] if key in captions else []
        captions[key] = entry["caption"]
    if twice:
        raise InputError(f"candidates {path}: {_some(twice)} occur more than once; give one caption for each image")
    return captions


def read_references(path: str) -> dict[str, list[str]]:
    """The captions of each image by its id, in the order of the file.

    Raises:
      InputError: the file is neither COCO's annotations of captions nor an object of lists, or an image has no caption with words.
    """
    found = _read(path, "references")
    if isinstance(found, dict) and isinstance(found.get("annotations"), list):
        entries = found["annotations"]
        if not all(_is_caption(entry) for entry in entries):
            raise InputError(f'references {path}: annotations without "image_id" or "caption"; give those of captions, not of boxes')
        listed = [image["id"] for image in found.get("images", []) if isinstance(image, dict) and "id" in image]
        references: dict[str, list[str]] = {str(key): [] for key in listed}
        for entry in entries:
            references.setdefault(str(entry["image_id"]), []).append(entry["caption"])
    elif isinstance(found, dict) and all(isinstance(own, list) and all(isinstance(c, str) for c in own) for own in found.values()):
        references = found
    else:
        raise InputError(f"references {path}: neither COCO's annotations of captions nor an object from image ids to lists of captions")
    words = _tokenized(list(references.values()))
    silent = [key for key, own in zip(references, words, strict=True) if not any(own)]
    if silent or not references:
        raise InputError(f"references {path}: {_some(silent) if silent else 'no images'} have no caption with words; leave them out")
    return references


def select(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], images: Literal["all", "candidates"] = "all"
) -> list[str]:
    """The ids of the images to evaluate, in the order of the references.

    Args:
      images: "all" wants a candidate for each image of the references, "candidates" takes those that have one.

    Raises:
      InputError: a candidate has no references, or the other way round.
    """
    unknown = [key for key in candidates if key not in references]
    if unknown:
        raise InputError(f"candidates: {_some(unknown)} have no references; leave them out, or give their references")
    missing = [key for key in references if key not in candidates]
    if missing and images == "all":
        raise InputError(f"candidates: {_some(missing)} have none; caption them, or evaluate the others alone with --images candidates")
    if not candidates:
        raise InputError("candidates: there are none; give at least one caption")
    return [key for key in references if key in candidates]


def main(arguments: Sequence[str]) -> int:
    """Reads both files, prints a table, and writes the numbers where that is asked for."""
    options = _parser().parse_args(list(arguments))
    candidates, references = read_candidates(options.candidates), read_references(options.references)
    ids = select(candidates, references, options.images)
    captions = [candidates[key] for key in ids]
    empty = [key for key, words in zip(ids, ptb.tokenize(captions), strict=True) if not words]
    if empty and options.empty == "refuse":
        raise InputError(f"candidates: the captions of {_some(empty)} have no words; mend them, or count them as 0 with --empty zero")
    found = score(captions, [references[key] for key in ids])
    print(f"{len(ids):,} images, {sum(len(references[key]) for key in ids):,} references; all values times 100")
    told = f"{_some(empty)} without words count as 0\n" if empty else ""
    print(f"{told}\n{'':8}  {'value':>6}  95 % interval")
    for name, title in METRICS.items():
        low, high = found.intervals[name]
        print(f"{title:8}  {100 * found.values[name]:6.2f}  [{100 * low:.2f}, {100 * high:.2f}]")
    if options.out:
        each = [{"image_id": key, **{name: float(found.images[name][i]) for name in METRICS}} for i, key in enumerate(ids)]
        text = json.dumps({"metrics": found.values, "intervals": found.intervals, "images": each}, indent=1)
        try:
            Path(options.out).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"out {options.out}: cannot be written ({error.strerror}); name a file in a folder that exists") from error
        print(f"\nnumbers   {options.out}")
    return errors.DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vlm_jax.evaluation.caption_scores",
        description="BLEU-1 to 4, ROUGE-L and CIDEr-D of captions, as pycocoevalcap counts them, with intervals over other images. "
        "CIDEr-D is what papers call CIDEr; its frequencies are those of the references evaluated.",
        epilog="Exit codes: 0 done, 1 fault in code, 2 bad input.",
        allow_abbrev=False,
    )
    parser.add_argument("candidates", metavar="CANDIDATES", help='captions: [{"image_id": 1, "caption": "a dog"}, ...], .json or .json.gz')
    parser.add_argument(
        "references", metavar="REFERENCES", help='COCO\'s captions_*.json, or {"1": ["a dog on grass", ...], ...}, .json or .json.gz'
    )
    parser.add_argument(
        "--images",
        choices=("all", "candidates"),
        default="all",
        help="all (default) wants a caption for every image of REFERENCES; candidates takes those that have one",
    )
    parser.add_argument(
        "--empty",
        choices=("refuse", "zero"),
        default="refuse",
        help="captions without words: refuse (default), or count them as 0, as pycocoevalcap does",
    )
    parser.add_argument("--out", metavar="FILE", help="write the numbers of the whole and of each image as JSON, not times 100")
    return parser


def _tokenized(references: Sequence[Sequence[str]]) -> list[list[list[str]]]:
    words = iter(ptb.tokenize(reference for own in references for reference in own))
    return [[next(words) for _ in own] for own in references]


def _read(path: str, name: str) -> Any:
    try:
        content = Path(path).read_bytes()
        return json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name} {path}: cannot be read ({error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} {path}: is not JSON ({error})") from error


def _is_caption(entry: Any) -> bool:
    known = isinstance(entry, dict) and isinstance(entry.get("caption"), str)
    return known and isinstance(entry.get("image_id"), (int, str)) and not isinstance(entry["image_id"], bool)


def _some(ids: Sequence[str]) -> str:
    """`image 7` or `3 images (7, 9, 12)`, without what a terminal would obey."""
    shown = [key if key.isprintable() else ascii(key) for key in ids[:5]]
    return f"image {shown[0]}" if len(ids) == 1 else f"{len(ids):,} images ({', '.join(shown)}{', ...' if len(ids) > 5 else ''})"


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = errors.BAD_INPUT
    sys.exit(code)
