"""Evaluates a checkpoint, `python -m vlm_jax.evaluate --checkpoint runs/demo`, or several, `--compare runs/a runs/b`.

With `--checkpoint runs/demo --serve` it opens a local page on which one searches an evaluated set by words or by an image.
"""

import argparse
import dataclasses
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from vlm_jax import config as configs
from vlm_jax import imported
from vlm_jax.config import Config
from vlm_jax.errors import DONE, InputError
from vlm_jax.evaluation import base, comparison, embeddings, index, records, server, terminal
from vlm_jax.evaluation import suite as suites
from vlm_jax.training import checkpoint, goodput, manifest, sharding
from vlm_jax.training import log as logs
from vlm_jax.training import state as states

PROG = "python -m vlm_jax.evaluate"
DESCRIPTION = "Evaluates a checkpoint and writes evaluation.json and report.html, or compares several."
CACHE = "evaluation_cache"


def main(arguments: Sequence[str]) -> int:
    """Parses the command line, checks everything that is named, loads and evaluates."""
    options, overrides = _parser().parse_known_args(list(arguments))
    if options.embeddings_gb < 0:
        raise InputError(f"embeddings-gb {options.embeddings_gb}: must not be negative")
    _check_serving(options)
    jobs = [Job.of(path, options, overrides) for path in options.compare or [options.checkpoint]]
    if options.compare:
        return _compare(jobs, options)
    (job,) = jobs
    if options.serve:
        return _serve(job, options)
    out = _folder(options.out or job.home)
    _evaluate(job, out, options)
    if jax.process_index() == 0:
        found = records.read_evaluation_json(out / "evaluation.json")
        print(f"{job.workdir} at step {found[0]['step']}, {found[0]['weights']} weights\n" if found else f"{job.workdir}\n")
        print(terminal.table(found))
        print(f"\nevaluation  {out / 'evaluation.json'}\nreport      {out / 'report.html'}")
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description=DESCRIPTION,
        allow_abbrev=False,
        epilog="Further --field value override the run's configuration, such as --evaluators.retrieval.data SHARDS, "
        "--batch-size 512 or --mesh.data 4. The same command goes on where an evaluation was interrupted. "
        "Exit codes: 0 done, 1 fault in code, 2 bad input or configuration, 4 infrastructure, such as a damaged checkpoint.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--checkpoint",
        metavar="WORKDIR|STEP_DIR|hf:DIR",
        help="a run (its last step), one checkpoint of it, or a model of others: hf:DIR, open_clip:DIR, big_vision:FILE.npz",
    )
    what.add_argument(
        "--compare",
        nargs="+",
        metavar="WORKDIR|STEP_DIR",
        help="several of them: evaluates each, unless it has an evaluation.json of the same evaluators, data and weights; prints a "
        "table with the best of each row marked, and writes comparison.html and comparison.csv, the latter with one line for each metric",
    )
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="evaluators to run (default: all)")
    parser.add_argument(
        "--suite", metavar="FILE.py", help="evaluators from a Python file with evaluators() -> {name: evaluator}, instead of the run's own"
    )
    parser.add_argument("--weights", choices=("auto", "ema", "raw"), help="trained weights or their moving average (default: the run's)")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: the run's workdir; with --compare: comparison)")
    parser.add_argument(
        "--keep-embeddings",
        choices=("interrupted", "always", "never"),
        default="interrupted",
        help=f"what stays in DIR/{CACHE}: interrupted (default) keeps embeddings while an evaluation runs, so that it goes on where it was "
        "killed, and empties the folder when one has finished; always leaves them for later ones; never writes none",
    )
    parser.add_argument(
        "--embeddings-gb", type=float, default=4.0, metavar="GB", help="what that folder may hold; older sets make room (default: 4)"
    )
    page = parser.add_argument_group(
        "search page",
        "A page on which a person types words or drops an image, and sees what of a set comes closest. The set is embedded once and kept "
        f"in DIR/{CACHE}. Nothing leaves the machine.",
    )
    page.add_argument("--serve", action="store_true", help="open the page of a --checkpoint instead of evaluating it")
    page.add_argument("--data", metavar="SHARDS", help="the set (default: the data of the first evaluator)")
    page.add_argument("--limit", type=int, metavar="N", help="only the first N records of it")
    page.add_argument("--host", help="address to listen on (default: 127.0.0.1, this machine only)")
    page.add_argument("--port", type=int, help="port to listen on (default: a free one)")
    parser.add_argument(
        "--allow-types", nargs="+", default=(), metavar="MODULE", help="modules outside vlm_jax whose types the configuration may name"
    )
    return parser


