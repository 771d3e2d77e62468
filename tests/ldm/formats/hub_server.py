"""A server on 127.0.0.1 that speaks as much of the hub's protocol as reading weights needs."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "c" * 40
REVISIONS = ("main", "v1", COMMIT)


@dataclass
class Page:
    """A model page: its files, and what goes wrong with it."""

    files: Mapping[str, bytes]
    status: int = 200  # 401: private; 403 with "gated": consent is asked for; 500: broken
    error: str = ""  # the hub's name for it
    wrong_hash: bool = False
    cut_after: int = 0  # bytes of each transfer, after which the connection is dropped
    cuts: int = 0  # how many transfers are cut; -1: all
    asked: list[str] = field(default_factory=list)  # "METHOD path range"
    authorised: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        words = unquote(self.path.partition("?")[0]).strip("/").split("/")
        kind, words = (words[0], words[1:]) if words[0] == "cdn" else ("", words)
        kind, words = ("api", words[2:]) if words[:2] == ["api", "models"] else (kind, words)
        page = self.server.pages.get("/".join(words[:2]))
        if page is None:
            return self.answer(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        page.asked.append(
            f"{self.command} {kind or 'page'} {'/'.join(words[2:])} {self.headers.get('Range', '')}".strip()
        )
        page.authorised.append(self.headers.get("Authorization", ""))
        if page.status != 200:
            return self.answer(page.status, {"X-Error-Code": page.error, "X-Error-Message": "no"})
        if kind == "cdn":
            return self.content(page, "/".join(words[2:]))
        revision = (words[3:4] or ["main"])[0]
        if revision not in REVISIONS:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        if kind == "api":
            return self.listing(page, words)
        return self.resolved(page, words)

    def listing(self, page: Page, words: list[str]) -> None:
        if words[2:3] == ["tree"]:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": "a" * 40} for name, data in page.files.items()
            ]
            return self.answer(200, {"Content-Type": "application/json"}, json.dumps(tree).encode())
        about = {"id": "/".join(words[:2]), "sha": COMMIT, "siblings": [{"rfilename": name} for name in page.files]}
        return self.answer(200, {"Content-Type": "application/json"}, json.dumps(about).encode())

    def resolved(self, page: Page, words: list[str]) -> None:
        """A file's address: where it lies, its checksum and size; the content is elsewhere."""
        name = "/".join(words[4:])
        if name not in page.files:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        data = page.files[name]
        digest = hashlib.sha256(data + b"!" * page.wrong_hash).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        headers |= {
            "Location": f"http://localhost:{self.server.server_port}/cdn/{'/'.join(words[:2])}/{name}",
            "ETag": f'"{digest}"',
        }
        return self.answer(302, headers)

    def content(self, page: Page, name: str) -> None:
        data, asked = page.files[name], self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        part = data[start:]
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if asked else {}
        if page.cuts and self.command == "GET":
            page.cuts -= 1
            self.send_response(206 if asked else 200)
            for key, value in {"Content-Length": str(len(part)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(part[: page.cut_after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return None
        return self.answer(206 if asked else 200, headers, part)


class Server(ThreadingHTTPServer):
    def __init__(self, pages: Mapping[str, Page]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages = pages


@contextmanager
def serving(pages: Mapping[str, Page]) -> Iterator[str]:
    """Serve pages by their `owner/name`; yields the address."""
    server = Server(pages)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
