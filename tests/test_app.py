"""The web page in a real browser: Chromium, as Debian and others package it.

Two of the tests need Gradio, Selenium, Chromium and its driver, which all others do without; they run when asked for:

    .venv/bin/pip install --target .venv/app selenium          (after `make app`)
    PYTHONPATH=.venv/app .venv/bin/python -m pytest -m browser tests/test_app.py
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from PIL import Image
from tiny_run import write_tiny_model

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, str(ROOT / "scripts/app.py")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, and pictures good and bad."""
    folder = tmp_path_factory.mktemp("app")
    write_tiny_model(folder)
    photo = Image.fromarray(skimage.data.chelsea())
    photo.crop((100, 60, 124, 80)).convert("RGBA").save(folder / "cat.png")
    photo.save(folder / "large.png")
    (folder / "notes.png").write_text("no picture\n")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A page that is being served."""
    words = ["--base", "tiny.yaml", "--ckpt", "model.ckpt", "--max_pixels", "20000"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen([*COMMAND, *words], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())
        assert found is not None, "the page did not start"
        yield found[0]
        server.terminate()


class Tab:
    """A browser with the page."""

    def __init__(self, address: str, width: int) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={width},900"):
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        self.driver.get(address)

    def see(self, selector: str) -> Any:
        """The first element that is there and shown, waited for."""
        from selenium.webdriver.support.ui import WebDriverWait

        def shown(driver: Any) -> Any:
            found = driver.find_elements("css selector", selector)
            return found[0] if found and (found[0].is_displayed() or found[0].get_attribute("type") == "file") else None

        return WebDriverWait(self.driver, 60).until(shown)

    def read(self, words: str) -> str:
        """The status, as soon as it has these words."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 60).until(lambda _: words in self.see("#status").text)
        return str(self.see("#status").text)

    def hand_in(self, file: Path) -> None:
        self.see("#picture input[type=file]").send_keys(str(file))

    def type(self, label: str, value: str) -> None:
        self.see(f"input[type=number][aria-label$='{label}']").clear()
        self.see(f"input[type=number][aria-label$='{label}']").send_keys(f"{value}\t")


@pytest.fixture
def tab(address: str) -> Iterator[Tab]:
    tab = Tab(address, 1280)
    yield tab
    tab.driver.quit()


@pytest.mark.browser
def test_pictures_are_refused_upscaled_stopped(tab: Tab, folder: Path) -> None:
    tab.hand_in(folder / "notes.png")
    tab.read("notes.png: cannot be read as a picture (its content is of no known type).")
    tab.hand_in(folder / "large.png")
    tab.read("large.png: it is 451 × 300 pixels, and this page takes up to 0.02 megapixels; choose a smaller picture.")
    assert not tab.see("#go").is_enabled()
    tab.hand_in(folder / "cat.png")
    tab.read("24 × 20 pixels")
    tab.type("Steps", "1000")
    tab.driver.execute_script("arguments[0].click(); arguments[0].click()", tab.see("#go"))
    tab.read("/1000 steps")
    tab.see("#stop").click()
    tab.read("Stopped.")
    tab.type("Steps", "2")
    tab.see("#go").click()
    assert "96 × 80 pixels" in tab.read("Finished")
    tab.see("#result img")
    tab.see("#download")
    requested = re.findall(
        r'"url":"(?:https?|wss?)://([^/"]+)', "".join(entry["message"] for entry in tab.driver.get_log("performance"))
    )
    assert {host.partition(":")[0] for host in requested} == {"127.0.0.1"}  # nothing comes from elsewhere


@pytest.mark.browser
def test_mistakes_get_one_line(folder: Path) -> None:
    for words in (["--base", "tiny.yaml"], ["--base", "tiny.yaml", "--ckpt", "cat.png"], ["--max_pixels", "0"]):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([*COMMAND, *words], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def test_without_gradio_it_says_what_to_install() -> None:
    blocked = (
        "import sys, runpy; sys.modules['gradio'] = None; del sys.argv[0];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", blocked, COMMAND[1]], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: the page needs Gradio: use make app, or pip install 'gradio>=6'\n"
