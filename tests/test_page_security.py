"""Forged requests against the page's real server: no file is read that its visitor did not hand in.

Needs Gradio, as tests/test_app.py does; `-m browser` runs it. The server notes
every file that it opens, by an audit hook.
"""

import html
import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import skimage.data
import torch
from PIL import Image
from tiny_run import write_tiny_model

from ldm.config import load_config
from ldm.models.build import build_model

pytestmark = pytest.mark.browser

AUDITED = """
import sys
log = open(sys.argv[1], "a", buffering=1)
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        log.write(f"{arguments[0]}\\n")
sys.addaudithook(note)
from ldm.inference.app import main
sys.exit(main(sys.argv[2:]))
"""
META = {"_type": "gradio.FileData"}


class Served(NamedTuple):
    """A page that is being served."""

    address: str
    cache: Path
    opened: Path  # a list of every file that the server has opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, a picture to hand in, and one that is nobody's business."""
    folder = tmp_path_factory.mktemp("page")
    write_tiny_model(folder)
    photo = Image.fromarray(skimage.data.chelsea())
    photo.crop((100, 60, 124, 80)).save(folder / "cat.png")
    photo.crop((200, 60, 224, 80)).save(folder / "secret.png")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[Served]:
    (folder / "tiny.ckpt").symlink_to(folder / "model.ckpt")
    with served(folder, "tiny") as page:
        yield page


@contextmanager
def served(folder: Path, model: str) -> Iterator[Served]:
    log, temporary = folder / f"opened-{model}.txt", folder / f"temporary-{model}"
    temporary.mkdir()
    words = ["--base", f"{model}.yaml", "--ckpt", f"{model}.ckpt"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
        "PYTHONWARNINGS": "ignore",
        "TMPDIR": str(temporary),
    }
    command = [sys.executable, "-c", AUDITED, str(log), *words]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())
        assert found is not None, "the page did not start"
        (cache,) = temporary.glob("stablesr-edge-*/cache")
        yield Served(found[0], cache, log)
        server.terminate()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine, and what it is asked for: the page must not fetch anything for anybody."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/x.png", asked
        server.shutdown()


