"""The report as its readers see it: in Chromium, wide and narrow, light and dark, without a word to the network."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from vlm_jax.evaluation import base, confusion, figures, metrics, report
from vlm_jax.training import goodput

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("airplane", "a class with an uncommonly long name of many words", "bird", "cat", "deer")
LONG = "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen" * 3


def classification(classes=5, rows=300) -> base.Result:
    """All that an evaluation can give back."""
    rng = np.random.default_rng(0)
    names = NAMES if classes == 5 else tuple(f"class {i}" for i in range(classes))
    weights = metrics.normalize(rng.normal(size=(classes, 16)))
    labels = np.arange(rows) % classes
    images = metrics.normalize(weights[labels] + rng.normal(size=(rows, 16)) * 0.3)
    cosines = images @ weights.T
    picture = base.thumbnail(rng.integers(0, 255, (64, 64, 3), np.uint8))
    pair = tuple(
        base.Entry(name, picture, 0.3, verdict)
        for name, verdict in (("cat", "wrong"), ("deer", "right"))
        for _ in range(3)
    )
    answers = tuple(base.Entry(name, score=0.3, verdict="wrong") for name in names[:5])
    found = ("images", "class names")
    return base.Result(
        {"acc1": 0.9431, "acc5": 1.0, "mean_per_class_recall": 0.94, "lr": 0.1},
        tables={
            "confusion": base.Table(
                "true class", "predicted class", names, names, metrics.confusion(labels, cosines.argmax(1), classes)
            ),
            "by_data_set": base.Table(
                "data set", "", ("one", LONG), ("acc1", "images"), np.array([[0.9, 300], [0.8, 12345]])
            ),
        },
        examples=[
            *(base.Example(confusion.GROUP, base.Entry(f"cat taken for deer: {i} of 60"), pair) for i in range(5)),
            *(base.Example("misses", base.Entry(image=picture), answers, base.Entry(LONG)) for _ in range(4)),
        ],
        chance={"acc1": 1 / classes, "acc5": 1.0},
        intervals={"acc1": (0.9312, 0.9544), "lr": (0.09, 0.11)},
        blind={"acc1": 0.22},
        figures={
            "similarities": figures.similarities(images, weights, np.stack([np.arange(rows), labels], 1)),
            "calibration": figures.calibration(cosines, labels, 14.0),
            "embedding_map": figures.embedding_map(dict(zip(found, (images, weights), strict=True)), None),
            "sweep": base.Lines(
                "penalty", "accuracy", {"probe": [(10.0**k, 0.9 - 0.02 * abs(k)) for k in range(-6, 7)]}, "log", 1.0
            ),
        },
        note=f"300 images. {LONG}",
    )


def retrieval() -> base.Result:
    picture = base.thumbnail(np.zeros((40, 80, 3), np.uint8))
    answers = tuple(base.Entry(image=picture, score=0.1, verdict="right" if i == 2 else "wrong") for i in range(5))
    texts = tuple(
        base.Entry(f"a caption of some length, number {i}, that says what there is", score=0.1) for i in range(5)
    )
    return base.Result(
        {"image_retrieval_recall@1": 0.42, "text_retrieval_median_rank": 2.0},
        examples=[
            base.Example("text to image", base.Entry(LONG), answers),
            base.Example("image to text", base.Entry(image=picture), texts),
        ],
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    rows = [
        {"step": i, "loss": 4 / i, "learning_rate": 1e-3, "scale": 10.0 + i, "held_out/acc1": 0.1 + i / 99}
        for i in range(1, 60)
    ]
    starts = [
        goodput.Attempt(1e9 + 100 * i, 1e9 + 90 + 100 * i, i, i + 2, {"start": 9.0, "compile": 20.0, "save": 1.0})
        for i in range(3)
    ]
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write(
        path,
        title="a run",
        config={"steps": 60, "batch_size": 64, "workdir": f"/{LONG}", "system": {"_type": "vlm_jax.systems.clip.Clip"}},
        metrics_history=rows,
        results={
            "held_out": classification(),
            "many": classification(classes=40),
            LONG: classification(1000, 2000),
            "pairs": retrieval(),
        },
        environment={"jax": "0.10.2", "platform": LONG},
        goodput=starts,
    )
    return path


@pytest.mark.parametrize("width", [1200, 412, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_is_asked_for_or_complained_of(browser, written, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(written.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert not said and [url for url in asked if not url.startswith("data:")] == [written.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    sticking_out = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.wide, pre') && e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 120))"
    )
    assert not sticking_out
    broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
    assert page.evaluate("document.images.length") > 20 and not broken
    page.close()


def test_every_section_has_its_drawings_and_the_contents_lead_there(browser, written):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(written.as_uri())
    sections = page.evaluate(
        "[...document.querySelectorAll('section')].map(s => [s.id, s.getBoundingClientRect().height > 60])"
    )
    assert sections == [
        [name, True] for name in ("evaluation", "training", "time", "examples", "recipe", "environment")
    ]
    assert page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))") == [
        f"#{name}" for name, _ in sections
    ]
    titles = page.evaluate("[...document.querySelectorAll('#evaluation-0 figcaption b')].map(b => b.textContent)")
    assert titles == [
        "Accuracy",
        "Embedding map",
        "Cosines of matching and of other pairs",
        "Calibration of the temperature",
        "Sweep",
    ]
    flat = page.evaluate(
        "[...document.querySelectorAll('figure svg')].filter(s => s.getBoundingClientRect().height < 100).length"
    )
    assert not flat
    page.close()


def test_texts_of_a_chart_do_not_overlap(browser, written):
    page = browser.new_page(viewport={"width": 412, "height": 900})
    page.goto(written.as_uri())
    overlaps = page.evaluate(
        """[...document.querySelectorAll('figure svg')].flatMap(svg => {
             const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
             return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) =>
               p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 3 && q.top < p.bottom - 3).map(([b]) => a + ' / ' + b));
           })"""
    )
    assert not overlaps
    page.close()


def test_the_matrix_and_its_worst_pairs_stand_side_by_side_and_on_a_phone_one_below_the_other(browser, written):
    for width, beside in ((1200, True), (412, False)):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(written.as_uri())
        matrix, pairs = (page.locator(f"#evaluation-0 {s}").first.bounding_box() for s in (".confusion svg", ".pairs"))
        assert (pairs["x"] >= matrix["x"] + matrix["width"]) == beside
        assert (pairs["y"] >= matrix["y"] + matrix["height"]) != beside
        page.close()


def test_a_point_of_the_map_under_its_legend_stands_out(browser, written):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(written.as_uri())
    figure = page.locator("#evaluation-0 .double")
    opacity = "[...document.querySelector('#evaluation-0 .double').querySelectorAll('.points')].map(e => getComputedStyle(e).opacity)"
    assert page.evaluate(opacity) == ["1", "1"]
    figure.locator(".key").first.hover()
    assert sorted(page.evaluate(opacity)) == ["0.12", "1"]
    page.close()


def test_a_report_of_a_thousand_classes_and_many_points_stays_small(written):
    assert written.stat().st_size < 2_000_000


@pytest.mark.slow
def test_the_documents_show_pictures_that_the_command_makes(browser, written, tmp_path):
    spec = importlib.util.spec_from_file_location("screenshots", ROOT / "docs" / "screenshots.py")
    assert spec and spec.loader
    screenshots = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(screenshots)
    made = screenshots.shoot(browser, written, tmp_path)
    assert [path.stem for path in made] == list(screenshots.SHOTS)
    for path in made:
        shot = screenshots.SHOTS[path.stem]
        picture = PIL.Image.open(path)
        assert picture.width == 1.25 * shot.width and len(picture.getcolors(1_000_000) or ()) > 16, path
    shown = {
        Path(found).stem
        for d in ("README.md", "docs/evaluation.md")
        for found in re.findall(r"\((\S+\.png)\)", (ROOT / d).read_text())
    }
    shown -= {"shapes"}
    assert shown == set(screenshots.SHOTS)
    for name in shown:
        assert 5_000 < (ROOT / "docs" / "images" / f"{name}.png").stat().st_size < 300_000, name
