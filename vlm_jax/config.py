"""One frozen dataclass says what a run is: written by a recipe, changed on the command line, kept as JSON beside the run."""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
import os
import re
import signal
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

from vlm_jax import errors, files
from vlm_jax.errors import InputError
from vlm_jax.systems import base
from vlm_jax.training import checkpoint, sharding
from vlm_jax.training import optimizer as optimizers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A run. Durations are steps, or text: `2000 steps`, `3 epochs`, `1e6 examples`, `5%` (of all steps)."""

    workdir: str = ""
    """Where everything of this run is written; a run that is there already is continued. Default: runs/<recipe>."""
    steps: int | str = 1000
    """Length of the training; epochs and examples count those of the first data stream."""
    batch_size: int = 256
    """Examples of one step over all devices and hosts."""
    seed: int = 0
    """Of the initial weights, the order of the data, augmentation and everything else that is random."""
    log_every: int | str = 20
    """Interval of lines in metrics.jsonl and TensorBoard."""
    eval_every: int | str = "25%"
    """Interval of evaluations; the last step is always evaluated. 0: only the last."""
    save_every: int | str = "25%"
    """Interval of checkpoints; the last step is always saved. 0: only the last."""
    keep: int = 2
    """Checkpoints that stay on disk."""
    on_corrupt: Literal["previous", "stop"] = "previous"
    """What happens where files of the last checkpoint are missing or not as written: the last good one is used, or the run ends with exit
    code 4."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What all towers compute in. Parameters, norms, softmax and losses are float32 in any case."""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """What parameters that system.frozen finds are kept in."""
    microbatches: int = 1
    """Runs the towers over this many chunks of the batch with recomputation; loss and gradients stay exact."""
    stuck_after: float = 1800.0
    """Seconds without a step, or an evaluation or save that ends, after which the stacks of all threads are printed and the run ends with
    exit code 4; 0: never."""
    max_skipped: int = 10
    """Steps in a row with a loss or gradient that is not finite before the run stops. Such steps change nothing."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """What is evaluated; auto: the moving average where one is kept."""
    init_from: tuple[str, ...] = ()
    """Runs or checkpoints whose parameters are the initial weights; 'image/ <- runs/first' takes a part, 'text/blocks/ =
    decoder/blocks/[0:6] <- runs/second' layers of another name. Several may be given; the last one counts."""
    wandb: str = ""
    """Weights & Biases project to log to as well; empty: none."""
    system: base.System
    """Model and objective."""
    data: Any
    """A data stream, or streams by name."""
    workers: int = 0
    """Processes that read and decode ahead; 0: threads of this process do. The order of the data does not depend on it."""
    threads: int = 2
    """Threads that read and decode, in this process or in each worker."""
    optimizer: optimizers.Optimizer = optimizers.AdamW()
    """Update rule, schedule, decay and averaging."""
    mesh: sharding.Mesh = sharding.Mesh()
    """How the devices are arranged."""
    evaluators: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Evaluations by name: run at intervals, at the end, and by vlm_jax.evaluate."""

    def __post_init__(self):
        for field in ("batch_size", "keep", "microbatches", "max_skipped"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} {getattr(self, field)}: must be at least 1")
        if "://" in self.workdir:
            raise InputError(f"workdir {self.workdir}: not a folder; mount the bucket, as launch_tpu.sh does, and name the mounted one")
        if self.batch_size % self.microbatches:
            raise InputError(f"microbatches {self.microbatches} does not divide batch_size {self.batch_size}")

    @property
    def streams(self) -> dict[str, Any]:
        """The data streams by name."""
        return dict(self.data) if isinstance(self.data, Mapping) else {self.data.stream: self.data}


# ------------------------------------------------------------------------------------------------ recipe, command line


def load_recipe(path: str) -> tuple[Config, str]:
    """Runs `config()` of a recipe, a Python file anywhere; also returns the recipe's docstring.

    Raises:
      InputError: no such file, or it has no `config()` that returns a Config.
    """
    module = _module(path, "recipe")
    if not hasattr(module, "config"):
        raise InputError(f"recipe {path}: it defines no function config()")
    made = module.config()
    if not isinstance(made, Config):
        raise InputError(f"recipe {path}: config() returned {type(made).__name__}, not vlm_jax.config.Config")
    named = made if made.workdir else dataclasses.replace(made, workdir=f"runs/{Path(path).stem}")
    return named, module.__doc__ or ""


def load_suite(path: str) -> dict[str, Any]:
    """Runs `evaluators()` of a Python file, which returns evaluators by name.

    Raises:
      InputError: no such file, or it has no such function.
    """
    module = _module(path, "suite")
    if not hasattr(module, "evaluators"):
        raise InputError(f"suite {path}: it defines no function evaluators()")
    made = module.evaluators()
    if not isinstance(made, Mapping) or not made:
        raise InputError(f"suite {path}: evaluators() returned {type(made).__name__}, not a dict with at least one evaluator by name")
    wrong = [name for name, e in made.items() if not (dataclasses.is_dataclass(e) and callable(e) and hasattr(e, "task"))]
    if wrong:
        raise InputError(f"suite {path}: {wrong[0]!r} is {type(made[wrong[0]]).__name__}, not an evaluator such as retrieval.Retrieval")
    return dict(made)


def _module(path: str, field: str) -> types.ModuleType:
    file = Path(path)
    if file.suffix != ".py" or not file.is_file():
        raise InputError(f"{field} {path}: no such Python file")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader, "a .py file has both"
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)  # where help texts look for the source of the file's own classes
    spec.loader.exec_module(module)
    return module


def parse(default: Any, arguments: Sequence[str], *, prog: str, description: str) -> Any:
    """Applies command-line overrides to a configuration; every field is a typed flag.

    Raises:
      InputError: an unknown flag (with the nearest names) or a value of the wrong type, in one line.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                type(default),
                default=default,
                args=list(arguments),
                prog=prog,
                description=description,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise InputError(_one_line(errors.getvalue())) from None


