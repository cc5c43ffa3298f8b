"""The standalone page in a process of its own, and a person's hands and eyes in a browser."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image, ImageChops

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER_VARIABLE = "DREAMBOOTH_BROWSER"
WIDTH, HEIGHT = 1400, 900
FOR_PICTURES = bool(os.environ.get("DREAMBOOTH_SCREENSHOTS"))
PATIENCE_SECONDS = 1800.0 if FOR_PICTURES else 240.0
LOOK_SECONDS = 0.25
FREQUENT_COLORS, RARE_COLORS, MARGIN = 191, 64, 16


def find_browser() -> str:
    """The path of a Chromium; skips the test where there is none."""
    named = os.environ.get(BROWSER_VARIABLE, "")
    found = next(filter(None, (shutil.which(name) for name in (named, *BROWSERS) if name)), "")
    if not found:
        pytest.skip(f"No Chromium is installed (apt-get install chromium, or {BROWSER_VARIABLE}).")
    return found


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class App:
    """The standalone page, served from a process that can be ended and started again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = root / "page.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Serve the page, and wait until it answers."""
        command = [sys.executable, "-m", "dreambooth_core.ui", "--no-browser"]
        command += ["--root", str(self.root), "--port", str(self.port)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=self.root, stdout=log, stderr=subprocess.STDOUT
            )
        wait_until(self._answers, lambda: f"the page does not answer:\n{self.log.read_text()}")

    def kill(self) -> list[psutil.Process]:
        """End the process as a crash would; return the jobs that it leaves running."""
        assert self.process is not None
        jobs = []
        if self.process.poll() is None:
            jobs = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait()
        return [job for job in jobs if job.is_running()]

    def get(self, path: str) -> Any:
        """The answer of the API to a GET."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            return json.load(answer)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            self.get("/dreambooth/status")
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True


@contextmanager
def served(root: Path) -> Iterator[App]:
    """The page, and at the end neither it nor a job of it."""
    app = App(root)
    left: list[psutil.Process] = []
    kill = app.kill

    def killed() -> list[psutil.Process]:
        left.extend(jobs := kill())
        return jobs

    app.kill = killed  # type: ignore[method-assign]
    try:
        app.start()
        yield app
    finally:
        killed()
        for job in left:
            if job.is_running():
                job.kill()
        psutil.wait_procs(left, timeout=10)


class Person:
    """One open page: what can be pressed, typed and seen, by the names that the page shows."""

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE_SECONDS * 1000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self) -> None:
        """Open the page, or load it anew."""
        self.page.goto(self.url)
        self.page.locator("#dreambooth_tabs").wait_for(timeout=PATIENCE_SECONDS * 1000)
        self.sees("#dreambooth_status", "")

    def tab(self, name: str) -> None:
        """Go to a tab."""
        self.page.get_by_role("tab", name=name, exact=True).click()

    def tab_in_view(self) -> str:
        """The name of the tab that is in view."""
        return str(
            self.page.locator("#dreambooth_tabs [role=tab][aria-selected=true]").inner_text()
        )

    def press(self, elem_id: str) -> None:
        """Press a button as soon as it can be pressed."""
        button = self.page.locator(f"#{elem_id}")
        wait_until(button.is_enabled, lambda: f"{elem_id} cannot be pressed; {self.standing()}")
        button.click()

    def value(self, elem_id: str) -> str:
        """What a field holds."""
        return str(self._field(elem_id).input_value())

    def type(self, elem_id: str, text: str) -> None:
        """Write into a field, and leave it."""
        field = self._field(elem_id)
        field.fill(text)
        field.blur()

    def text(self, selector: str) -> str:
        """What is written at a place, "" if there is no such place."""
        place = self.page.locator(selector)
        return str(place.first.inner_text()) if place.count() else ""

    def sees(self, selector: str, words: str) -> str:
        """Wait until words stand at a place; return all that stands there."""
        return self.waits(lambda: self.text(selector), lambda text: words in text, words)

    def waits(
        self, look: Callable[[], str], good: Callable[[str], bool], wanted: str = "a change"
    ) -> str:
        """Look until what is seen is good; return it."""
        wait_until(lambda: good(look()), lambda: f"no {wanted!r} but {look()!r}; {self.standing()}")
        return look()

    def pictures(self) -> int:
        """How many pictures the run's gallery shows."""
        return int(self.page.locator("#dreambooth_run_gallery img").count())

    def repeated_ids(self) -> list[str]:
        """The names of our parts that are on the page more than once."""
        script = "[...document.querySelectorAll('[id^=dreambooth]')].map(part => part.id)"
        ids = list(self.page.evaluate(script))
        return sorted({name for name in ids if ids.count(name) > 1})

    def width_of(self, selector: str) -> int:
        """How wide the picture at a place is shown, 0 if there is none."""
        box = self.page.locator(f"{selector} img").first
        return round(box.bounding_box()["width"]) if box.count() and box.is_visible() else 0

    def standing(self) -> str:
        """What the run panel says; for messages of failed tests."""
        parts = ("answer", "progress", "summary")
        panel = " | ".join(self.text(f"#dreambooth_run_{part}") for part in parts)
        return f"tab {self.tab_in_view()} | {panel}"

    def picture(self, path: Path) -> None:
        """Keep a picture of the whole page, in so few colours that its file is small."""
        path.parent.mkdir(parents=True, exist_ok=True)
        shot = self.page.screenshot(full_page=True, animations="disabled")
        image = Image.open(io.BytesIO(shot)).convert("RGB")
        empty = Image.new("RGB", image.size, image.getpixel((0, 0)))
        *_, bottom = ImageChops.difference(image, empty).getbbox() or (0, 0, 0, image.height)
        image = image.crop((0, 0, image.width, min(bottom + MARGIN, image.height)))
        _in_few_colors(image).save(path, optimize=True)

    def _field(self, elem_id: str) -> Any:
        return self.page.locator(f"#{elem_id}").locator("textarea, input:not([type=range])").first


def _in_few_colors(image: Image.Image) -> Image.Image:
    """The picture in 256 colors: white, those that are frequent, and rare ones far from these."""
    frequent = image.quantize(FREQUENT_COLORS, Image.Quantize.MEDIANCUT).getpalette() or []
    rare = image.quantize(RARE_COLORS, Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = Image.new("P", (1, 1))
    shown = [255, 255, 255, *frequent[: 3 * FREQUENT_COLORS], *rare[: 3 * RARE_COLORS]]
    palette.putpalette(shown)
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


@contextmanager
def browsing(url: str) -> Iterator[Person]:
    """A person at an empty browser window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        try:
            yield Person(browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}), url)
        finally:
            browser.close()


def wait_until(
    good: Callable[[], bool], why: Callable[[], str], seconds: float = PATIENCE_SECONDS
) -> None:
    """Look again and again until it is good; fail with the reason after a long while."""
    end = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < end, why()
        time.sleep(LOOK_SECONDS)