class Visitor:
    """A client that sends what it likes, with a cookie of its own and one session."""

    def __init__(self, page: Served) -> None:
        self.page = page
        self.session = uuid.uuid4().hex
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self.config = json.loads(self.ask("config")[1])

    def ask(self, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
        """Status and content."""
        request = urllib.request.Request(self.page.address + path, body, {"Content-Type": kind})
        try:
            with self.opener.open(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def upload(self, content: bytes, name: str = "cat.png") -> tuple[int, bytes]:
        head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        body = f"{head}Content-Type: image/png\r\n\r\n".encode() + content + b"\r\n--b--\r\n"
        return self.ask("gradio_api/upload", body, "multipart/form-data; boundary=b")

    def function(self, name: str) -> dict[str, Any]:
        return next(each for each in self.config["dependencies"] if each["api_name"] == name)

    def event(self, name: str, data: list[Any], **more: Any) -> str:
        """Send an event and wait for what becomes of it."""
        body = {"data": data, "fn_index": self.function(name)["id"], "session_hash": self.session, **more}
        status, said = self.ask("gradio_api/queue/join", json.dumps(body).encode())
        if status != 200:
            return f"{status} {said.decode()}"
        return self.ask(f"gradio_api/queue/data?session_hash={self.session}")[1].decode()

    def upscale(self) -> str:
        """Upscale what was handed in, with two steps and every other control as it is."""
        defaults = {
            each["id"]: 2 if each["props"].get("label") == "Steps" else each["props"].get("value")
            for each in self.config["components"]
        }
        return self.event("upscale", [defaults[number] for number in self.function("upscale")["inputs"]])


ROUTES = ("file=", "file/", "proxy=", "static/", "../file=", "stream/", "custom_component/1/client/component/")


class Tries:
    """What was tried, by kind: requests, those refused, and files of others that the server opened meanwhile."""

    def __init__(self, page: Served, secrets: set[str]) -> None:
        self.page, self.secrets = page, secrets
        self.kinds: dict[str, tuple[int, int, int]] = {}
        self.seen = len(page.opened.read_text().splitlines())

    def note(self, kind: str, *, refused: bool) -> None:
        opened = self.page.opened.read_text().splitlines()
        new, self.seen = opened[self.seen :], len(opened)
        read = sum(path in self.secrets or "secret" in path or "private" in path for path in new)
        tried, stopped, foreign = self.kinds.get(kind, (0, 0, 0))
        self.kinds[kind] = (tried + 1, stopped + refused, foreign + read)

    def table(self) -> str:
        rows: list[tuple[str, ...]] = [("what was tried", "requests", "refused", "files read")]
        rows += [(kind, *map(str, counts)) for kind, counts in self.kinds.items()]
        rows += [("all", *(str(sum(each)) for each in zip(*self.kinds.values(), strict=True)))]
        return "\n".join(f"{kind:46}{tried:>10}{refused:>10}{read:>12}" for kind, tried, refused, read in rows)


def files_in(said: str) -> set[str]:
    return set(re.findall(r'"path":"([^"]+)"', said))


def forged(target: str, url: str) -> dict[str, Any]:
    """Payloads of a picture box that name a file which was not handed in."""
    back = "/".join([".."] * 40)
    return {
        "a path": {"path": target},
        "a path and meta": {"path": target, "meta": META},
        "a path and a url": {"path": target, "url": url},
        "a path, a url and meta": {"path": target, "url": url, "meta": META},
        "a stream": {"path": target, "is_stream": True, "meta": META},
        "a huge size": {"path": target, "size": 10**30, "orig_name": "../../x", "meta": META},
        "dots": {"path": f"{back}{target}"},
        "dots and meta": {"path": f"{back}{target}", "meta": META},
        "file:": {"path": f"file://{target}"},
        "slashes": {"path": f"//{target}", "meta": META},
        "a null byte": {"path": f"{target}\0.png"},
        "a URL": {"path": url},
        "a URL and meta": {"path": url, "meta": META},
        "a url alone": {"url": url, "meta": META},
        "a url that is a path": {"path": None, "url": target, "meta": META},
        "inside a value": {"value": {"path": target, "meta": META}},
        "a list": [{"path": target, "meta": META}],
        "a path in a path": {"path": {"path": target}},
        "a text": target,
    }


def test_no_file_is_read_that_was_not_handed_in(page: Served, folder: Path, elsewhere: tuple[str, list[str]]) -> None:
    victim, attacker = Visitor(page), Visitor(page)
    status, stored = victim.upload((folder / "secret.png").read_bytes(), "private.png")
    (upload,) = json.loads(stored)
    assert status == 200 and "Press Upscale" in victim.event("hand_in", [{"path": upload, "meta": META}])
    results = files_in(said := victim.upscale())
    assert "Finished" in said and len(results) >= 2
    (page.cache / "link.png").symlink_to(folder / "secret.png")
    url, asked = elsewhere
    targets = [
        str(folder / "secret.png"), str(folder / "tiny.yaml"), "secret.png", upload, *results,
        str(page.cache / "link.png"), f"{Path(upload).parent}/../{Path(upload).parent.name}/private.png",
    ]  # fmt: skip
    assert upload in page.opened.read_text().splitlines()  # the list shows what is read, here for who handed it in
    tries = Tries(page, {*targets, str((folder / "secret.png").resolve())})
    for target in targets:
        for kind, payload in forged(target, url).items():
            for more in ({}, {"event_data": payload}, {"trigger_id": 1, "event_data": {"_data": payload}}):
                said = attacker.event("hand_in", [payload], **more)
                tries.note(kind, refused="Press Upscale" not in said and "private.png</b>" not in said)
            for name in ("upscale", "begin", "stop"):
                said = attacker.event(name, [payload] * len(attacker.function(name)["inputs"]))
                tries.note(kind, refused="Finished" not in said)
            body = json.dumps({"data": [payload], "fn_index": 0, "session_hash": attacker.session}).encode()
            for route in ("run/predict", "api/predict", "call/hand_in", "call/v2/hand_in", "component_server", "reset"):
                tries.note(f"{kind}, to other routes", refused=attacker.ask(f"gradio_api/{route}", body)[0] >= 400)
        for route in ROUTES:
            status, _ = attacker.ask(f"gradio_api/{route}{urllib.parse.quote(target)}")
            tries.note(f"GET {route}", refused=status >= 400)
    sys.stdout.write(f"\n{tries.table()}\n")  # pytest -s shows it
    assert sum(tried for tried, _, _ in tries.kinds.values()) > 300
    assert not [kind for kind, (tried, refused, read) in tries.kinds.items() if refused < tried or read], tries.table()
    assert not asked


def test_results_and_sessions_are_their_owners(page: Served, folder: Path) -> None:
    owner, other = Visitor(page), Visitor(page)
    (upload,) = json.loads(owner.upload((folder / "cat.png").read_bytes())[1])
    shown = owner.event("hand_in", [{"path": upload, "meta": META}])
    result = owner.upscale()
    assert "24 × 20 pixels" in shown and "Finished" in result
    for path in files_in(result) | files_in(shown):
        assert owner.ask(f"gradio_api/file={path}")[0] == 200
        assert other.ask(f"gradio_api/file={path}")[0] == 403
    other.session = owner.session
    assert other.event("upscale", []).startswith("403")
    assert other.ask(f"gradio_api/queue/data?session_hash={owner.session}")[0] == 403


def test_a_picture_of_edges_is_its_owners_too(folder: Path) -> None:
    # The models of other tests see no edges; the page has the box for them, unseen, all the same.
    config = folder / "edgy.yaml"
    old = "structcond_stage_config: {params: {channel_mult"
    config.write_text(
        (folder / "tiny.yaml").read_text().replace(old, old.replace("channel_mult", "in_channels: 8, channel_mult"))
    )
    torch.save({"state_dict": build_model(load_config([config])).state_dict()}, folder / "edgy.ckpt")
    with served(folder, "edgy") as page:
        owner, attacker = Visitor(page), Visitor(page)
        picture, edges = (
            json.loads(owner.upload((folder / name).read_bytes(), name)[1])[0] for name in ("cat.png", "secret.png")
        )
        assert "Press Upscale" in owner.event("hand_in", [{"path": picture, "meta": META}])
        assert "are the edges" in owner.event("hand_in_edges", [{"path": edges, "meta": META}])
        said = owner.upscale()
        (told,) = (file for file in files_in(said) if file.endswith("cat_edge.png"))
        assert owner.ask(f"gradio_api/file={told}")[0] == 200
        for file in (edges, told, str(folder / "secret.png")):
            assert attacker.ask(f"gradio_api/file={file}")[0] == 403
            assert "not handed in here" in attacker.event("hand_in_edges", [{"path": file, "meta": META}])


def test_uploads_stay_in_their_place(page: Served, folder: Path) -> None:
    visitor = Visitor(page)
    for name in ("../../../../evil.png", f"{folder}/evil.png", "..", "a/../../evil.png"):
        status, stored = visitor.upload(b"x", name)
        assert status >= 400 or page.cache in Path(json.loads(stored)[0]).resolve().parents
    outside = [path for path in folder.rglob("*evil*") if page.cache.resolve() not in path.resolve().parents]
    assert not outside


HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def test_texts_from_files_are_no_html(page: Served, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, EXIF and what is wrong with a file are shown as texts, whatever the server makes of an upload's name."""
    photo, exif = Image.open(folder / "cat.png"), Image.Exif()
    exif[0x010E] = HOSTILE  # the description
    photo.save(folder / "described.jpg", exif=exif)
    visitor = Visitor(page)
    for content, name in (((folder / "described.jpg").read_bytes(), f"{HOSTILE}.jpg"), (b"none", f"{HOSTILE}.png")):
        (upload,) = json.loads(visitor.upload(content, name)[1])
        said = visitor.event("hand_in", [{"path": upload, "meta": META, "orig_name": name}])
        assert ("Press Upscale" in said) == name.endswith("jpg") and "<img" not in said and "<script" not in said
    said = visitor.upscale()
    assert "<img" not in said and "<script" not in said

    from ldm.inference.page import Page, refused

    request: Any = SimpleNamespace(cookies={}, session_hash="x")
    parts: list[Any] = [None] * 4
    hostile = SimpleNamespace(name=f"{HOSTILE}.png")  # as if Gradio changed no name
    monkeypatch.setattr(Page, "_opened", lambda *_: (hostile, hostile, (8, 8)))
    shown = Page(*parts)
    monkeypatch.setattr("ldm.inference.page.sees_edges", lambda _: True)
    for status in (shown.hand_in("x", request)[3], shown.hand_in_edges("x", request)[2], refused(ValueError(HOSTILE))):
        assert html.escape(HOSTILE) in status and "<img" not in status and "<script" not in status
