"""Tables of numbers as text."""

from vlm_jax.evaluation import records, terminal


def _record(dataset, metrics, **more):
    return records.record(dataset, "t", metrics, model="m", pretrained="p", step=1, weights="raw", **more)


def test_a_table_has_intervals_chance_and_blind_in_columns():
    beside = {"chance": {"acc1": 1 / 64}, "intervals": {"acc1": (0.696, 0.7512)}, "blind": {"acc1": 0.0625}}
    one = _record("held_out", {"acc1": 0.725, "rsum": 389.0}, **beside)
    lines = terminal.table([one]).replace("\N{NARROW NO-BREAK SPACE}", " ").splitlines()
    assert lines[0].split("  ")[-1] == "blind" and lines[1] == "held_out"
    assert lines[2].split() == ["Top-1", "accuracy", "72.5", "%", "[69.6,", "75.1]", "1.6", "%", "6.2", "%"]
    assert lines[3].split()[-1] == "389"
    assert lines[3].index("389") + 2 == lines[2].index("%"), "values end in one column"


def test_columns_that_nothing_fills_are_left_out():
    assert terminal.table([_record("a", {"acc1": 1.0})]).splitlines()[0].split() == ["value"]


def test_numbers_of_examples_are_columns():
    values = {f"{name}@{k}_shots": 0.5 + k / 100 for name in ("accuracy", "objects_accuracy") for k in (0, 4, 16)}
    one = _record("words", values, chance={"accuracy@0_shots": 0.5})
    text = terminal.table([_record("a", {"acc1": 1.0}), one]).replace("\N{NARROW NO-BREAK SPACE}", "")
    first, second = text.split("\n\n")
    assert "words" not in first and "Top-1" in first
    head, plain, named = (line.split() for line in second.splitlines())
    assert head == ["words,", "by", "shots", "0", "4", "16", "chance"]
    assert plain == ["Accuracy", "50.0%", "54.0%", "66.0%", "50.0%"] and named[-3:] == ["50.0%", "54.0%", "66.0%"]
    assert terminal.table([one]).replace("\N{NARROW NO-BREAK SPACE}", "") == second


def test_the_best_of_each_row_is_marked_and_low_ranks_are_good():
    worse = [_record("a", {"acc1": 0.5, "image_retrieval_median_rank": 2.0, "acc5": 1.0})]
    better = [_record("a", {"acc1": 0.6, "image_retrieval_median_rank": 3.0, "acc5": 1.0}), _record("b", {"acc1": 0.1})]
    lines = terminal.comparison({"one": worse, "two": better}).replace("\N{NARROW NO-BREAK SPACE}", "").splitlines()
    assert next(line for line in lines if "Top-1" in line).split()[2:] == ["50.0%", "60.0%", "*"]
    assert next(line for line in lines if "median" in line).split()[-3:] == ["2", "*", "3"]
    assert next(line for line in lines if "Top-5" in line).split()[2:] == ["100.0%", "100.0%"], "no best where all are the same"
    assert [line.split()[2:] for line in lines if "Top-1" in line][1] == ["-", "10.0%"], "nothing to be better than"


def test_many_columns_go_below_one_another():
    own = [_record("a", {"acc1": 0.5}, intervals={"acc1": (0.4, 0.6)})]
    text = terminal.comparison({f"checkpoint {i}": own for i in range(6)}, 80)
    assert all(len(line) <= 80 for line in text.splitlines()) and all(f"checkpoint {i}" in text for i in range(6))
    assert text.count("Top-1 accuracy") == 3


def test_values_that_are_no_numbers_are_said():
    text = terminal.table([_record("a", {"acc1": float("nan")}, intervals={"acc1": (float("nan"), 1.0)})])
    assert "not finite" in text and "[" not in text


def test_names_cannot_command_a_terminal():
    text = terminal.table([_record("\x1b[2Jdata\r", {"acc1": 1.0})])
    assert "\x1b" not in text and "\r" not in text


def test_wide_letters_keep_their_columns():
    lines = terminal.table([_record("日本語のデータ", {"acc1": 0.5}), _record("a", {"acc1": 0.5})]).splitlines()
    assert lines[2] == lines[4]
