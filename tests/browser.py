"""A Chromium for the tests of the study's page, and what its raters do."""

import csv
import functools
import io
import shutil
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from study import make_study

PHONE = dict(
    viewport=dict(width=390, height=844), has_touch=True, is_mobile=True, device_scale_factor=3
)
DESKTOP = dict(viewport=dict(width=1280, height=800))
KEYS = {"left": "ArrowLeft", "equal": "ArrowDown", "right": "ArrowRight", "unclear": "x"}
ARMED = "[data-answer=left]:enabled"


@pytest.fixture(scope="session")
def chromium():
    """A browser. Without playwright or a Chromium the tests are skipped."""
    why = "no playwright; tests/README.md says how to get a browser"
    playwright = pytest.importorskip("playwright.sync_api", reason=why)
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    driver = playwright.sync_playwright().start()
    path = path or driver.chromium.executable_path  # the one of `playwright install chromium`
    if not Path(path).exists():
        driver.stop()
        pytest.skip("no Chromium; tests/README.md says how to get one")
    browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
    yield browser
    browser.close()
    driver.stop()


@pytest.fixture(scope="session")
def a_study(tmp_path_factory):
    """(the folder of a small study, its key)."""
    return make_study(tmp_path_factory.mktemp("browser"))


@contextmanager
def opened(browser, url, faults=(), **options):
    """(context, page, what was requested). Errors of the page fail the test at the end."""
    context, asked, errors = browser.new_context(**options), [], []
    context.on("request", lambda r: asked.append(r.url))
    context.on("weberror", lambda e: errors.append(str(e.error)))
    context.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page = context.new_page()
    page.goto(url)
    yield context, page, asked
    context.close()
    assert [e for e in errors if not any(fault in e for fault in faults)] == []


@contextmanager
def served(folder, before=lambda path: None):
    """The folder on a static server of this machine; `before` is called before each answer."""

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            before(self.path)
            super().do_GET()

        def log_message(self, *_):
            """Says nothing."""

    handler = functools.partial(Handler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def begin(page):
    page.check("#agree")
    page.click("#begin")
    page.click("#start")


def shown(page):
    """What a rater sees: (text of the question, prompt or None, left file, right file)."""
    return page.evaluate(
        """() => [question.textContent,
            text.classList.contains("shown") ? text.textContent.slice(1, -1) : null,
            left.src.split("/").pop(), right.src.split("/").pop()]"""
    )


def given(i):
    return ("left", "equal", "right", "unclear", "right")[i % 5]


def saved(page, folder):
    """The rows of the file that the page saves, and its path."""
    with page.expect_download() as waiting:
        page.click("#save")
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"), newline=""))), path
