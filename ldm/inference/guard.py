"""What stands between the network and the page: each visitor reaches what they handed in and what was made of it.

Gradio's own routes take paths and URLs from whoever sends them. Here every request passes first: routes that the page
does not use are closed, and a path in a request must be a file of the visitor, whom a cookie tells. Pure ASGI, without
Gradio.
"""

import json
import secrets
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from basicsr.utils.files import digest

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

COOKIE = "stablesr_edge_visitor"
API = "/gradio_api/"
UPLOAD = f"{API}upload"
FILE = f"{API}file="
HEARTBEAT = f"{API}heartbeat/"
# What the page asks for; all else is closed.
PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/pwa_icon")
FOLDERS = ("/assets/", "/static/", "/svelte/", HEARTBEAT, FILE)
QUERIES = tuple(API + name for name in ("info", "startup-events", "queue/data", "upload_progress", "theme.css"))
EVENTS = tuple(API + name for name in ("queue/join", "cancel", "reset"))
MAX_EVENT = 2**20  # bytes of a request that hands in no file


class Visitors:
    """Whose files and sessions are whose.

    folder: where uploads and results are kept. max_bytes: of all of them together, and so of an upload.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder.resolve()
        self.max_bytes = max_bytes
        self._uploads: dict[str, set[str]] = {}
        self._sessions: dict[str, str] = {}
        self._lock = threading.Lock()

    def place(self, visitor: str) -> Path:
        """The folder for what is made for a visitor."""
        return self.folder / f"of-{digest(visitor)}"

    def note_upload(self, visitor: str, path: str) -> None:
        """The server has stored an upload of the visitor's at `path`."""
        with self._lock:
            self._uploads.setdefault(visitor, set()).add(path)

    def owns(self, visitor: str, path: object) -> bool:
        """Whether `path` is a file that the visitor handed in, or that was made for them; no link counts."""
        if not visitor or not isinstance(path, str) or "\0" in path:
            return False
        if path not in self._uploads.get(visitor, ()) and self.place(visitor) not in Path(path).parents:
            return False
        return Path(path).resolve() == Path(path) and Path(path).is_file()

    def joins(self, visitor: str, session: object) -> bool:
        """Whether a session (a tab of a browser) is the visitor's; a new one becomes theirs."""
        if not isinstance(session, str):
            return False
        with self._lock:
            return self._sessions.setdefault(session, visitor) == visitor

    def room(self) -> int:
        """How many bytes may still be stored."""
        return self.max_bytes - sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())


class RefusedError(Exception):
    """The request is answered with this status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Guard:
    """ASGI middleware around the page's server."""

    def __init__(self, app: App, visitors: Visitors) -> None:
        self.app = app
        self.visitors = visitors

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer what is refused, hand on the rest."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        known = _visitor(scope)
        visitor = known or secrets.token_urlsafe(24)

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and not known:
                cookie = f"{COOKIE}={visitor}; Path=/; HttpOnly; SameSite=Strict"
                message["headers"] = [*message.get("headers", ()), (b"set-cookie", cookie.encode())]
            await send(message)

        try:
            if scope["type"] != "http":
                raise RefusedError(403, "only HTTP is spoken here")
            receive = await self._checked(scope, receive, visitor)
            if scope["path"] == UPLOAD:
                await self._upload(scope, receive, send_with_cookie, visitor)
            else:
                await self.app(scope, receive, send_with_cookie)
        except RefusedError as refusal:
            if scope["type"] != "http":
                await send({"type": "websocket.close", "code": 1008})
                return
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send_with_cookie({"type": "http.response.start", "status": refusal.status, "headers": headers})
            await send_with_cookie({"type": "http.response.body", "body": str(refusal).encode()})

    async def _checked(self, scope: Message, receive: Receive, visitor: str) -> Receive:
        """Raise RefusedError, or return what the server is to receive: of an event, just what was checked."""
        path, method = scope["path"], scope["method"]
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        sessions: list[object] = list(query.get("session_hash", ()))
        if method == "POST" and path in EVENTS:
            body = await _json(receive)
            if not all(self.visitors.owns(visitor, file) for file in _paths(body)):
                raise RefusedError(403, "that file was not handed in here")
            if isinstance(body, dict) and body.get("session_hash") is not None:
                sessions.append(body["session_hash"])
            receive = _again(json.dumps(body).encode(), receive)
        elif method == "POST" and path == UPLOAD:
            self._check_room(scope)
        elif method not in ("GET", "HEAD") or not (path in PAGES + QUERIES or path.startswith(FOLDERS)):
            raise RefusedError(404, "there is nothing here")
        elif path.startswith(FILE) and not self.visitors.owns(visitor, path.removeprefix(FILE)):
            raise RefusedError(403, "that file is not yours")
        elif path.startswith(HEARTBEAT):
            sessions.append(path.removeprefix(HEARTBEAT))
        if not all(self.visitors.joins(visitor, session) for session in sessions):
            raise RefusedError(403, "that session is not yours")
        return receive

    def _check_room(self, scope: Message) -> None:
        length = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
        if not length.isdecimal():
            raise RefusedError(411, "an upload must say how long it is")
        if int(length) > self.visitors.room():
            raise RefusedError(413, "there is no room for an upload of this size")

    async def _upload(self, scope: Message, receive: Receive, send: Send, visitor: str) -> None:
        """Hand an upload on, and note where the server says that it has stored it."""
        answer: list[bytes] = []
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            answer.append(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body") and status == 200:
                for path in json.loads(b"".join(answer)):
                    self.visitors.note_upload(visitor, path)
            await send(message)

        await self.app(scope, receive, noted)


def _visitor(scope: Message) -> str:
    """Of a request's cookie; empty where there is none."""
    try:
        cookies = SimpleCookie(dict(scope.get("headers", ())).get(b"cookie", b"").decode("latin-1"))
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""


async def _json(receive: Receive) -> object:
    content, more = b"", True
    while more:
        message = await receive()
        content, more = content + message.get("body", b""), message.get("more_body", False)
        if len(content) > MAX_EVENT:
            raise RefusedError(413, "too long")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "not JSON") from error


def _again(content: bytes, receive: Receive) -> Receive:
    """`receive`, of which the whole body was received before."""
    bodies = iter([content])

    async def receive_again() -> Message:
        body = next(bodies, None)
        return await receive() if body is None else {"type": "http.request", "body": body}

    return receive_again


def _paths(node: object) -> Iterator[object]:
    """Whatever stands under a key `path` anywhere in parsed JSON."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "path":
                yield value
            yield from _paths(value)
    elif isinstance(node, list):
        for value in node:
            yield from _paths(value)
