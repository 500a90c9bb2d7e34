"""What a run says while it goes: one progress line, metrics.jsonl, TensorBoard, and Weights & Biases if wanted."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from vlm_jax import files
from vlm_jax.errors import InputError

INPUT_BOUND = 0.1
"""Share of the time without data from which a run is said to be input-bound."""


class Log:
    """Writes metrics of steps. Only the first process writes files and the progress line."""

    def __init__(
        self,
        workdir: Path,
        *,
        total_steps: int,
        first_step: int,
        batch_size: int,
        flops_per_example: float,
        peak_flops: float | None,
        wandb: str = "",
        config: Mapping[str, Any] | None = None,
    ):
        """
        Args:
          flops_per_example: of forward and backward pass.
          peak_flops: of one device; None where it is not known.
          wandb: a project, or empty.

        Raises:
          InputError: wandb is asked for and not installed.
        """
        self._since: float | None = None
        self._batch_size, self._flops, self._peak = batch_size, flops_per_example, peak_flops
        self._writes = jax.process_index() == 0
        self._file = self._board = self._wandb = None
        self._step, self._waited = first_step, 0.0
        self._advised = False
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            disable=not self._writes or None,
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} {bar:12} eta {remaining}{postfix}",
        )
        if self._writes:
            _drop_after(workdir / "metrics.jsonl", first_step)
            self._file = (workdir / "metrics.jsonl").open("a")
            self._board = SummaryWriter(str(workdir / "tensorboard"))
            self._wandb = _wandb_run(wandb, workdir, config) if wandb else None

    def wait(self, seconds: float) -> None:
        """Counts time that the devices waited for the data of a step."""
        self._waited += seconds

    def start_interval(self, step: int, now: float) -> None:
        """Leaves the time up to `now` out of the rates: compilation, evaluation, saving."""
        self._since, self._step, self._waited = now, step, 0.0

    def rates(self, step: int, now: float) -> dict[str, float]:
        """Rates since the last interval began; empty before a step of it is over, and for the first step, which compiles."""
        steps = step - self._step
        if steps < 1 or self._since is None:
            return {}
        seconds = now - self._since
        per_second = steps * self._batch_size / seconds
        per_device = per_second / jax.device_count()
        rates = {
            "examples_per_second": per_second,
            "examples_per_second_per_device": per_device,
            "step_seconds": seconds / steps,
            "input_wait_share": min(self._waited / seconds, 1.0),
        }
        if self._peak:
            rates["mfu"] = per_device * self._flops / self._peak
        return rates

    def train(self, step: int, metrics: Mapping[str, float], now: float) -> None:
        """Metrics of one step, with the rates of the interval that it ended at the time `now`."""
        rates = self.rates(step, now)
        self.write(step, {**metrics, **rates})
        self.progress(step, metrics, rates)
        self.start_interval(step, now)
        if rates.get("input_wait_share", 0.0) >= INPUT_BOUND and not self._advised:
            self._advised = True
            self.say(
                f"input-bound: the devices wait for data {rates['input_wait_share']:.0%} of the time. More --workers (processes) or "
                "--threads decode more images at once, --data.image.decoder simplejpeg decodes faster, and data/to_array_record.py "
                "makes large images small"
            )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl and the same to the other places. Not-a-number becomes null."""
        if self._file is None or self._board is None:
            return
        finite = {name: float(v) if math.isfinite(v) else None for name, v in metrics.items()}
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | finite) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(dict(metrics), step=step)

    def progress(self, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        """The progress line: a bar on a terminal, a plain line elsewhere."""
        words = [f"loss {metrics['loss']:.4f}"]
        if rates:
            words.append(f"{rates['examples_per_second']:,.0f} examples/s")
            if jax.device_count() > 1:
                words.append(f"{rates['examples_per_second_per_device']:,.0f} a device")
            if "mfu" in rates:
                words.append(f"MFU {rates['mfu']:.1%}")
            share = rates["input_wait_share"]
            words.append(f"input wait {share:.0%}{' (input-bound)' if share >= INPUT_BOUND else ' (compute-bound)'}")
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix_str(", ".join(words), refresh=not self._bar.disable)
        if self._bar.disable and self._writes:
            left = (self._bar.total - step) * rates.get("step_seconds", 0.0)
            eta = f", eta {tqdm.format_interval(left)}" if rates else ""
            print(f"step {step}/{self._bar.total}: {', '.join(words)}{eta}", flush=True)

    def say(self, text: str) -> None:
        """A line beside the progress line."""
        if self._writes:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Flushes and closes all places."""
        self._bar.close()
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()
        if self._wandb:
            self._wandb.finish()


def read(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that was cut off by a crash is left out."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _drop_after(file: Path, step: int) -> None:
    """Forgets what an interrupted run wrote beyond its last checkpoint: those steps are made again."""
    if file.is_file():
        kept = [row for row in read(file.parent) if row["step"] <= step]
        files.write_text(file, "".join(json.dumps(row) + "\n" for row in kept))


def _wandb_run(project: str, workdir: Path, config: Mapping[str, Any] | None):
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(f"wandb {project}: Weights & Biases is not installed; pip install wandb, or leave --wandb out") from None
    return wandb.init(project=project, name=workdir.name, dir=str(workdir), config=dict(config or {}), resume="allow")
