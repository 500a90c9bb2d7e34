"""The search page in Chromium and by hand: it finds, it shows text as text, and it answers nobody but its own page."""

import http.client
import io
import json
import threading
import time
import urllib.parse

import numpy as np
import PIL.Image
import pytest

from evaluation.conftest import COLOURS, NAMES, example, png
from vlm_jax.data import records
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, embeddings, index, server

SCRIPT = "<img src=x onerror=document.title='run'><script>document.title='run'</script>"
FACTS = {"model": "tiny", "step": 3, "name": "colours"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> str:
    """The colours, one of them with a script for a caption, and one with a caption that is none."""
    examples = [example(i) for i in range(27)]
    examples[0]["captions"] = [SCRIPT]
    examples[3]["captions"] = [7]
    return "::".join(records.write(str(tmp_path_factory.mktemp("hostile") / "val"), examples, 2))


@pytest.fixture(scope="module")
def served(make_subject, hostile):
    """A server of the tiny model, ready to answer."""
    searched = index.Index(make_subject(), hostile)
    running = server.Server(searched, FACTS)
    searched.start()
    searched.wait()
    assert searched.state == "ready", searched.error
    thread = threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def ask(served, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(*served.server_address[:2], timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if answer.headers["Content-Type"] == "application/json" else content, answer.headers


def of(colour, side=8):
    return png(np.broadcast_to(COLOURS[NAMES.index(colour)], (side, side, 3)))


@pytest.fixture
def page(browser, served):
    page = browser.new_page(viewport={"width": 412, "height": 800})
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(served.address)
    page.locator("#status", has_text="Ready: 27 images").wait_for()
    yield page
    assert all(url.startswith((served.address, "blob:")) for url in page.asked), "nothing is asked of others"
    assert page.evaluate("document.documentElement.scrollWidth") == 412
    assert page.title() == "Search colours - vlm_jax", "no script of a caption has run"
    page.close()


def test_words_find_images_and_an_image_finds_its_like(page):
    assert page.locator("#facts").text_content() == "tiny, step 3, 27 images of colours"
    page.fill("#text", "a photo of a red")
    page.press("#text", "Enter")
    page.wait_for_selector("#grid .hit")
    assert page.locator("#grid .hit").count() == index.HITS
    assert all("red" in text or text == SCRIPT for text in page.locator("#grid .hit span").all_text_contents()[:3])
    scores = [float(text) for text in page.locator("#grid .hit b").all_text_contents()]
    assert scores == sorted(scores, reverse=True)
    assert "closest to those words, found in" in page.locator("#status").text_content()
    page.wait_for_load_state("networkidle")
    assert page.evaluate("[...document.images].filter(i => i.naturalWidth).length") > 3
    page.locator("#grid .hit").nth(5).focus()
    page.keyboard.press("Enter")
    page.locator("#status", has_text="closest to that image").wait_for()
    assert page.locator("#grid .hit b").first.text_content() == "1.000"
    assert not page.said


def test_an_image_is_searched_and_classified(page):
    page.fill("#labels", "blue\n\nyellow\nblack")
    data = "new DataTransfer()"
    handle = page.evaluate_handle(
        f"bytes => {{ const d = {data}; d.items.add(new File([new Uint8Array(bytes)], 'mine.png', {{type: 'image/png'}})); return d; }}",
        list(of("yellow")),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": handle})
    page.wait_for_selector("#shares li")
    assert page.locator("#shares li span:first-child").first.text_content() == "yellow"
    assert page.locator("#shares li").count() == 3 and page.locator("#sentences li").count() == index.CAPTIONS
    assert "yellow" in page.locator("#grid .hit span").first.text_content()
    assert page.locator("#dropped").text_content() == "mine.png" and page.locator("#preview").is_visible()
    assert not page.said


def test_a_script_in_a_caption_is_text(page):
    page.set_input_files("#file", {"name": "red.png", "mimeType": "image/png", "buffer": example(0)["image"]})
    page.wait_for_selector("#grid .hit")
    assert page.locator("#grid .hit span").first.text_content() == SCRIPT
    assert page.evaluate("document.scripts.length") == 1 and not page.said
    assert not page.evaluate("[...document.images].filter(i => i.src.endsWith('/x')).length")


@pytest.fixture
def low_limit(monkeypatch):
    monkeypatch.setattr(server, "UPLOAD", 2**20)


def test_what_cannot_be_taken_is_said_in_words(low_limit, page):
    status = page.locator("#status.wrong")
    page.set_input_files("#file", {"name": "large.png", "mimeType": "image/png", "buffer": bytes(server.UPLOAD + 1)})
    assert status.text_content() == "large.png has 1.0 MB; at most 1 MB are taken."
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"x"})
    assert status.text_content() == "notes.txt is not an image."
    page.set_input_files("#file", {"name": "broken.png", "mimeType": "image/png", "buffer": b"no image"})
    page.locator("#status.wrong", has_text="cannot be decoded").wait_for()
    page.fill("#labels", "\n".join("é" * 100 + str(i) for i in range(110)))
    page.set_input_files("#file", {"name": "red.png", "mimeType": "image/png", "buffer": of("red")})
    page.locator("#status.wrong", has_text="more labels than can be sent").wait_for()
    page.fill("#labels", "\n".join(str(i) for i in range(201)))
    page.set_input_files("#file", {"name": "red.png", "mimeType": "image/png", "buffer": of("red")})
    page.locator("#status.wrong", has_text="201 labels; at most 200").wait_for()


def test_an_upload_above_the_limit_and_a_bomb_are_refused(served):
    status, answer, _ = ask(served, "POST", "/image", bytes(server.UPLOAD + 1))
    assert (status, answer["error"]) == (413, "that is 10.0 MB; at most 10 MB are taken")
    out = io.BytesIO()
    PIL.Image.new("1", (9000, 9000)).save(out, "PNG")
    status, answer, _ = ask(served, "POST", "/image", out.getvalue())
    assert status == 400 and "more than the limit" in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "words"),
    [
        ("GET", "/state", None, {"Host": "evil.example"}, 403, "localhost"),
        ("GET", "/state", None, {"Host": "127.0.0.1.evil.example:80"}, 403, "localhost"),
        ("GET", "/state", None, {"Host": "[:"}, 403, "localhost"),
        ("POST", "/text", '{"text": "a"}', {"Origin": "http://evil.example"}, 403, "other pages"),
        ("POST", "/text", '{"text": "a"}', {"Origin": "null"}, 403, "other pages"),
        ("POST", "/text", '{"text": " "}', {}, 400, "type a query"),
        ("POST", "/text", '{"text": ["a"]}', {}, 400, "type a query"),
        ("POST", "/text", "[" * 100_000, {}, 400, "JSON object"),
        ("POST", "/text", json.dumps({"text": "a" * 1001}), {}, 400, "1,001 characters; at most 1,000"),
        ("POST", "/like", '{"index": 99}', {}, 400, "image 99: there are 27"),
        ("POST", "/like", '{"index": true}', {}, 400, "must be a number"),
        ("POST", "/image", b"x", {"X_Labels": urllib.parse.quote(json.dumps(["a"] * 201))}, 400, "201 labels; at most 200"),
        ("POST", "/image", of("red"), {"X_Labels": "%ff"}, 400, "labels must be a list"),
        ("POST", "/text", "{}", {"Content_Length": "-1"}, 411, "length"),
        ("GET", "/image/27", None, {}, 400, "image 27"),
        ("GET", "/image/../../etc/passwd", None, {}, 404, "no such page"),
        ("POST", "/other", "{}", {}, 404, "no such page"),
    ],
)
def test_what_is_not_the_pages_own_is_refused(served, method, path, body, headers, status, words):
    found, answer, _ = ask(served, method, path, body, **headers)
    assert found == status and words in answer["error"]


