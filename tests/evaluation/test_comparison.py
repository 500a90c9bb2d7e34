"""Checkpoints side by side in a page: numbers, the best of each row, and nothing of a name as markup."""

import pytest

from vlm_jax.evaluation import comparison, records

SCRIPT = "<script>document.title='run'</script>"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    def one(dataset, metrics, spans=None):
        beside = {"model": "m", "pretrained": "p", "step": 1000, "weights": "ema", "chance": {"acc1": 0.1}}
        return records.record(dataset, "t", metrics, intervals=spans or {}, **beside)

    first = one("cifar", {"acc1": 0.5, "image_retrieval_median_rank": 4.0}, {"acc1": (0.4, 0.6)})
    compared = {
        "first": [first, one(SCRIPT, {"acc1": float("nan")})],
        SCRIPT: [one("cifar", {"acc1": 0.6, "image_retrieval_median_rank": 3.0})],
    } | {f"another checkpoint {i}": [one("cifar", {"acc1": 0.2})] for i in range(8)}
    path = tmp_path_factory.mktemp("comparison") / "comparison.html"
    comparison.write(path, compared)
    return path


@pytest.mark.parametrize("width", [1200, 412])
def test_the_page_marks_the_best_and_runs_nothing(browser, written, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(written.as_uri())
    assert page.title() == "10 checkpoints compared" and asked == [written.as_uri()] and not said
    rows = page.locator("section").first.locator("tbody tr")
    assert [rows.nth(i).locator("td.best").text_content().replace("\N{NARROW NO-BREAK SPACE}", " ") for i in range(2)] == ["60.0 %", "3"]
    assert "[40.0, 60.0]" in rows.first.text_content() and rows.first.locator("td").last.text_content().startswith("10.0")
    assert page.locator("h2").nth(1).text_content() == SCRIPT and "not evaluated" in page.locator("thead").nth(1).text_content()
    assert page.evaluate("document.documentElement.scrollWidth") == width, "many columns scroll inside"
    assert rows.first.bounding_box()["height"] < 80, "the names of metrics keep their words"
    page.close()
