"""What stands before the page's server: only what the page uses, and only a visitor's own files and sessions."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from ldm.inference.guard import API, COOKIE, FILE, HEARTBEAT, MAX_EVENT, UPLOAD, Guard, Message, Receive, Send, Visitors

JOIN = f"{API}queue/join"


class Server:
    """What the guard stands before: it stores uploads, and keeps what reaches it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[tuple[str, bytes]] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        content = (await receive())["body"] if scope["method"] == "POST" else b""
        self.seen.append((scope["path"], content))
        body = b"ok"
        if scope["path"] == UPLOAD:
            stored = self.folder / f"{len(self.seen)}.png"
            stored.write_bytes(content)
            body = json.dumps([str(stored)]).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


class Door:
    """A guarded server and the ways to ask it."""

    def __init__(self, folder: Path, max_bytes: int = 1000) -> None:
        self.server = Server(folder)
        self.visitors = Visitors(folder, max_bytes)
        self.guard = Guard(self.server, self.visitors)

    def ask(self, path: str, visitor: str = "me", method: str = "GET", body: bytes = b"", **more: Any) -> Message:
        """The answer: its status, headers, and body."""
        answer: Message = {}
        headers = [(b"cookie", f"{COOKIE}={visitor}".encode())] if visitor else []
        headers += [(b"content-length", str(more.get("length", len(body))).encode())]
        path, _, query = path.partition("?")
        scope = {"type": "http", "path": path, "query_string": query.encode(), "method": method, "headers": headers}

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            answer.update(message)

        asyncio.run(self.guard(scope, receive, send))
        return answer

    def post(self, path: str, content: object, visitor: str = "me") -> int:
        return int(self.ask(path, visitor, "POST", json.dumps(content).encode())["status"])

    def upload(self, visitor: str = "me", body: bytes = b"picture") -> str:
        return str(json.loads(self.ask(UPLOAD, visitor, "POST", body)["body"])[0])


@pytest.fixture
def door(tmp_path: Path) -> Door:
    folder = tmp_path / "cache"
    folder.mkdir()
    return Door(folder)


def test_who_has_no_cookie_gets_one_that_scripts_and_other_sites_cannot_use(door: Door) -> None:
    (_, cookie), *_ = door.ask("/", visitor="")["headers"]
    assert cookie.startswith(f"{COOKIE}=".encode()) and cookie.endswith(b"; Path=/; HttpOnly; SameSite=Strict")
    assert len(cookie.split(b";")[0]) > len(COOKIE) + 30
    assert not door.ask("/")["headers"]


@pytest.mark.parametrize("path", [
    "/gradio_api/run/predict", "/gradio_api/api/upscale", "/gradio_api/call/upscale", "/gradio_api/component_server",
    "/gradio_api/proxy=http://example.org/", "/gradio_api/file/etc/passwd", "/gradio_api/stream/1/2/3/playlist.m3u8",
    "/gradio_api/process_recording", "/gradio_api/deep_link", "/gradio_api/custom_component/1/client/x/index.js",
    "/gradio_api/vibe-edit", "/monitoring", "/gradio_api/dev/reload", "/login", "/anything",
])  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_what_the_page_does_not_use_is_closed(door: Door, path: str, method: str) -> None:
    assert door.ask(path, method=method, body=b"{}")["status"] == 404
    assert not door.server.seen


def test_a_visitor_reaches_their_own_files_alone(door: Door, tmp_path: Path) -> None:
    mine, place = door.upload(), door.visitors.place("me")
    place.mkdir()
    (place / "result.png").write_bytes(b"made")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (place / "link.png").symlink_to(tmp_path / "secret.png")
    own = [mine, str(place / "result.png")]
    foreign: list[object] = [
        str(tmp_path / "secret.png"), f"{place}/../../secret.png", f"{place}/link.png", f"{place}/none.png", str(place),
        "/etc/passwd", "http://127.0.0.1/x.png", f"file://{mine}", f"//{mine}", f"{mine}\0", f"{mine}/", "", ".",
        None, 3, [mine], {"x": 1},
    ]  # fmt: skip
    for path in own:
        assert door.ask(FILE + path)["status"] == 200 and door.post(JOIN, {"data": [{"path": path}]}) == 200
        assert door.ask(FILE + path, visitor="other")["status"] == 403
        assert door.post(JOIN, {"data": [{"path": path}]}, visitor="other") == 403
        assert door.ask(FILE + path, visitor="")["status"] == 403
    reached = len(door.server.seen)
    for target in foreign:
        assert door.post(JOIN, {"data": [{"path": target, "meta": {"_type": "gradio.FileData"}}]}) == 403
        assert door.post(JOIN, {"data": [], "event_data": {"deep": [{"down": {"path": target}}]}}) == 403
        assert not isinstance(target, str) or door.ask(FILE + target)["status"] == 403
    assert len(door.server.seen) == reached


def test_the_server_receives_what_was_checked(door: Door) -> None:
    mine = door.upload()
    twice = f'{{"data": [{{"path": "/etc/passwd", "path": {json.dumps(mine)}}}]}}'
    assert door.ask(JOIN, method="POST", body=twice.encode())["status"] == 200
    assert door.server.seen[-1] == (JOIN, json.dumps({"data": [{"path": mine}]}).encode())
    assert door.ask(JOIN, method="POST", body=b"not JSON")["status"] == 400
    assert door.ask(JOIN, method="POST", body=b"[" * 100_000)["status"] == 400
    assert door.ask(JOIN, method="POST", body=b" " * (MAX_EVENT + 1))["status"] == 413


def test_a_session_is_its_first_visitors(door: Door) -> None:
    assert door.post(JOIN, {"data": [], "session_hash": "tab"}) == 200
    assert door.ask(f"{API}queue/data?session_hash=tab")["status"] == 200
    for path in (
        f"{API}queue/data?session_hash=tab",
        f"{API}queue/data?session_hash=x&session_hash=tab",
        f"{HEARTBEAT}tab",
    ):
        assert door.ask(path, visitor="other")["status"] == 403
    for path in (JOIN, f"{API}cancel", f"{API}reset"):
        assert door.post(path, {"session_hash": "tab"}, visitor="other") == 403
        assert door.post(path, {"session_hash": ["tab"]}) == 403


def test_uploads_are_bounded_all_together(door: Door) -> None:
    assert door.ask(UPLOAD, method="POST", body=b"x" * 1001)["status"] == 413
    door.upload(body=b"x" * 600)
    assert door.ask(UPLOAD, method="POST", body=b"x" * 401)["status"] == 413
    assert door.ask(UPLOAD, method="POST", body=b"x", length="many")["status"] == 411
    door.upload(body=b"x" * 400)
    assert len(door.server.seen) == 2