def test_every_answer_forbids_what_the_page_does_not_need(served):
    for path in ("/", "/page.js", "/page.css", "/state", "/image/3", "/none"):
        _, _, headers = ask(served, "GET", path)
        assert "default-src 'none'" in headers["Content-Security-Policy"] and "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff" and "Access-Control-Allow-Origin" not in headers
    assert ask(served, "OPTIONS", "/text")[0] == 501


def test_many_ask_at_once_and_each_gets_its_own_one_after_the_other(served, monkeypatch):
    found, inside, together = {}, [], []
    embed = base.Compiled.embed

    def watched(self, *more):
        inside.append(1)
        together.append(len(inside))
        time.sleep(0.01)
        try:
            return embed(self, *more)
        finally:
            inside.pop()

    monkeypatch.setattr(base.Compiled, "embed", watched)

    def one(colour):
        found[colour] = ask(served, "POST", "/image", of(colour), X_Labels=urllib.parse.quote(json.dumps(NAMES)))[1]

    threads = [threading.Thread(target=one, args=(colour,)) for colour in NAMES[:6]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(together) == 1, "the devices work for one at a time"
    assert {colour: answer["labels"][0]["text"] for colour, answer in found.items()} == {colour: colour for colour in NAMES[:6]}


def test_a_connection_that_stands_still_is_closed(served, monkeypatch):
    assert server.Handler.timeout == server.TIMEOUT <= 60
    monkeypatch.setattr(server.Handler, "timeout", 0.2)
    connection = http.client.HTTPConnection(*served.server_address[:2], timeout=10)
    connection.connect()
    connection.sock.sendall(b"POST /text HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{")
    began = time.monotonic()
    assert connection.sock.recv(100) == b""
    assert time.monotonic() - began < 5
    connection.close()


def test_while_it_embeds_it_says_how_far_it_is_and_stops_when_it_is_closed(make_subject, hostile, tmp_path, monkeypatch):
    subject, going, seen = make_subject(batch_size=4), threading.Event(), threading.Event()
    subject = base.Subject(
        subject.compiled, subject.variables, subject.transform, subject.tokenizer, 4, embeddings.Pieces(tmp_path, {"weights": "w"})
    )
    read = index._Counted.__getitem__

    def slow(self, number):
        if number == 9:
            seen.set()
            going.wait(20)
        return read(self, number)

    monkeypatch.setattr(index._Counted, "__getitem__", slow)
    searched = index.Index(subject, hostile)
    running = server.Server(searched, FACTS)
    thread = threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    searched.start()
    assert seen.wait(20)
    state = ask(running, "GET", "/state")[1]
    assert state["state"] == "embedding" and 0 < state["done"] < state["total"] == 27
    assert ask(running, "POST", "/text", '{"text": "a"}')[0] == 503
    searched._source.stopped = True
    going.set()
    running.shutdown()
    running.server_close()
    searched.close()
    assert searched.progress()["state"] == "failed" and list(tmp_path.glob("*/*.npy")), "what was embedded is kept"


def test_closing_ends_connections_that_wait_and_leaves_no_thread(make_subject, hostile, monkeypatch):
    """A thread that outlives the interpreter and frees an array of a device aborts the process."""
    asked = threading.Event()

    def slow(self):
        asked.set()
        time.sleep(0.5)
        return {}

    monkeypatch.setattr(index.Index, "progress", slow)
    before = set(threading.enumerate())
    running = server.Server(index.Index(make_subject(), hostile), FACTS)
    accepting = threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True)
    accepting.start()
    connection = http.client.HTTPConnection(*running.server_address[:2], timeout=30)
    connection.request("GET", "/page.css")
    assert connection.getresponse().read()
    busy = http.client.HTTPConnection(*running.server_address[:2], timeout=30)
    busy.request("GET", "/state")
    assert asked.wait(20)
    threads = set(threading.enumerate()) - before - {accepting}
    assert len(threads) == 2
    began = time.monotonic()
    running.shutdown()
    running.server_close()
    assert not any(thread.is_alive() for thread in threads) and time.monotonic() - began < server.TIMEOUT / 2
    connection.close()
    busy.close()


def test_data_that_cannot_be_shown_is_said(make_subject, tmp_path):
    broken = {"key": "k", "image": b"no image", "captions": ["a"]}
    (path,) = records.write(str(tmp_path / "a"), [broken], 1)
    searched = index.Index(make_subject(), path)
    searched.start()
    searched.wait()
    assert searched.progress()["state"] == "failed" and "cannot be decoded" in searched.error


def test_a_port_that_is_taken_is_refused(served, hostile, make_subject):
    searched = index.Index(make_subject(), hostile)
    with pytest.raises(InputError, match=r"port .*: Address already in use"):
        server.Server(searched, FACTS, port=served.server_address[1])
    with pytest.raises(InputError, match=r"host no\.such\.host"):
        server.Server(searched, FACTS, "no.such.host")
    with pytest.raises(InputError, match="port 70000"):
        server.Server(searched, FACTS, port=70000)
