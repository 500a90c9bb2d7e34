"""Models of any origin as ours: runs, and directories of Hugging Face transformers, open_clip or big_vision.

`hf:DIR`, `open_clip:DIR` and `big_vision:FILE.npz` may stand wherever a checkpoint is read (`resolve`).
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import vlm_jax
from vlm_jax import config as configs
from vlm_jax import files
from vlm_jax.data import images, pipeline, tar_index, texts
from vlm_jax.data import text as tokenizers
from vlm_jax.errors import InputError
from vlm_jax.evaluation import perplexity, retrieval
from vlm_jax.models.convert import card, decoders, idefics, layout, pretrained, vocabularies
from vlm_jax.models.convert import files as weight_files
from vlm_jax.systems import base, clip, coca, flamingo, language_model, siglip, two_tower
from vlm_jax.training import checkpoint, sharding, tree
from vlm_jax.training import state as states

SCHEMES = ("hf", "open_clip", "big_vision")
_USAGE = {
    "hf": "from transformers import AutoModel, AutoProcessor\n\nmodel = AutoModel.from_pretrained(folder)",
    "idefics": "from transformers import IdeficsForVisionText2Text\n\nmodel = IdeficsForVisionText2Text.from_pretrained(folder)",
    "open_clip": "import open_clip\n\nmodel, preprocess = open_clip.create_model_from_pretrained('local-dir:' + folder)",
}
_LIBRARIES = {"hf": "transformers", "idefics": "transformers", "open_clip": "open_clip"}


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

    @contextlib.contextmanager
    def tokenizer(self) -> Iterator[tokenizers.Tokenizer]:
        """That of the first stream, with its vocabulary in a file while the context lasts; its path is empty where there is none."""
        own: Any = next(iter(self.config.streams.values())).tokenizer
        if self.vocabulary is None:
            yield own
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"vocabulary{self.vocabulary.suffix}"
            file.write_bytes(self.vocabulary.content)
            yield dataclasses.replace(own, path=str(file))


def resolve(path: str) -> str:
    """The folder of a checkpoint of ours: the path as it is, or where the import of `hf:DIR` and the like is kept.

    The import is made once and kept below the cache folder, under a name that follows from the files, their sizes and times.

    Raises:
      InputError: the files hold no model that can be imported, or several processes would import at once.
    """
    origin = foreign(path)
    if origin is None:
        return path
    if jax.process_count() > 1:
        raise InputError(f"checkpoint {path}: several processes; convert it first: python -m vlm_jax.convert {path} TARGET --to vlm_jax")
    found = sorted(origin.iterdir()) if origin.is_dir() else [origin]
    known = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in found if file.is_file()]
    key = hashlib.sha256(json.dumps([vlm_jax.__version__, str(origin), known]).encode()).hexdigest()[:12]
    folder = tar_index.cache_folder() / "imported" / f"{origin.stem}-{key}"
    with _locked(folder):
        if not (folder / "config.json").is_file():
            source = load(str(origin))
            print(f"importing {path}, once, to {folder}", *source.notes, sep="\n  ", flush=True)
            shutil.rmtree(folder, ignore_errors=True)  # an import that was interrupted
            folder.mkdir()
            save(source, folder)
    return str(folder)


def foreign(path: str) -> Path | None:
    """The directory or file behind `hf:`, `open_clip:` or `big_vision:`; None for any other path.

    Raises:
      InputError: there is none.
    """
    scheme, colon, name = path.partition(":")
    if scheme not in SCHEMES or not colon:
        return None
    origin = Path(name).expanduser().absolute()
    if not origin.exists():
        raise InputError(f"checkpoint {path}: no such file or directory")
    return origin


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a lock beside the folder, which the system releases with the process."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(f".{folder.name}.lock").open("w")
    except OSError as error:
        raise InputError(f"cache folder {folder.parent}: {error.strerror}; set VLM_JAX_CACHE to one that can be written") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def load(
    path: str, *, allow: Sequence[str] = (), image_size: int | None = None, tokenizer: str = "", weights: str = "auto"
) -> Source:
    """Reads a model from a run of ours, or from the files of another codebase: `hf:DIR`, or just `DIR`.

    Args:
      allow: regular expressions of whole names of theirs that may be unknown, missing (they stay as initialised) or narrowed.
      image_size: in pixels, for foreign weights that do not tell.
      tokenizer: a vocabulary file in place of the one that lies beside the weights.
      weights: trained weights of ours or their average: "auto", "ema", "raw".

    Raises:
      InputError: there is no model, or its files contradict each other.
    """
    if is_ours(Path(path)):
        return _load_run(path, tokenizer, weights)
    return _load_foreign(path, allow, image_size, tokenizer)


def is_ours(path: Path) -> bool:
    """Whether a path is a run or a checkpoint of ours."""
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
    results = weight_files.read_json(evaluation, "evaluation") if evaluation.is_file() else ()
    return Source(
        config=dataclasses.replace(config, data=data),
        variables=jax.device_get(states.variables(loaded, chosen)),
        step=step,
        notes=(),
        vocabulary=None,
        results=tuple(record for record in results if record.get("step") == step),
    )


def _load_foreign(path: str, allow: Sequence[str], image_size: int | None, tokenizer: str) -> Source:
    found = pretrained.load(foreign(path) or path, allow=allow, image_size=image_size)
    try:
        system = system_of(found.layout)
    except InputError as error:
        raise InputError(f"source {path}: {error}") from None
    params = dict(found.params)
    notes = [f"from {found.source} ({', '.join(found.dtypes)})", *found.layout.notes]
    if found.missing:
        fresh = tree.flatten(nnx.to_pure_dict(nnx.state(system.build(rngs=nnx.Rngs(0)))))
        params |= {name: np.asarray(fresh[name]) for name in found.missing}
        notes.append(f"freshly initialised, as allowed: {', '.join(found.missing)}")
    vocabulary = None if tokenizer else vocabularies.read(Path(found.source).parent, found.layout.family)
    if vocabulary is not None and not isinstance(system, two_tower.TwoTower):
        vocabulary = vocabularies.without_added(vocabulary, _texts(system).vocab_size)
    if vocabulary is None and not tokenizer:
        notes.append("no vocabulary that is read lies beside the weights: give --tokenizer, or --data.tokenizer.path to evaluate")
    length = _texts(system).length - isinstance(system, flamingo.Flamingo)  # there is room for the token of an image
    loaded, seen = _tokenizer(vocabulary, tokenizer, length, found.layout.family), found.layout.preprocessing
    if seen is None:
        data, evaluators = texts.Texts(train="", val="", tokenizer=loaded), {"perplexity": perplexity.Perplexity()}
    else:
        transform = {name: getattr(seen, name) for name in ("size", "resize", "resize_to", "fill", "interpolation")}
        data = pipeline.Pairs(train="", val="", tokenizer=loaded, image=images.Transform(**transform))
        evaluators = {} if isinstance(system, flamingo.Flamingo) else {"retrieval": retrieval.Retrieval()}
    config = configs.Config(batch_size=64, system=system, data=data, evaluators=evaluators)
    return Source(config, tree.unflatten(params), 0, tuple(notes), vocabulary)


def _tokenizer(vocabulary: vocabularies.Vocabulary | None, path: str, length: int, family: str) -> tokenizers.Tokenizer:
    pad: Any = "eos" if vocabulary is None else vocabulary.pad
    pad = {"coca": "zero", "idefics": "eos", "language": "eos"}.get(family, pad)  # CoCa's class token is not to see it
    if vocabulary is None:
        siglip_texts = family == "siglip"
        return tokenizers.Tokenizer(path, length, pad, "lower" if siglip_texts else "keep", "strip" if siglip_texts else "keep")
    return tokenizers.Tokenizer("", length, pad, vocabulary.case, vocabulary.punctuation, vocabulary.begin, vocabulary.end)


def system_of(found: layout.Layout | idefics.Layout | decoders.Layout) -> base.System:
    """The system of an imported model.

    Raises:
      InputError: it is an image tower alone, for which there is no system; says what can be done with it.
    """
    if isinstance(found, decoders.Layout):
        return language_model.LanguageModel(lm=found.config)
    if isinstance(found, idefics.Layout):
        return flamingo.Flamingo(**vars(found.config), begin_id=found.begin_id, end_id=found.end_id)
    if found.text is None:
        values = {field.name: (getattr(found.image, field.name), field.default) for field in dataclasses.fields(found.image)}
        given = {name: value for name, (value, default) in values.items() if value != default and name not in layout.TRAINING}
        flags = " ".join(f"--system.image.{name.replace('_', '-')} {value}" for name, value in given.items())
        raise InputError(
            "an image tower alone, and a checkpoint has both towers. A run starts from it, such as that of configs/lit.py, with "
            f"--init-from 'image/ <- hf:DIR' and {flags}; --part image --to hf writes it for transformers"
        )
    fields: dict[str, Any] = {"image": found.image, "text": found.text}
    fields |= {"mean": found.preprocessing.mean, "std": found.preprocessing.std}
    systems = {"siglip": siglip.Siglip, "coca": coca.Coca}
    return systems.get(found.family, clip.Clip)(**fields)


def preprocessing_of(config: configs.Config) -> layout.Preprocessing | None:
    """How a run prepares images, at evaluation; None where it has none."""
    stream, system = next(iter(config.streams.values())), config.system
    if not hasattr(stream, "image") or not isinstance(system, two_tower.TwoTower | flamingo.Flamingo):
        return None
    seen = stream.image
    return layout.Preprocessing(
        size=seen.size,
        mean=system.mean,
        std=system.std,
        resize=seen.resize,
        resize_to=seen.resize_to,
        fill=seen.fill,
        interpolation=seen.interpolation,
    )


def check_target(target: Path) -> None:
    """Raises InputError where something is at the target already."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"target {target}: exists and is not empty; choose another")


