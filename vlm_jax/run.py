"""One training run: built and checked as a whole, then trained from where its workdir stands."""

import dataclasses
import functools
import itertools
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from vlm_jax import config as configs
from vlm_jax import errors, image_tower, imported
from vlm_jax import program as programs
from vlm_jax.config import Config
from vlm_jax.data import pipeline
from vlm_jax.errors import InputError
from vlm_jax.evaluation import suite as suites
from vlm_jax.training import (
    checkpoint,
    duration,
    flops,
    goodput,
    initialization,
    interruption,
    loop,
    sharding,
    tree,
    watchdog,
)
from vlm_jax.training import log as logs
from vlm_jax.training import state as states


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that is built, and checked, before the first step."""

    config: Config
    mesh: jax.sharding.Mesh
    program: programs.Program
    model: states.Model
    intervals: loop.Intervals
    evaluate_every: dict[str, int]
    """Interval of each evaluator in steps."""
    suite: suites.Suite
    batches: Any
    order: dict[str, Any]
    """What the order of the data follows from; kept with every checkpoint and compared on resume."""
    summary: str
    began: float
    """When the building began, in seconds since 1970."""

    @classmethod
    def build(
        cls,
        config: Config,
        *,
        name: str,
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
    ) -> "Run":
        """Builds a run; nothing is written but caches.

        Raises:
          InputError: something in the configuration or the data cannot work.
        """
        began = time.time()
        mesh = config.mesh.make(devices)
        for stream in config.streams.values():
            sharding.check_batch(stream.batch_size or config.batch_size, mesh, config.microbatches)
        config = dataclasses.replace(config, data=_prepared(config.data))
        descriptions = {name: stream.describe() for name, stream in config.streams.items()}
        config.system.check(descriptions)

        first = next(iter(config.streams))
        batch_size = config.streams[first].batch_size or config.batch_size
        examples = descriptions[first].train_records
        intervals, evaluate_every = _intervals(config, batch_size, examples)
        made = programs.Program.of(config, mesh, total_steps=intervals.total, batch_size=batch_size, examples=examples)
        return cls(
            config=config,
            mesh=mesh,
            program=made,
            model=made.model,
            intervals=intervals,
            evaluate_every=evaluate_every,
            suite=suites.of(
                config.evaluators,
                made.model,
                mesh,
                stream=config.streams[first],
                batch_size=config.batch_size,
                precision=config.precision,
                weights=config.weights,
                name=name,
                config=configs.to_json(config),
            ),
            batches=pipeline.train_iterator(
                config.streams,
                batch_size=config.batch_size,
                rows=functools.partial(sharding.rows, mesh=mesh),
                seed=config.seed,
                workers=config.workers,
                threads=config.threads,
            ),
            order={"seed": config.seed, "batch_size": config.batch_size}
            | {f"data of {name}": d.fingerprint for name, d in descriptions.items()},
            summary=f"{jax.device_count()} x {jax.devices()[0].device_kind}, mesh {dict(mesh.shape)}, {config.precision}; "
            + "; ".join(f"{name}: {d.train_records:,} examples" for name, d in descriptions.items())
            + f"; {intervals.total:,} steps of {batch_size:,} ({intervals.total * batch_size / examples:.1f} epochs)",
            began=began,
        )

    def train(self) -> None:
        """Trains from where the workdir stands to the last step, evaluates, and saves.

        Raises:
          InputError: the workdir cannot be written, or holds a run of another model.
        """
        began = time.perf_counter()
        workdir = Path(self.config.workdir)
        _prepare(workdir, self.config)
        process = f"-{jax.process_index()}" if jax.process_count() > 1 else ""
        self.batches.bad_records.log_to(workdir / f"bad_records{process}.jsonl")
        say = print if jax.process_index() == 0 else lambda *_, **__: None
        say(states.table(self.model, self.mesh, self.config.optimizer))
        say(self.summary)
        account = goodput.Goodput(workdir if jax.process_index() == 0 else None, self.began)
        guards = watchdog.Watchdog(self.config.stuck_after), interruption.Interruption()
        checkpoints = checkpoint.Checkpoints(workdir, self.config.keep)
        with jax.set_mesh(self.mesh), guards[0], guards[1]:
            try:
                with account.spent("restore" if checkpoint.steps(workdir) else "start"):
                    state = self._start(checkpoints, say)
                if int(state["step"]) >= self.intervals.total:
                    say(f"step {int(state['step'])}: nothing left to train; raise --steps or choose another --workdir")
                    attempts = goodput.read(workdir)
                    self.suite.run(int(state["step"]), state, workdir, rows=logs.read(workdir), attempts=attempts)
                else:
                    self._fit(state, checkpoints, workdir, account, *guards)
            finally:
                checkpoints.close()
                self.batches.close()
        say(f"checkpoint  {workdir / 'checkpoints' / str(self.intervals.total)}")
        say(f"metrics     {workdir / 'metrics.jsonl'}, TensorBoard: {workdir / 'tensorboard'}")
        say(f"evaluation  {workdir / 'evaluation.json'}")
        say(f"report      {workdir / 'report.html'}")
        say(f"done in {time.perf_counter() - began:.0f} s")

    def try_out(self) -> None:
        """One compiled step, and what it takes; writes nothing."""
        print(states.table(self.model, self.mesh, self.config.optimizer))
        print(self.summary)
        with jax.set_mesh(self.mesh):
            state = self.program.start()
            sizes = {name: sum(x.nbytes for x in jax.tree.leaves(part)) for name, part in state.items()}
            batch = sharding.put_batch(next(self.batches), self.mesh)
            self.batches.close()
            began = time.perf_counter()
            compiled = self.program.jitted().lower(state, batch).compile()
            compiling = time.perf_counter() - began
            began = time.perf_counter()
            state, metrics = compiled(state, batch)
            loss = float(metrics["loss"])
        print("batch: " + ", ".join(f"{path} {x.shape} {x.dtype}" for path, x in tree.flatten(batch).items()))
        print("state: " + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items() if size) + " in all")
        memory = compiled.memory_analysis()
        if memory is not None:
            arguments, temporary = memory.argument_size_in_bytes / 1e6, memory.temp_size_in_bytes / 1e6
            print(f"one device: arguments {arguments:.1f} MB, temporary {temporary:.1f} MB, as the compiler reports them")
        print(f"compiled in {compiling:.1f} s, first step {time.perf_counter() - began:.2f} s, loss {loss:.4f}")

    def _start(self, checkpoints: checkpoint.Checkpoints, say) -> states.State:
        """The last checkpoint of the workdir, or fresh weights, or those that init_from names."""
        found = checkpoints.resume(self.program.abstract, self.mesh, self.config.on_corrupt)
        if found is not None:
            latest, state, data = found
            before = data["order"]
            changed = [f"{name} was {before.get(name)}, is {now}" for name, now in self.order.items() if before.get(name) != now]
            if changed:
                raise InputError(
                    f"workdir {checkpoints.workdir}: its checkpoint was made with other data ({'; '.join(changed)}); choose "
                    "another --workdir, with --init-from this one to start from its weights"
                )
            self.batches.set_state(data["position"])
            say(f"resumed from step {latest} in {checkpoints.workdir}")
            return state
        state = self.program.start()
        if self.config.init_from:
            loaded, words = self._initial_weights(state)
            state |= loaded
            say(words)
        return state

    def _initial_weights(self, fresh: states.State) -> tuple[states.State, str]:
        """Parameters and buffers with those that init_from names in their place, divided as this system says, and what came from where."""
        like = tree.flatten(self.model.params) | tree.flatten(self.model.buffers)
        found, stored = [], {}
        for source in map(initialization.Source.parse, self.config.init_from):
            if source.path not in stored:
                stored[source.path] = self._stored(source.path)
            leaves = self.config.system.adapt(source.take(stored[source.path].leaves))
            try:
                found.append((source, leaves | states.cast_like(tree.unflatten(leaves), like)))
            except InputError as error:
                raise InputError(f"init_from {source.path}: {error}") from None
        filled, words = initialization.fill(list(like), found)
        for path in dict.fromkeys(source.path for source, leaves in found if any(name.startswith("image/") for name in leaves)):
            different = image_tower.prepared_differently(stored[path].preprocessing, self.config)
            words += f"\n{path}: {different}" if different else ""
        state = {}
        for name in ("params", "frozen", "buffers"):
            own = tree.flatten(fresh[name])
            state[name] = tree.unflatten({path: filled[path].astype(x.dtype) if path in filled else x for path, x in own.items()})
        state = jax.device_put(state, {name: self.program.shardings[name] for name in state})  # adapted ones may lie elsewhere
        return state | {"average": self.config.optimizer.average().init(state["params"])}, words

    def _stored(self, path: str) -> image_tower.Weights:
        """All parameters and buffers of a checkpoint or of a model of others, the moving average of ours where it is to be used."""
        found = image_tower.weights_of_others(path, getattr(getattr(self.config.system, "image", None), "image_size", None))
        if found is not None:
            return found
        other, workdir, at = configs.of_checkpoint(path)
        shapes = states.weights_of(states.Model.of(other.system))
        weights, _ = checkpoint.load_weights(workdir, at, shapes, self.mesh, on_corrupt=self.config.on_corrupt)
        leaves = tree.flatten(states.variables(weights, self.config.weights))
        return image_tower.Weights(leaves, imported.preprocessing_of(other))

    def _fit(
        self,
        state: states.State,
        checkpoints: checkpoint.Checkpoints,
        workdir: Path,
        account: goodput.Goodput,
        guard: watchdog.Watchdog,
        interrupted: interruption.Interruption,
    ) -> None:
        first_batch = next(self.batches)
        forward = flops.forward(self.program.forward, state, sharding.put_batch(first_batch, self.mesh))
        log = logs.Log(
            workdir,
            total_steps=self.intervals.total,
            first_step=int(state["step"]),
            batch_size=self.config.batch_size,
            flops_per_example=3 * forward / self.config.batch_size,
            peak_flops=flops.peak(jax.devices()[0].device_kind),
            wandb=self.config.wandb,
            config=configs.to_json(self.config),
        )

        def evaluate(number: int, state: states.State) -> None:
            due = [name for name, every in self.evaluate_every.items() if self.intervals.due(number, every)]
            rows, attempts = logs.read(workdir), goodput.read(workdir)
            metrics = self.suite.run(number, state, workdir, rows=rows, attempts=attempts, names=due)
            if not metrics:
                return
            log.write(number, metrics)
            log.say(f"step {number}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))

        try:
            loop.fit(
                state,
                itertools.chain([first_batch], self.batches),
                step=self.program.jitted(),
                put=functools.partial(sharding.put_batch, mesh=self.mesh),
                rate=self.program.rate,
                intervals=self.intervals,
                log=log,
                evaluate=evaluate,
                save=lambda number, state: checkpoints.save(
                    number, state, {"position": self.batches.get_state(), "order": self.order}
                ),
                max_skipped=self.config.max_skipped,
                account=account,
                watchdog=guard,
                interruption=interrupted,
                of_data=self.batches.metrics,
            )
            with account.spent("save"):
                checkpoints.wait()
        finally:
            log.close()
        seconds = account.note(self.intervals.total)
        if jax.process_index() == 0:
            print(f"goodput     {goodput.text(seconds)}")


def _intervals(config: Config, batch_size: int, examples: int) -> tuple[loop.Intervals, dict[str, int]]:
    """All durations in steps, and those of the single evaluators."""
    known = {"batch_size": batch_size, "examples": examples}
    total = duration.steps(config.steps, "steps", **known)
    if total < 1:
        raise InputError(f"steps {config.steps!r}: less than one step")

    def every(field: str, value: int | str) -> int:
        """A share of a short run that rounds to no step means every step, not never."""
        result = duration.steps(value, field, **known, total=total)
        return result if str(value) == "0" else max(result, 1)

    default = every("eval_every", config.eval_every)
    evaluators = {
        name: every(f"evaluators.{name}.every", evaluator.every) if evaluator.every else default
        for name, evaluator in config.evaluators.items()
    }
    return (
        loop.Intervals(
            total=total,
            log=max(every("log_every", config.log_every), 1),
            evaluate=math.gcd(*evaluators.values()),
            save=every("save_every", config.save_every),
        ),
        evaluators,
    )


def _prepared(data: Any) -> Any:
    """The streams after what must be made before they can be read, such as a vocabulary."""
    return {name: stream.prepared() for name, stream in data.items()} if isinstance(data, Mapping) else data.prepared()


def _prepare(workdir: Path, config: Config) -> None:
    """Makes the folder and keeps the configuration in it; does not go on with another model in the same place."""
    kept = workdir / "config.json"
    if kept.is_file():
        before, now = configs.to_json(configs.load(kept, allow=configs.modules(config)))["system"], configs.to_json(config)["system"]
        changed = sorted(name for name in now if now[name] != before.get(name))
        if changed:
            raise InputError(
                f"workdir {workdir}: it holds a run of another model (system.{', system.'.join(changed)} changed); "
                "choose another --workdir or remove this one"
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not os.access(workdir, os.W_OK):
            raise PermissionError(f"no permission to write in {workdir}")
        if jax.process_index() == 0:
            configs.save(kept, config)
            for stream in config.streams.values():
                stream.keep(str(workdir))
    except OSError as error:
        if errors.exit_code(error) == errors.INFRASTRUCTURE:
            raise
        raise InputError(f"workdir {workdir}: {error.strerror or error}; choose another --workdir") from None