@dataclasses.dataclass(frozen=True)
class Job:
    """A checkpoint and what is to be evaluated of it, checked as far as that goes without loading it."""

    config: Config
    workdir: Path
    home: Path
    """Where results go unless another place is named: the run's own folder, and below `evaluation` for imported models."""
    at: int | None
    """The step that was asked for; None: the last good one."""
    weights: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, path: str, options: argparse.Namespace, overrides: Sequence[str]) -> "Job":
        """Reads the configuration of a checkpoint and opens the data.

        Raises:
          InputError: anything that is named is missing or malformed.
        """
        folder = imported.resolve(path)
        config, workdir, at = configs.of_checkpoint(folder, allow=options.allow_types)
        if not config.mesh.fits(jax.device_count()):
            config = dataclasses.replace(config, mesh=sharding.Mesh())
        if options.suite:
            config = dataclasses.replace(config, evaluators=configs.load_suite(options.suite))
        config = configs.parse(config, overrides, prog=PROG, description=DESCRIPTION)
        unknown = sorted(set(options.tasks or ()) - set(config.evaluators))
        if unknown:
            has = f"this {'suite' if options.suite else 'run'} has {', '.join(config.evaluators) or 'no evaluators'}"
            raise InputError(f"tasks {', '.join(unknown)}: {has}")
        if not config.evaluators and not options.serve:
            raise InputError(f"checkpoint {path}: its run has no evaluators; name some with --suite FILE.py")
        found = checkpoint.steps(workdir)
        if not found:
            raise InputError(f"checkpoint {workdir}: it holds no complete checkpoint yet")
        home = workdir if folder == path else Path("evaluation") / workdir.name
        job = cls(config, workdir, home, at, options.weights or config.weights, tuple(options.tasks or config.evaluators))
        suites.check({name: job.evaluators[name] for name in job.names})
        return job

    @property
    def evaluators(self) -> dict[str, Any]:
        """With their data filled in."""
        return suites.filled(self.config.evaluators, self.stream)

    @property
    def stream(self) -> Any:
        """The data stream that it was trained on, with the vocabulary of the run."""
        return next(iter(self.config.streams.values())).kept(str(self.workdir))

    @property
    def label(self) -> str:
        """A name for columns."""
        name = self.workdir.absolute().name
        return name if self.at is None else f"{name}@{self.at}"

    def known(self, path: Path) -> list[dict[str, Any]] | None:
        """The records of a file, where they are of this checkpoint, these evaluators and this data; else None."""
        step = checkpoint.steps(self.workdir)[-1] if self.at is None else self.at
        average = (self.workdir / "checkpoints" / str(step) / "average").is_dir()
        used = "ema" if self.weights != "raw" and average else "raw"
        config = configs.to_json(self.config)
        wanted = {name: suites.made_of(config, self.evaluators[name], step, used) for name in self.names}
        found = {record["dataset"]: record for record in records.read_evaluation_json(path)}
        if all(name in found and found[name].get("made_of") == key for name, key in wanted.items()):
            return [found[name] for name in wanted]
        return None

    def run(self, out: Path, keep: str, limit: int) -> None:
        """Evaluates, and writes evaluation.json and report.html.

        Args:
          keep: as `--keep-embeddings`.
          limit: of the embeddings kept, in bytes.
        """
        suite, weights, step = self._load()
        pieces = None if keep == "never" else embeddings.Pieces(out / CACHE, self._identity(step), limit)
        with jax.set_mesh(suite.compiled.mesh):
            suite.run(
                step,
                weights,
                out,
                rows=[row for row in logs.read(self.workdir) if row["step"] <= step],
                attempts=goodput.read(self.workdir),
                names=self.names,
                pretrained=str(self.workdir / "checkpoints" / str(step)),
                pieces=pieces,
            )
        if pieces and jax.process_index() == 0 and pieces.found:
            print(f"{pieces.found:,} embeddings were kept by an earlier evaluation in {pieces.folder}")
        if pieces and keep == "interrupted":
            pieces.clear()

    def subject(self, out: Path, keep: str, limit: int) -> tuple[base.Subject, int]:
        """The model with its transform and tokenizer, and the step. Arguments as of `run`.

        Raises:
          InputError: it does not embed images and texts.
        """
        suite, weights, step = self._load()
        with jax.set_mesh(suite.compiled.mesh):
            subject = suite.subject(weights, None if keep == "never" else embeddings.Pieces(out / CACHE, self._identity(step), limit))
        model = nnx.eval_shape(lambda: nnx.merge(suite.compiled.graphdef, subject.variables))
        if not all(hasattr(model, name) for name in ("embed_image", "embed_text")):
            raise InputError(f"checkpoint {self.workdir}: {type(self.config.system).__name__} does not embed images and texts")
        return subject, step

    def _load(self) -> tuple[suites.Suite, states.State, int]:
        config, mesh = self.config, self.config.mesh.make()
        model = states.Model.of(config.system)
        suite = suites.of(
            config.evaluators,
            model,
            mesh,
            stream=self.stream,
            batch_size=config.batch_size,
            precision=config.precision,
            weights=self.weights,
            name=self.workdir.absolute().name,
            config=configs.to_json(config),
        )
        weights, step = checkpoint.load_weights(self.workdir, self.at, states.weights_of(model), mesh, on_corrupt=config.on_corrupt)
        return suite, weights, step

    def _identity(self, step: int) -> dict[str, Any]:
        """What tells the embeddings of these weights from those of others."""
        config, stream = self.config, self.stream
        return {
            "weights": [_seal(folder) for folder in (self.workdir / "checkpoints" / str(step), self.workdir / "frozen")],
            "kind": self.weights,
            "system": configs.to_json(config.system),
            "precision": config.precision,
            "tokenizer": [configs.to_json(stream.tokenizer), embeddings.of_files([stream.tokenizer.load().config.path])],
            "device": [jax.devices()[0].device_kind, jax.__version__, *config.mesh.make().shape.items()],
        }


