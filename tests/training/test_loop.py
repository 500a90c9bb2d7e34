"""The loop's order and the log: what is written when, rates, and the stop after steps that are not finite."""

import json
import signal
import threading
import time

import jax.numpy as jnp
import pytest

from vlm_jax.errors import Preempted
from vlm_jax.training import goodput, interruption, loop, watchdog
from vlm_jax.training import log as logs


def _log(workdir, first=0, total=6):
    return logs.Log(workdir, total_steps=total, first_step=first, batch_size=8, flops_per_example=1e9, peak_flops=1e12)


def _fit(tmp_path, *, losses, log_every=1, evaluate_every=2, save_every=3, max_skipped=2, signal_at=0, of_data=dict):
    """Runs the loop over steps with these losses; returns what happened, in order."""
    events = []
    interrupted = interruption.Interruption()

    def batches():
        for number, loss in enumerate(losses):
            events.append(f"batch {number}")
            yield loss

    def step(state, loss):
        if int(state["step"]) + 1 == signal_at:
            signal.raise_signal(signal.SIGTERM)
        skipped = jnp.asarray(int(loss != loss))
        return {"step": state["step"] + 1}, {"loss": jnp.asarray(loss), "skipped": skipped}

    log = _log(tmp_path, total=len(losses))
    try:
        with interrupted:
            loop.fit(
                {"step": jnp.asarray(0)},
                batches(),
                step=step,
                put=lambda batch: batch,
                rate=lambda step: 0.1 * step,
                intervals=loop.Intervals(total=len(losses), log=log_every, evaluate=evaluate_every, save=save_every),
                log=log,
                evaluate=lambda number, state: events.append(f"evaluate {number}"),
                save=lambda number, state: events.append(f"save {number}"),
                max_skipped=max_skipped,
                account=goodput.Goodput(tmp_path, time.time()),
                watchdog=watchdog.Watchdog(0),
                interruption=interrupted,
                of_data=of_data,
            )
    except Preempted as stopped:
        events.append(str(stopped))
    finally:
        log.close()
    return events, logs.read(tmp_path)


def test_evaluation_and_save_come_before_the_next_batch_is_taken(tmp_path):
    events, _ = _fit(tmp_path, losses=[1.0, 2.0, 3.0, 4.0])
    batches = [f"batch {i}" for i in range(4)]
    assert events == [*batches[:2], "evaluate 2", batches[2], "save 3", batches[3], "evaluate 4", "save 4"]


def test_a_signal_saves_after_its_step_and_ends_the_run(tmp_path):
    events, rows = _fit(tmp_path, losses=[1.0, 2.0, 3.0, 4.0], evaluate_every=2, save_every=3, signal_at=2)
    assert events[:3] == ["batch 0", "batch 1", "save 2"] and len(events) == 4
    assert events[3].startswith("SIGTERM after step 2 of 4, which is saved")
    assert [row["step"] for row in rows] == [1, 2]


def test_a_signal_during_the_last_step_changes_nothing(tmp_path):
    events, _ = _fit(tmp_path, losses=[1.0, 2.0], evaluate_every=0, save_every=0, signal_at=2)
    assert events == ["batch 0", "batch 1", "evaluate 2", "save 2"]


def test_what_the_data_say_is_logged_with_the_step_that_was_fed(tmp_path):
    fed = iter(range(12, 100, 12))
    _, rows = _fit(tmp_path, losses=[1.0, 2.0, 3.0], evaluate_every=0, save_every=0, of_data=lambda: {"pairs/web/examples": next(fed)})
    assert [(row["step"], row["pairs/web/examples"]) for row in rows] == [(1, 12), (2, 24), (3, 36)]


def test_metrics_are_stamped_with_their_own_step(tmp_path):
    _, rows = _fit(tmp_path, losses=[1.0, 2.0, 3.0, 4.0, 5.0], evaluate_every=0, save_every=0)
    assert [(row["step"], row["loss"]) for row in rows] == [(i, float(i)) for i in range(1, 6)]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_first_step_and_intervals_are_logged(tmp_path):
    _, rows = _fit(tmp_path, losses=[1.0] * 7, log_every=3, evaluate_every=0, save_every=0)
    assert [row["step"] for row in rows] == [1, 3, 6, 7]


