"""A web server of its own for a test, whose answers are good, slow, cut short or wrong, as the test wants them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PIECE = 16_384


@dataclass
class Page:
    """What the server says at one path.

    Attributes:
        content: the whole file.
        etag: its version; None: the server names none.
        ranges: whether it sends the rest of a file; `heeds_if_range`: only if the version is the one asked for.
        length: whether it tells how long the answer is.
        cuts: after how many bytes the connection ends, for the first answers in turn; then no more.
        pause: seconds before the first byte of the content; `rest`: between two pieces of `PIECE` bytes.
        silent_until: an event before which no byte of the content comes, for a minute at most.
    """

    content: bytes
    etag: str | None = '"1"'
    modified: str | None = None
    status: int = 200
    content_type: str = "application/octet-stream"
    ranges: bool = True
    heeds_if_range: bool = True
    length: bool = True
    cuts: list[int] = field(default_factory=list)
    pause: float = 0
    silent_until: threading.Event | None = None
    rest: float = 0
    headers: dict[str, str] = field(default_factory=dict)


class Site:
    """Pages by path; what was asked for, as (path, value of `Range`); and how many bytes were sent."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.sent = 0
        self.address = ""

    def put(self, path: str, page: Page) -> str:
        """The address of a new page."""
        self.pages[path] = page
        return f"{self.address}{path}"


@contextmanager
def serving() -> Iterator[Site]:
    """A server in a thread, while the block runs."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            asked = self.headers.get("Range")
            site.asked.append((self.path, asked))
            page = site.pages.get(path) or Page(b"<!DOCTYPE html>", status=404, content_type="text/html")
            content, status = page.content, page.status
            version = page.etag or page.modified
            if asked and page.ranges and (not page.heeds_if_range or self.headers.get("If-Range") in (None, version)):
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                status = 206 if start < len(content) else 416
                content = content[start:]
            self.send_response(status)
            self.send_header("Content-Type", page.content_type)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(page.content) - 1}/{len(page.content)}")
            if page.length:
                self.send_header("Content-Length", str(len(content)))
            for name, value in {"ETag": page.etag, "Last-Modified": page.modified, **page.headers}.items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.flush()
            time.sleep(page.pause)
            if page.silent_until is not None:
                page.silent_until.wait(60)
            content = content[: page.cuts.pop(0)] if page.cuts else content
            with suppress(ConnectionError):  # where the client has given up
                for start in range(0, len(content), PIECE):
                    site.sent += len(content[start : start + PIECE])  # before the client can look
                    self.wfile.write(content[start : start + PIECE])
                    time.sleep(page.rest)

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None:
            pass  # a client that hangs up is no error of the test

    server = Server(("127.0.0.1", 0), Handler)
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
