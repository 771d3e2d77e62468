"""A server on 127.0.0.1 that speaks as much of the hub's protocol as reading and bringing weights needs."""

import base64
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

    files: dict[str, bytes]
    status: int = 200  # 401: private; 403 with "gated": consent is asked for; 500: broken
    error: str = ""  # the hub's name for it
    wrong_hash: bool = False
    cut_after: int = 0  # bytes of each transfer, after which the connection is dropped
    cuts: int = 0  # how many transfers are cut; -1: all
    asked: list[str] = field(default_factory=list)  # "METHOD path range"
    authorised: list[str] = field(default_factory=list)
    read_only: bool = False
    visibility: str = ""  # as it was asked for
    commits: list[str] = field(default_factory=list)  # "revision: message"
    large: dict[str, bytes] = field(default_factory=dict)  # by checksum: what came in transfers of its own


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

    def do_POST(self) -> None:
        words = unquote(self.path.partition("?")[0]).strip("/").split("/")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if words == ["api", "validate-yaml"]:
            return self.json({"warnings": [], "errors": []})
        if words == ["api", "repos", "create"]:
            return self.created(json.loads(body))
        words = words[2:] if words[0] == "api" else words
        page = self.server.pages["/".join(words[:2]).removesuffix(".git")]
        if page.read_only:
            return self.answer(403, {"X-Error-Message": "no"})
        if words[2] == "preupload":
            return self.json({"files": [_upload(file["path"]) for file in json.loads(body)["files"]]})
        if words[2] == "info":  # and lfs/objects/batch
            objects = [self.accepted(page, file) for file in json.loads(body)["objects"]]
            return self.json({"transfer": "basic", "objects": objects})
        return self.committed(page, words[3], [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        """A large file arrives."""
        _, owner, name, digest = self.path.strip("/").split("/")
        data = self.rfile.read(int(self.headers["Content-Length"]))
        right = hashlib.sha256(data).hexdigest() == digest
        self.server.pages[f"{owner}/{name}"].large[digest] = data
        self.answer(200 if right else 400)

    def json(self, content: Any, status: int = 200) -> None:
        self.answer(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def created(self, asked: Mapping[str, str]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if not self.headers.get("Authorization"):
            return self.answer(401, {"X-Error-Message": "Invalid username or password."})
        there = name in self.server.pages
        self.server.pages.setdefault(name, Page({}, visibility=asked.get("visibility", "")))
        told = {"url": f"http://127.0.0.1:{self.server.server_port}/{name}"}
        return self.json(told, status=409 if there else 200)

    def accepted(self, page: Page, file: Mapping[str, Any]) -> dict[str, Any]:
        """Where a large file is to go."""
        address = f"http://localhost:{self.server.server_port}/put/{self.server.name_of(page)}/{file['oid']}"
        return {"oid": file["oid"], "size": file["size"], "actions": {"upload": {"href": address, "header": {}}}}

    def committed(self, page: Page, revision: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                page.commits.append(f"{revision}: {value['summary']}")
            elif line["key"] == "file":
                page.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                page.files[value["path"]] = page.large[value["oid"]]
        place = f"http://127.0.0.1:{self.server.server_port}/{self.server.name_of(page)}"
        self.json({"commitUrl": f"{place}/commit/{COMMIT}", "commitOid": COMMIT})

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


def _upload(path: str) -> dict[str, Any]:
    """How the hub wants a file: weights in a transfer of their own."""
    return {"path": path, "uploadMode": "lfs" if path.endswith(".safetensors") else "regular", "shouldIgnore": False}


class Server(ThreadingHTTPServer):
    def __init__(self, pages: dict[str, Page]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages = pages

    def name_of(self, page: Page) -> str:
        return next(name for name, each in self.pages.items() if each is page)


@contextmanager
def serving(pages: dict[str, Page]) -> Iterator[str]:
    """Serve pages by their `owner/name`; yields the address."""
    server = Server(pages)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