def test_steps_that_are_not_finite_are_counted_and_stop_the_run_in_a_row(tmp_path):
    nan = float("nan")
    (tmp_path / "a").mkdir()
    _, rows = _fit(tmp_path / "a", losses=[1.0, nan, 1.0, nan, 1.0])
    assert [row["skipped"] for row in rows] == [0, 1, 1, 2, 2]
    assert rows[1]["loss"] is None
    (tmp_path / "b").mkdir()
    with pytest.raises(loop.NotFinite, match="2 steps in a row up to step 4"):
        _fit(tmp_path / "b", losses=[1.0, 1.0, nan, nan, 1.0, 1.0], evaluate_every=0, save_every=0)


def test_rates_are_those_of_the_interval(tmp_path):
    log = _log(tmp_path)
    assert log.rates(1, 10.0) == {}  # the first step compiles
    log.start_interval(1, 10.0)
    log.wait(0.5)
    rates = log.rates(3, 12.0)
    assert rates["examples_per_second"] == 8.0 and rates["step_seconds"] == 1.0 and rates["input_wait_share"] == 0.25
    assert rates["mfu"] == pytest.approx(8.0 / 8 * 1e9 / 1e12)  # eight fake devices
    log.close()


class _Later:
    """A metric of a device that is done at a certain time."""

    def __init__(self, at):
        self.at = at

    def block_until_ready(self):
        threading.Event().wait(max(0.0, self.at - time.perf_counter()))

    def __float__(self):
        self.block_until_ready()
        return 1.0


@pytest.mark.parametrize(
    ("data_seconds", "step_seconds", "bound"), [(0.04, 0.0, "input"), (0.0, 0.04, "compute"), (0.02, 0.1, "compute"), (0.1, 0.05, "input")]
)
def test_the_log_says_whether_data_or_devices_set_the_pace(data_seconds, step_seconds, bound, tmp_path, capsys):
    """A device works while the next batch is made: a wait that it covers is no loss."""
    free = [0.0]

    def batches():
        for _ in range(6):
            threading.Event().wait(data_seconds)
            yield None

    def step(state, batch):
        free[0] = max(free[0], time.perf_counter()) + step_seconds
        return {"step": state["step"] + 1}, {"loss": _Later(free[0]), "skipped": 0}

    log, account = _log(tmp_path), goodput.Goodput(tmp_path, time.time())
    loop.fit(
        {"step": 0}, batches(), step=step, put=lambda batch: batch, rate=lambda step: 0.1,
        intervals=loop.Intervals(total=6, log=1, evaluate=0, save=0), log=log, evaluate=lambda *_: None, save=lambda *_: None,
        max_skipped=2, account=account, watchdog=watchdog.Watchdog(0), interruption=interruption.Interruption(),
    )  # fmt: skip
    log.close()
    shares = [row["input_wait_share"] for row in logs.read(tmp_path)[2:]]
    said = capsys.readouterr().out
    lost = max(0.0, 1 - step_seconds / data_seconds) if data_seconds else 0.0
    assert sum(shares) / len(shares) == pytest.approx(lost, abs=0.25) and (min(shares) > 0.2) == (bound == "input")
    assert f"({bound}-bound)" in said
    assert said.count("More --workers (processes) or --threads") == (bound == "input")
    assert (goodput.read(tmp_path)[0].seconds["data wait"] > 0.15) == (bound == "input")


def test_lines_beyond_the_checkpoint_are_made_again(tmp_path):
    rows = [{"step": step, "loss": 1.0} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 4, "lo')
    assert [row["step"] for row in logs.read(tmp_path)] == [1, 2, 3]
    log = _log(tmp_path, first=2)
    log.close()
    assert [row["step"] for row in logs.read(tmp_path)] == [1, 2]


def test_wandb_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(logs.InputError, match="pip install wandb"):
        logs.Log(
            tmp_path, total_steps=1, first_step=0, batch_size=1, flops_per_example=1, peak_flops=None, wandb="mine"
        )
