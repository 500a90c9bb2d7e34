"""The report is one page that needs nothing else, holds what it was given, and lets nothing in."""

import html.parser
import json
import math

import numpy as np
import pytest

from vlm_jax.evaluation import base, gallery, report, scores

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;\x00\ud800\u202e"
VOID = {"meta", "img", "br", "link", "input"}


class Page(html.parser.HTMLParser):
    """Elements and visible text of a page; fails where tags do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def thumbnail(value=100) -> bytes:
    return base.thumbnail(np.full((8, 8, 3), value, np.uint8))


def zero_shot(word="cat") -> base.Result:
    answers = (
        base.Entry(f"{word} a", score=0.5, verdict="wrong"),
        base.Entry(f"{word} b", score=0.25, verdict="wrong"),
    )
    return base.Result(
        metrics={"acc1": 0.719, "mean_per_class_recall": 0.7},
        tables={
            "confusion": base.Table("true", "predicted", (f"{word} a",), (f"{word} a", f"{word} b"), np.array([[3, 2]]))
        },
        examples=[base.Example("misses", base.Entry(image=thumbnail()), answers, base.Entry(f"{word} right"))],
        chance={"acc1": 0.016, "mean_per_class_recall": 0.016},
        note=f"A model that reads only the colour reaches 12.5 %. {word}",
    )


def retrieval(word="dog") -> base.Result:
    answers = tuple(base.Entry(image=thumbnail(i), score=0.1, verdict="right" if i == 2 else "wrong") for i in range(5))
    return base.Result(
        metrics={"image_retrieval_recall@1": 0.42, "image_retrieval_median_rank": 2.0},
        examples=[base.Example("text to image", base.Entry(f"{word} query"), answers)],
        chance={"image_retrieval_recall@1": 0.002, "image_retrieval_median_rank": 256.0},
    )


def history(prefix="held_out"):
    rows = [{"step": i, "time": 1.0, "loss": 4 / i, "learning_rate": 1e-3, "scale": 10.0 + i, "grad_norm": 1.0,
             "grad_norm/image": 0.5, "positive_similarity": 0.4, "negative_similarity": 0.1, "step_seconds": 0.1}
            for i in range(1, 30)]  # fmt: skip
    return rows + [{"step": i, f"{prefix}/acc1": i / 40} for i in (10, 20, 30)]


def make(tmp_path, **changes) -> tuple[str, Page]:
    given = {
        "title": "demo",
        "config": {"steps": 30, "batch_size": 64, "system": {"_type": "vlm_jax.systems.clip.Clip"}},
        "metrics_history": history(),
        "results": {"held_out": zero_shot(), "relations": retrieval()},
        "environment": {"jax": "0.10.2", "devices": ["cpu:0", "cpu:1"]},
    }
    report.write(tmp_path / "report.html", **(given | changes))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_shows_numbers_with_chance_curves_examples_recipe_and_environment(tmp_path):
    _, page = make(tmp_path)
    for words in ("71.9\u202f%", "1.6\u202f%", "42.0\u202f%", "256", "Loss", "Learning rate", "Cosine of pairs", "cat right",
                  "reads only the colour", "dog query", '"batch_size": 64', "0.10.2", "cpu:0, cpu:1", "30 steps", "cat a"):  # fmt: skip
        assert " ".join(words.split()) in page.text, words
    charts = [a["aria-label"] for tag, a in page.elements if tag == "svg" and "aria-label" in a]
    assert len(charts) == 8, charts
    assert any("Top-1 accuracy 75.0" in label for label in charts)


def test_the_page_needs_no_network_and_runs_no_script(tmp_path):
    text, page = make(tmp_path)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    sources = [a[k] for _, a in page.elements for k in ("src", "href") if k in a]
    assert sources and all(s.startswith(("data:image/jpeg;base64,", "#")) for s in sources)
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert not any(key.startswith("on") for _, a in page.elements for key in a)


def test_it_reads_on_a_phone_and_in_the_dark(tmp_path):
    text, page = make(tmp_path)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.elements
    assert "prefers-color-scheme: dark" in text and "color-scheme: light dark" in text


def test_nothing_that_comes_from_data_or_configuration_becomes_markup(tmp_path):
    _, clean = make(tmp_path)
    text, page = make(
        tmp_path,
        title=HOSTILE,
        config={"steps": 30, HOSTILE: [HOSTILE], "system": {"_type": HOSTILE}, "batch_size": HOSTILE},
        metrics_history=[{**row, HOSTILE: 1.0, f"{HOSTILE}/acc1": 0.5} for row in history(HOSTILE)],
        results={HOSTILE: zero_shot(HOSTILE), "relations": retrieval(HOSTILE)},
        environment={"jax": HOSTILE, HOSTILE: [HOSTILE], "devices": {HOSTILE: HOSTILE}},
    )
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in clean.elements}
    assert {key for _, a in page.elements for key in a} == {key for _, a in clean.elements for key in a}
    assert "<script" not in text and "<img src=x" not in text and "\x00" not in text and "\u202e" not in text
    assert page.text.count("<script>alert(1)</script>") > 12, "and it is shown as the text that it is"


def test_an_image_that_is_not_one_is_not_embedded(tmp_path):
    answer = (base.Entry("a", score=0.1),)
    shown = [
        base.Example("misses", base.Entry(image=data), answer)
        for data in (b"<svg onload='alert(1)'>", b"GIF89a", b"", thumbnail())
    ]
    _, page = make(tmp_path, results={"x": base.Result({"acc1": 0.5}, examples=shown)})
    assert sum(tag == "img" for tag, _ in page.elements) == 1


def test_examples_and_their_bytes_are_bounded(tmp_path, monkeypatch):
    one = base.Example("misses", base.Entry(image=thumbnail()), (base.Entry("a", score=0.1),))
    results = {"x": base.Result({"acc1": 0.5}, examples=[one] * 100)}
    _, page = make(tmp_path, results=results)
    assert sum(tag == "img" for tag, _ in page.elements) == gallery.MAX_EXAMPLES
    assert "76 more not shown" in page.text
    monkeypatch.setattr(gallery, "MAX_IMAGE_BYTES", 2 * len(thumbnail()) + 1)
    _, page = make(tmp_path, results=results)
    assert sum(tag == "img" for tag, _ in page.elements) == 2


def test_the_expected_answer_is_shown_only_where_no_answer_is_right(tmp_path):
    wrong = base.Entry("wrong one", score=0.2, verdict="wrong")
    right = base.Entry("right one", score=0.1, verdict="right")
    shown = [
        base.Example("misses", base.Entry(image=thumbnail()), (wrong,), base.Entry("truth of the first")),
        base.Example("misses", base.Entry(image=thumbnail()), (wrong, right), base.Entry("truth of the second")),
    ]
    _, page = make(tmp_path, results={"x": base.Result({"acc1": 0.5}, examples=shown)})
    assert "truth of the first" in page.text and "truth of the second" not in page.text


def test_a_gallery_of_hits_and_misses_says_how_many_are_which(tmp_path):
    right, wrong = (base.Entry(verdict, image=thumbnail(), verdict=verdict) for verdict in ("right", "wrong"))
    orders = [(right, wrong), (wrong, right), (wrong, wrong)]
    shown = [base.Example("text to image", base.Entry("query"), answers) for answers in orders]
    _, page = make(tmp_path, results={"x": base.Result({"acc1": 0.5}, examples=shown)})
    assert "Text to image: the first answer is right in 1 of 3" in page.text
    _, page = make(tmp_path, results={"x": base.Result({"acc1": 0.5}, examples=shown[1:])})
    assert "Text to image query" in page.text


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1}],
        [{"loss": 3.0}],
        [{"step": 1, "loss": None}, {"step": 2, "loss": None}],
        [{"step": 1, "loss": "high", "flag": True}],
        [{"step": 2, "loss": math.nan}, {"step": 1, "loss": math.inf}],
        [{"step": 5, "loss": 1.0}, {"step": 3, "loss": 2.0}, {"step": 5, "loss": 1e308}],
    ],
)
def test_any_history_makes_a_page(tmp_path, rows):
    text, _ = make(tmp_path, metrics_history=rows)
    assert "NaN" not in text and ">nan<" not in text


def test_empty_results_configuration_and_environment_are_left_out(tmp_path):
    _, page = make(tmp_path, results={}, config={}, environment={}, metrics_history=[])
    assert not any(tag == "section" for tag, _ in page.elements)
    assert "demo" in page.text and "not trained" in page.text


def test_a_metric_that_is_not_a_number_says_so(tmp_path):
    _, page = make(tmp_path, results={"x": base.Result({"acc1": math.nan, "image_retrieval_median_rank": math.inf})})
    assert page.text.count("not finite") >= 2


def test_configuration_is_shown_as_it_resolves(tmp_path):
    config = {"a": {"b": [1, 2.5, None]}, "path": "é/ü"}
    _, page = make(tmp_path, config=config)
    assert " ".join(json.dumps(config, indent=2, ensure_ascii=False).split()) in page.text


def test_a_table_that_is_no_confusion_matrix_is_shown_as_it_is(tmp_path):
    table = base.Table("<shape>", "count", ("one", "two"), ("recall", "images"), np.array([[0.25, 12], [0.5, 7]]))
    _, page = make(tmp_path, results={"x": base.Result({"acc1": 0.5}, {"by_shape": table})}, config={})
    assert "By shape <shape> Recall Images one 25.0 % 12 two 50.0 % 7" in page.text


def test_intervals_and_the_blind_baseline_stand_beside_the_value(tmp_path):
    result = base.Result(
        {"acc1": 0.9431, "image_retrieval_median_rank": 3.0, "auroc": 0.5},
        chance={"acc1": 0.1},
        intervals={"acc1": (0.9312, 0.9544), "image_retrieval_median_rank": (2.0, 4.0), "auroc": (math.nan, 0.6)},
        blind={"acc1": 0.125},
    )
    _, page = make(tmp_path, results={"x": result}, config={})
    assert (
        "Top-1 accuracy 95\u202f% interval chance 10.0\u202f% blind 12.5\u202f% 94.3\u202f% [93.1, 95.4] 10.0\u202f% 12.5\u202f%".replace(
            "\u202f", " "
        )
        in page.text.replace("\u202f", " ")
    )
    assert "Text to image, median rank 3 [2, 4]" in page.text and "[not finite]" in page.text
    assert {"mark chance", "mark blind", "range"} <= {a.get("class") for _, a in page.elements}
    _, page = make(tmp_path)
    assert "Blind" not in page.text and "95\u202f%" not in page.text


def test_more_metrics_than_a_chart_holds_get_more_charts(tmp_path):
    metrics = {f"acc{k}": 0.1 for k in range(1, 9)}
    rows = [{"step": step, **{f"x/{name}": 0.1 * step for name in metrics}} for step in (1, 2)]
    _, page = make(tmp_path, results={"x": base.Result(metrics)}, metrics_history=rows)
    charts = [a["aria-label"] for tag, a in page.elements if tag == "svg" and "aria-label" in a]
    assert [label.count("20.0") for label in charts] == [6, 2]


def test_confused_pairs_stand_with_their_matrix_or_alone_but_not_among_the_examples(tmp_path):
    pair = base.Example("x: most confused pairs", base.Entry("told of the pair"), (base.Entry(image=thumbnail()),))
    table = zero_shot().tables["confusion"]
    for tables in ({"x: confusion": table}, {"confusion": table}, {}):
        _, page = make(tmp_path, results={"x": base.Result({"acc1": 0.5}, tables, [pair])}, config={})
        assert page.text.count("told of the pair") == 1 and "Examples" not in page.text
        assert ("X: most confused pairs" in page.text) == ("x: confusion" not in tables)


def test_differences_have_charts_beside_those_of_the_values(tmp_path):
    metrics = ("acc1_reference", "acc1_drop", "acc1_drop_sketch", "acc1@4_shots", "acc1_deviation@4_shots")
    rows = [{"step": step, **{f"x/{name}": 0.1 * step for name in metrics}} for step in (1, 2)]
    _, page = make(tmp_path, results={"x": base.Result(dict.fromkeys(metrics, 0.2))}, metrics_history=rows)
    charts = [a["aria-label"] for tag, a in page.elements if tag == "svg" and "aria-label" in a]
    assert [label.count("20.0") for label in charts] == [2, 2, 1]


def in_context(counts=(0, 1, 16)) -> base.Result:
    values = {f"{name}@{k}_shots": 0.5 + k / 100 for name in ("objects_accuracy", "cider_d") for k in counts}
    shares = {name for name in values if "objects" in name}
    return base.Result(
        metrics=values | {"objects_accuracy@16_shots_deviation": 0.123, "odd": 7.0},
        blind=dict.fromkeys(shares, 0.023),
        intervals=dict.fromkeys(shares, (0.31, 0.77)),
    )


def test_metrics_of_several_numbers_of_examples_make_a_table_by_them(tmp_path):
    text, page = make(tmp_path, results={"captions": in_context()})
    words = page.text.replace("\u202f", " ")
    assert "Shots Captions right in shape and colour CIDEr-D" in words and "deviation" in words
    marks = "95 % interval blind 2.3 %"  # said by the marks of bars
    assert f"0 50.0 % [31.0, 77.0] {marks} 0.5 1 51.0 % [31.0, 77.0] {marks} 0.51" in words
    assert f"16 66.0 % [31.0, 77.0] {marks} 0.66 12.3 % Blind 2.3 %" in words
    assert "Odd 7" in words and "shots" not in words.partition("Odd")[0].partition("Shots")[2]
    tile = next(part for part in text.split("</a>") if 'class="tile"' in part)
    assert "66.0" in tile and "Captions right in shape and colour, 16 shots" in tile
    _, few = make(tmp_path, results={"captions": in_context((0, 16))})
    assert "Shots" not in few.text and "Captions right in shape and colour, 0 shots" in few.text


def test_a_long_prompt_is_told_by_its_begin_and_end_and_unfolds_into_what_it_shows(tmp_path):
    shown = tuple(base.Entry(f"Output: number {i}", thumbnail(i)) for i in range(32))
    whole = "".join(f"<image>{entry.text}<EOC>" for entry in shown) + "<image>Output:"
    example = base.Example("32 shots", base.Entry(whole, thumbnail()), (base.Entry("number 7"),), base.Entry("number 8"), shown)
    _, page = make(tmp_path, results={"words": base.Result({"acc1": 0.5}, examples=[example])})
    assert "<image>Output: number 0<EOC>" in page.text and "number 31<EOC><image>Output:" in page.text and whole not in page.text
    assert all(entry.text in page.text for entry in shown)
    assert sum(tag == "img" for tag, _ in page.elements) == 33
    assert "details" in {tag for tag, a in page.elements if a.get("class") == "query"}


def test_a_few_metrics_by_shots_stand_beside_their_chart(tmp_path):
    values = {f"accuracy@{k}_shots": k / 100 for k in (0, 1, 16)}
    figure = base.Lines("examples shown", "accuracy", {"accuracy": [(0.0, 0.0), (16.0, 0.16)], "blind": [(0.0, 0.1), (16.0, 0.1)]})
    wide = {f"{name}@{k}_shots": 0.1 for name in ("accuracy", "a", "b", "c") for k in (0, 1, 16)}
    for metrics, beside in ((values, 1), (wide, 0)):
        _, page = make(tmp_path, results={"words": base.Result(metrics, figures={"shots": figure})}, metrics_history=[])
        assert sum(a.get("class") == "beside" for _, a in page.elements) == beside
        assert [a["aria-label"] for tag, a in page.elements if tag == "svg" and "aria-label" in a] == ["Accuracy over examples shown"]


def test_tiles_lead_to_their_evaluations(tmp_path):
    _, page = make(tmp_path)
    targets = [a["href"] for tag, a in page.elements if tag == "a"]
    places = {f"#{a['id']}" for _, a in page.elements if "id" in a}
    assert len(targets) >= 7 and set(targets) <= places


@pytest.mark.parametrize(
    ("name", "text"),
    [("image_retrieval_recall@5", "Text to image, R@5"), ("text_retrieval_true_recall@1", "Image to text, true recall@1"),
     ("text_retrieval_mean_rank", "Image to text, mean rank"), ("acc_swap_att", "Accuracy, swap att"), ("odd", "Odd"),
     ("acc1_drop_sketch", "Top-1 accuracy, drop sketch"),
     ("acc1@4_shots", "Top-1 accuracy, 4 shots"), ("acc1_deviation@4_shots", "Top-1 accuracy, deviation, 4 shots"), ("auroc", "AUROC"),
     ("cider_d@1_shots_deviation", "CIDEr-D, deviation, 1 shot"), ("acc1_shuffled@8_shots", "Top-1 accuracy, shuffled, 8 shots")],
)  # fmt: skip
def test_metrics_have_names_for_readers(name, text):
    assert scores.label(name) == text


@pytest.mark.parametrize(
    ("name", "share"),
    [("acc1", True), ("mean_per_class_recall", True), ("acc_swap_att", True), ("auroc", True), ("text_acc", True), ("rsum", False),
     ("image_retrieval_mean_rank", False), ("mean_average_precision", True), ("accelerator", False), ("loss", False)],
)  # fmt: skip
def test_shares_are_told_from_other_numbers(name, share):
    assert scores.is_share(name) == share


def test_metrics_of_unknown_names_get_curves(tmp_path):
    rows = [{"step": i, "x/odd_recall@3": 0.1, "x/odd": i, "x/a, b": 2.0} for i in (1, 2)]
    result = base.Result({"odd_recall@3": 0.1, "odd": 2.0, "a, b": 2.0})
    _, page = make(tmp_path, results={"x": result}, metrics_history=rows)
    charts = [a["aria-label"] for tag, a in page.elements if tag == "svg" and "aria-label" in a]
    assert len(charts) == 3