def _one_line(box: str) -> str:
    """The words of tyro's framed error message."""
    words = re.sub(r"[─│╭╮╰╯╌]+|-{8,}", " ", box.split("For full helptext")[0])
    words = re.sub(r"^\s*(Unrecognized options|Parsing error|Value error|Invalid value|Required options)\s{2,}", "", words.strip())
    return re.sub(r"\s+", " ", words).strip()


def entry_point(run) -> None:
    """Calls `run(argv)` and exits with the code of how it ended; what is no fault of the code is one line, without a traceback.

    One of several processes leaves at once after an error: an orderly exit would wait for the others, which wait for it.
    """
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 128 + signal.SIGINT
    except Exception as error:
        code = errors.exit_code(error)
        if code == errors.FAULT or (code == errors.INFRASTRUCTURE and not isinstance(error, errors.InfrastructureError)):
            traceback.print_exc()
        if code != errors.FAULT:
            kind = {errors.PREEMPTED: "stopped", errors.INFRASTRUCTURE: "infrastructure"}.get(code, "error")
            print(f"{kind}: {str(error) or type(error).__name__}", file=sys.stderr)
        if jax.distributed.is_initialized() and jax.process_count() > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


# ------------------------------------------------------------------------------------------------ JSON


def to_json(value: Any) -> Any:
    """Dataclasses become objects that name their type; tuples become lists."""
    if dataclasses.is_dataclass(value):
        cls = type(value)
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"_type": f"{cls.__module__}.{cls.__qualname__}"} | fields
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return value


def from_json(value: Any, *, allow: Sequence[str] = ()) -> Any:
    """The inverse of `to_json`. Types come from this package, or from modules whose names are in `allow`.

    Raises:
      InputError: a type from elsewhere, a type or field that does not exist (a configuration of another version).
    """
    if isinstance(value, list):
        return tuple(from_json(item, allow=allow) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {key: from_json(item, allow=allow) for key, item in value.items() if key != "_type"}
    return _class_named(value["_type"], allow)(**_known(value["_type"], fields, allow)) if "_type" in value else fields


def modules(config: Config) -> list[str]:
    """The modules of a configuration's types, which whoever made it has imported: to be allowed when an earlier one is read."""

    def named(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(named, value))
        if not isinstance(value, dict):
            return set()
        own = {value["_type"].rpartition(".")[0]} if "_type" in value else set()
        return own.union(*(named(item) for item in value.values()))

    return sorted(named(to_json(config)))


def _class_named(name: str, allow: Sequence[str]) -> type:
    module, _, cls = name.rpartition(".")
    if not (module.startswith("vlm_jax.") or module in allow):
        raise InputError(f"_type {name}: not from this package; pass --allow-types {module} if you trust its code")
    try:
        found = getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError) as error:
        raise InputError(f"_type {name}: {error}") from None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise InputError(f"_type {name}: not a configuration")
    return found


def _known(name: str, fields: dict[str, Any], allow: Sequence[str]) -> dict[str, Any]:
    unknown = fields.keys() - {f.name for f in dataclasses.fields(_class_named(name, allow))}
    if unknown:
        raise InputError(f"{name} has no field {sorted(unknown)}: the configuration is of another version of vlm_jax")
    return fields


def save(path: Path, config: Config) -> None:
    """Writes the resolved configuration."""
    files.write_text(path, json.dumps(to_json(config), indent=1) + "\n")


def load(path: Path, *, allow: Sequence[str] = ()) -> Config:
    """Reads a resolved configuration.

    Raises:
      InputError: the file is missing, is not JSON, or names types that are not to be imported.
    """
    try:
        return from_json(json.loads(path.read_text()), allow=allow)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a checkpoint is a folder that a run has written") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error})") from None


def of_checkpoint(path: str, *, allow: Sequence[str] = ()) -> tuple[Config, Path, int | None]:
    """The configuration of a run, its workdir, and the step if `path` is the folder of one checkpoint.

    Raises:
      InputError: `path` is neither a workdir nor a checkpoint of one.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"checkpoint {path}: no such folder")
    workdir, step = checkpoint.locate(folder)
    return load(workdir / "config.json", allow=allow), workdir, step
