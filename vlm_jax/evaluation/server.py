"""A local page on which a person searches an index: the standard library's HTTP server, for this machine alone by default.

Whoever can reach the port can search, so it listens on 127.0.0.1. Pages of other origins cannot: requests that name another host, as
after DNS rebinding, or that come from another origin are refused, and nothing is sent that would let their scripts read an answer.
"""

import contextlib
import http.server
import ipaddress
import json
import re
import socket
import sys
import threading
import time
import urllib.parse
from typing import Any

from vlm_jax.data import records
from vlm_jax.errors import InputError
from vlm_jax.evaluation import index as indices
from vlm_jax.evaluation import page

UPLOAD = 10 * 2**20
"""Bytes of an image that is sent."""
TEXT = 1000
"""Characters of a query or a label."""
LABELS = 200
TIMEOUT = 20
"""Seconds that a connection may stand still."""
CONNECTIONS = 64
_DRAINED = 64 * 2**20
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Refused(Exception):
    """A request that is not answered: a status and words for the person."""

    def __init__(self, status: int, words: str):
        super().__init__(words)
        self.status = status


class Server(http.server.ThreadingHTTPServer):
    """Serves one index. Closing it ends all connections and waits for their threads: one that outlives the interpreter with the last
    reference to an array on a device aborts the process."""

    daemon_threads = False

    def __init__(self, index: indices.Index, facts: dict[str, Any], host: str = "127.0.0.1", port: int = 0):
        """Binds.

        Args:
          facts: what the page says of the model, such as `model` and `step`.

        Raises:
          InputError: the host or port cannot be had.
        """
        self.index, self.facts, self.host = index, facts, host
        self._slots = threading.BoundedSemaphore(CONNECTIONS)
        self._open: set[socket.socket] = set()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"host {host}, port {port}: {getattr(error, 'strerror', None) or error}") from None

    @property
    def address(self) -> str:
        """To open in a browser."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(timeout=TIMEOUT):
            self._open.add(request)
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.discard(request)
            self._slots.release()

    def server_close(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):  # a browser that went away
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "vlm_jax"
    sys_version = ""
    timeout = TIMEOUT

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: queries are nobody's business."""

    def _answer(self, respond: Any) -> None:
        try:
            self._check()
            respond()
        except Refused as refused:
            self.close_connection = True
            self._json({"error": str(refused)}, refused.status)
        except (InputError, records.RecordError) as error:
            self._json({"error": str(error)}, 400)

    def _check(self) -> None:
        host = self.headers.get("Host", "")
        if not _trusted(host, self.server.host):
            raise Refused(403, "this page is opened by its number, such as 127.0.0.1, or as localhost")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            raise Refused(403, "requests from other pages are not answered")

    def _get(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        if path == "/":
            self._send(page.HTML.encode(), "text/html; charset=utf-8")
        elif path == "/page.js":
            self._send(page.SCRIPT.encode(), "text/javascript; charset=utf-8")
        elif path == "/page.css":
            self._send(page.STYLE.encode(), "text/css; charset=utf-8")
        elif path == "/state":
            self._json({**self.server.facts, **self.server.index.progress(), "upload": UPLOAD, "labels": LABELS})
        elif match := re.fullmatch(r"/image/(\d{1,12})", path):
            self._send(self.server.index.thumbnail(int(match[1])), "image/jpeg", "private, max-age=3600")
        elif path == "/favicon.ico":
            self._send(b"", "image/x-icon", "max-age=86400")
        else:
            raise Refused(404, "there is no such page")

    def _post(self) -> None:
        body, began = self._body(), time.perf_counter()
        index, path = self.server.index, self.path
        if index.state != "ready":
            raise Refused(503, index.error or "the images are being embedded; try again in a moment")
        if path == "/text":
            hits = index.by_text(_text(_object(body).get("text"), "query"))
            self._json({"images": _shown(hits), "seconds": indices.seconds_since(began)})
        elif path == "/like":
            number = _object(body).get("index")
            if not isinstance(number, int) or isinstance(number, bool):
                raise Refused(400, "index must be a number")
            self._json({"images": _shown(index.like(number)), "seconds": indices.seconds_since(began)})
        elif path == "/image":
            labels = _labels(self.headers.get("X-Labels", ""))
            hits, captions, query = index.by_image(body)
            answer: dict[str, Any] = {"images": _shown(hits), "captions": [{"text": t, "score": round(s, 4)} for t, s in captions]}
            if labels:
                found = index.classify(query, labels)
                answer["labels"] = [{"text": t, "share": round(p, 4), "score": round(s, 4)} for t, p, s in found]
            self._json({**answer, "seconds": indices.seconds_since(began)})
        else:
            raise Refused(404, "there is no such page")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdecimal():
            raise Refused(411, "the length of what is sent must be known")
        if int(length) > UPLOAD:
            left = min(int(length), _DRAINED)  # a browser reads no answer before it has sent
            while left > 0 and (part := self.rfile.read(min(left, 2**16))):
                left -= len(part)
            raise Refused(413, f"that is {int(length) / 2**20:,.1f} MB; at most {UPLOAD // 2**20} MB are taken")
        body = self.rfile.read(int(length))
        if len(body) != int(length):
            raise Refused(400, "less was sent than was announced")
        return body

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), "application/json", status=status)

    def _send(self, body: bytes, kind: str, cache: str = "no-store", status: int = 200) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": cache,
            "Content-Security-Policy": _POLICY,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            **({"Connection": "close"} if self.close_connection else {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def serve(server: Server) -> None:
    """Serves until Ctrl-C."""
    server.index.start()
    print(f"search page  {server.address}  (Ctrl-C ends it)", flush=True)
    if not _is_local(server.host):
        print(
            f"warning: host {server.host} is more than this machine; whoever reaches the port can search, and sees the images",
            file=sys.stderr,
            flush=True,
        )
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print("\nstopped")
    finally:
        server.server_close()
        server.index.close()


def _trusted(host: str, own: str) -> bool:
    """Whether a Host header names a number or this machine: DNS rebinding needs a name of its own."""
    try:
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name in ("localhost", own.lower()) or _is_number(name)


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_local(host: str) -> bool:
    return host == "localhost" or (_is_number(host) and ipaddress.ip_address(host).is_loopback)


def _shown(hits: list[indices.Hit]) -> list[dict[str, Any]]:
    return [{"index": hit.index, "score": round(hit.score, 4), "caption": hit.caption} for hit in hits]


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refused(400, "a JSON object is needed")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Refused(400, f"type a {name} first")
    if len(value) > TEXT:
        raise Refused(400, f"the {name} has {len(value):,} characters; at most {TEXT:,} are taken")
    return value.strip()


def _labels(header: str) -> list[str]:
    """From a JSON list, percent-encoded as a header needs it."""
    if not header:
        return []
    try:
        values = json.loads(urllib.parse.unquote(header, errors="strict"))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list):
        raise Refused(400, "labels must be a list")
    if len(values) > LABELS:
        raise Refused(400, f"{len(values):,} labels; at most {LABELS} are taken")
    return list(dict.fromkeys(_text(value, "label") for value in values))
