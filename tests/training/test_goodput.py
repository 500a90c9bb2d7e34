"""Time of a run over its starts: buckets that add up, and steps that are made again."""

import json
import time

import pytest

from vlm_jax.training import goodput
from vlm_jax.training.goodput import Attempt


def test_buckets_and_productive_time_add_up_to_wall_time(tmp_path):
    account = goodput.Goodput(tmp_path, time.time() - 2.0)
    with account.spent("restore"):
        time.sleep(0.01)
    account.trains_from(5)
    with account.spent("data wait"):
        time.sleep(0.02)
    seconds = account.note(7)
    assert sum(value for name, value in seconds.items() if name != "wall") == pytest.approx(seconds["wall"], abs=1e-6)
    assert seconds["start"] >= 2.0 and seconds["restore"] >= 0.01 and seconds["data wait"] >= 0.02 and seconds["redone"] == 0


def test_a_second_start_counts_the_time_between_and_the_steps_that_were_lost(tmp_path):
    first = goodput.Goodput(tmp_path, 1000.0)
    first.trains_from(0)
    first.note(10)
    entries = json.loads((tmp_path / "goodput.json").read_text())
    entries[0] |= {"began": 1000.0, "ended": 1100.0, "seconds": dict.fromkeys(goodput.BUCKETS, 0.0) | {"start": 20.0}}
    (tmp_path / "goodput.json").write_text(json.dumps(entries))
    second = goodput.Goodput(tmp_path, 1130.0)
    second.trains_from(6)  # steps 7 to 10 are lost
    seconds = second.note(10)
    assert seconds["down"] == 30.0 and seconds["redone"] == pytest.approx(80.0 * 4 / 10)
    assert sum(value for name, value in seconds.items() if name != "wall") == pytest.approx(seconds["wall"], abs=1e-6)


def test_steps_that_are_lost_twice_count_twice():
    none = dict.fromkeys(goodput.BUCKETS, 0.0)
    attempts = [Attempt(0, 10, 0, 10, none), Attempt(10, 18, 2, 10, none), Attempt(18, 28, 0, 10, none)]
    seconds = goodput.summary(attempts)
    assert seconds["redone"] == pytest.approx(10 + 8) and seconds["productive"] == pytest.approx(10)
    assert goodput.text(seconds) == "36% of 28 s; redone 18.0 s"


def test_a_damaged_account_does_not_stop_a_run(tmp_path):
    (tmp_path / "goodput.json").write_text('[{"began": 1')
    account = goodput.Goodput(tmp_path, time.time())
    account.trains_from(0)
    assert account.note(1)["down"] == 0
    assert len(json.loads((tmp_path / "goodput.json").read_text())) == 1