def _check_serving(options: argparse.Namespace) -> None:
    given = [name for name in ("data", "limit", "host", "port") if getattr(options, name) is not None]
    if given and not options.serve:
        own = f"; an evaluator's is --evaluators.NAME.{given[0]}" if given[0] in ("data", "limit") else ""
        raise InputError(f"{given[0]} {getattr(options, given[0])}: belongs to the search page; add --serve, or leave it out{own}")
    if options.serve and (options.compare or jax.process_count() > 1):
        raise InputError("serve: one process serves the page of one --checkpoint")


def _serve(job: Job, options: argparse.Namespace) -> int:
    """Opens the search page and stays there until Ctrl-C."""
    data = options.data or next((e.data for e in job.evaluators.values()), job.stream.val)
    base.open_records(data, options.limit or 0)
    keep = "always" if options.keep_embeddings == "interrupted" else options.keep_embeddings
    subject, step = job.subject(_folder(options.out or job.home), keep, int(options.embeddings_gb * 1e9))
    searched = index.Index(subject, data, options.limit or 0)
    facts = {"model": job.label.partition("@")[0], "step": step, "name": Path(data.split("::")[0]).name}
    server.serve(server.Server(searched, facts, options.host or "127.0.0.1", options.port or 0))
    return DONE


def _evaluate(job: Job, out: Path, options: argparse.Namespace) -> None:
    job.run(out, options.keep_embeddings, int(options.embeddings_gb * 1e9))


def _compare(jobs: Sequence[Job], options: argparse.Namespace) -> int:
    """Evaluates what has not been evaluated yet, each into a folder of its own, and prints and writes all numbers."""
    labels, out, first = _labels(jobs), _folder(options.out or "comparison"), jax.process_index() == 0
    compared: dict[str, Sequence[Mapping[str, Any]]] = {}
    for job, label in zip(jobs, labels, strict=True):
        own = out / label
        found = next((r for folder in (own, job.workdir) if (r := job.known(folder / "evaluation.json"))), None)
        if found is None:
            if first:
                print(f"evaluating {label} ({job.workdir})", flush=True)
            _evaluate(job, _folder(own), options)
            found = records.read_evaluation_json(own / "evaluation.json")
        elif first:
            print(f"{label} ({job.workdir}) is evaluated already", flush=True)
        compared[label] = [{**record, "model": label} for record in found]
    if first:
        records.write_csv(out / "comparison.csv", [record for found in compared.values() for record in found])
        comparison.write(out / "comparison.html", compared)
        print("\n" + terminal.comparison(compared, shutil.get_terminal_size((120, 0)).columns))
        print(f"\ncomparison  {out / 'comparison.csv'}\npage        {out / 'comparison.html'}")
    return DONE


def _labels(jobs: Sequence[Job]) -> list[str]:
    """One name for each, the same in every comparison of these."""
    labels: list[str] = []
    for i, job in enumerate(jobs):
        if (job.workdir.absolute(), job.at) in [(other.workdir.absolute(), other.at) for other in jobs[:i]]:
            raise InputError(f"compare {job.workdir}: named twice")
        label = job.label
        if label in labels:
            label += "-" + hashlib.sha256(str(job.workdir.absolute()).encode()).hexdigest()[:6]
        labels.append(label)
    return labels


def _folder(path: str | Path) -> Path:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out {path}: {error.strerror or error}") from None
    return Path(path)


def _seal(folder: Path) -> str:
    """A hash of the manifest of a folder, or of the names, sizes and times of its files where it has none; empty without a folder."""
    if not folder.is_dir():
        return ""
    if (folder / manifest.NAME).is_file():
        return hashlib.sha256((folder / manifest.NAME).read_bytes()).hexdigest()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(repr(embeddings.of_files(files)).encode()).hexdigest()


if __name__ == "__main__":
    configs.entry_point(main)