def save(source: Source, target: Path) -> None:
    """Writes a checkpoint of ours, at the step of the source and without an optimizer's state: to evaluate, export or start from.

    Raises:
      InputError: the vocabulary does not fit the text tower; nothing is written then.
    """
    system: Any = source.config.system
    model = states.Model.of(system)
    flat, buffers = tree.flatten(source.variables), tree.flatten(model.buffers)
    params, frozen = tree.partition(tree.unflatten({path: x for path, x in flat.items() if path not in buffers}), system.frozen)
    config: Any = dataclasses.replace(source.config, workdir=str(target))
    states.cast_like(source.variables, tree.flatten(model.params) | tree.flatten(model.buffers))
    if source.vocabulary is not None:
        with source.tokenizer() as tokenizer:
            _check_tokenizer(tokenizer, _texts(system))
            target.mkdir(parents=True, exist_ok=True)
            tokenizer.keep(target, config.data.stream)
        config = dataclasses.replace(config, data=config.data.kept(str(target)))
    elif config.data.tokenizer.path:
        _check_tokenizer(config.data.tokenizer, _texts(system))
        target.mkdir(parents=True, exist_ok=True)
        config.data.keep(str(target))
    statistics = tree.unflatten({path: flat[path] for path in buffers})
    weights = {"params": params, "frozen": frozen, "buffers": statistics, "average": {}}
    target.mkdir(parents=True, exist_ok=True)
    checkpoint.save_weights(target, source.step, jax.tree.map(jnp.asarray, weights))
    files.write_text(target / "README.md", card_of(source, target.name, "vlm_jax"))
    configs.save(target / "config.json", config)


def _texts(system: Any) -> Any:
    """What reads texts: a tower, or a language model."""
    return system.text if isinstance(system, two_tower.TwoTower) else system.lm


def _check_tokenizer(tokenizer: tokenizers.Tokenizer, tower: Any) -> None:
    loaded = tokenizer.load()
    if loaded.vocab_size > tower.vocab_size:
        raise InputError(f"tokenizer {tokenizer.path}: {loaded.vocab_size} tokens, the model has {tower.vocab_size}; give --tokenizer")
    pool = getattr(tower, "pool", None)
    if pool == "eos" and loaded.eos_id != tower.eos_id:
        raise InputError(f"tokenizer {tokenizer.path}: its end token is {loaded.eos_id}, the text tower takes the text at {tower.eos_id}")
    if pool == "argmax" and loaded.eos_id != loaded.vocab_size - 1:
        raise InputError(
            f"tokenizer {tokenizer.path}: its end token {loaded.eos_id} is not its largest id, where the text tower takes the text"
        )


def facts_of(source: Source) -> dict[str, Any]:
    """What a card says of the training."""
    config = source.config
    data: Any = next(iter(config.streams.values()))
    facts = {
        "system": type(config.system).__name__,
        "steps": source.step or "none here: imported",
        "batch size": config.batch_size,
        "data": data.train or "see the source of the weights",
        "seed": config.seed,
        "optimizer": type(config.optimizer).__name__,
        "text length": data.tokenizer.length,
    }
    return facts | ({} if isinstance(data, texts.Texts) else {"image size": data.image.size})


def card_of(source: Source, name: str, to: str) -> str:
    """The model card of a source, written for another codebase or for us."""
    system, kind, what = source.config.system, "two towers", "--evaluators.retrieval.data SHARDS"
    if isinstance(system, flamingo.Flamingo):
        kind, what, to = "vision-language model", "--suite FILE.py", "idefics" if to == "hf" else to
    elif isinstance(system, language_model.LanguageModel):
        kind, what = "language model", "--evaluators.perplexity.data FILE.txt"
    usage = _USAGE.get(to, f"python -m vlm_jax.evaluate --checkpoint {name} {what}")
    facts = {"library": _LIBRARIES.get(to, "vlm_jax"), "facts": facts_of(source), "results": source.results, "notes": source.notes}
    return card.text(name, usage=usage, kind=kind, **facts)
