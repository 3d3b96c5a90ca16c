"""The study's page in a real browser. Without playwright or a Chromium the tests are skipped."""

import csv
import functools
import io
import json
import shutil
import threading
import time
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dnp.evaluation import answers
from study import make_study

playwright = pytest.importorskip(
    "playwright.sync_api", reason="no playwright; tests/README.md says how to get a browser"
)
pytestmark = pytest.mark.slow
PHONE = dict(
    viewport=dict(width=390, height=844), has_touch=True, is_mobile=True, device_scale_factor=3
)
DESKTOP = dict(viewport=dict(width=1280, height=800))
# As the page has it, between a browser's bars.
SCREENS = {"laptop": (1366, 600), "phone": (390, 664), "small": (360, 560), "sideways": (740, 340)}
KEYS = {"left": "ArrowLeft", "equal": "ArrowDown", "right": "ArrowRight", "unclear": "x"}
ARMED = "[data-answer=left]:enabled"


@pytest.fixture(scope="module")
def chromium():
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as p:
        path = path or p.chromium.executable_path  # the one of `playwright install chromium`
        if not Path(path).exists():
            pytest.skip("no Chromium; tests/README.md says how to get one")
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
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


def check_file(rows, path, seen, key):
    """The file is what was shown and answered, and the analysis reads it."""
    texts = {q["id"]: q["text"] for q in key["plan"]["questions"]}
    assert len(rows) == len(seen) == answers.expected(key)
    for i, (row, (question, prompt, left, right)) in enumerate(zip(rows, seen)):
        assert row["answer"] == given(i)
        assert (texts[row["question"]], row["left"], row["right"]) == (question, left, right)
        assert prompt in (None, row["prompt"])
    own = answers.read_file(path, key)
    assert [x.answer for x in own] == [given(i) for i in range(len(rows))]


def test_a_whole_study_by_keyboard_from_the_disk(chromium, study, tmp_path):
    folder, key = study
    with opened(chromium, (folder / "index.html").as_uri(), **DESKTOP) as (_, page, asked):
        for press in ("Tab", "Space", "Tab", "Enter"):  # agree, begin
            page.keyboard.press(press)
        page.wait_for_selector("#guide:not([hidden])")
        for press in ("Tab", "Enter"):
            page.keyboard.press(press)
        seen = []
        for i in range(answers.expected(key)):
            page.wait_for_selector(ARMED)
            seen.append(shown(page))
            page.keyboard.press(KEYS[given(i)])
        page.wait_for_selector("#done:not([hidden])")
        rows, path = saved(page, tmp_path)
        assert page.input_value("#csv").splitlines() == path.read_text().splitlines()
    check_file(rows, path, seen, key)
    assert asked
    assert all(url.startswith(folder.as_uri()) or url.startswith(("blob:", "data:"))
               for url in asked)  # fmt: skip
    assert not any("key.json" in url for url in asked)


def test_a_whole_study_by_touch_at_phone_size_from_a_static_server(chromium, study, tmp_path):
    folder, key = study
    with served(folder) as url, opened(chromium, url, **PHONE) as (_, page, asked):
        for what in ("#agree", "#begin", "#start"):
            page.tap(what)
        seen = []
        for i in range(answers.expected(key)):
            page.wait_for_selector(ARMED)
            seen.append(shown(page))
            page.tap(f"[data-answer={given(i)}]")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.wait_for_selector("#done:not([hidden])")
        rows, path = saved(page, tmp_path)
        assert all(u.startswith((url, "blob:", "data:")) for u in asked)
        assert not any("key.json" in u for u in asked)
    check_file(rows, path, seen, key)


@pytest.mark.parametrize("screen", SCREENS)
def test_a_question_is_in_sight_and_every_button_large_enough_for_a_finger(chromium, study, screen):
    width, height = SCREENS[screen]
    options = DESKTOP if screen == "laptop" else PHONE
    options = options | dict(viewport=dict(width=width, height=height))
    with opened(chromium, (study[0] / "index.html").as_uri(), **options) as (_, page, _asked):
        begin(page)  # the guide is long, and was scrolled down
        for _ in range(2):
            page.wait_for_selector(ARMED)
            for part in page.query_selector_all("#question, #text, #trial img, #trial button"):
                box = part.bounding_box()
                assert box["x"] >= 0 and box["x"] + box["width"] <= width
                assert box["y"] >= 0 and box["y"] + box["height"] <= height
                assert part.evaluate("x => x.tagName") != "BUTTON" or box["height"] >= 44
            page.click("[data-answer=left]")


TEXTS = """() => {
  const clear = (c) => c === "rgba(0, 0, 0, 0)";
  const light = (c) => c.match(/[0-9.]+/g).slice(0, 3).map((x) => x / 255)
    .map((x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + [0.2126, 0.7152, 0.0722][i] * x, 0);
  const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return [...document.querySelectorAll("body *")]
    .filter((e) => own(e) && e.checkVisibility({ checkVisibilityCSS: true }) && !e.disabled)
    .map((e) => {
      let under = e;
      while (clear(getComputedStyle(under).backgroundColor)) under = under.parentElement;
      const style = getComputedStyle(e);
      const two = [light(style.color), light(getComputedStyle(under).backgroundColor)];
      const ratio = (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
      return [e.textContent.slice(0, 30), parseFloat(style.fontSize), ratio];
    });
}"""


@pytest.mark.parametrize("options", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_text_can_be_read(chromium, study, options):
    """The contrast of WCAG 2.2, 1.4.3 (AA), and no letters below 14 pixels."""
    seen = set()
    with opened(chromium, (study[0] / "index.html").as_uri(), **options) as (_, page, _asked):
        steps = ["#agree", "#begin", "#start", "[data-answer=left]", "#help", "#start"]
        for step in [None, *steps, None]:
            if step:
                page.click(step)
            page.wait_for_timeout(400)  # the animation's end
            for text, size, ratio in page.evaluate(TEXTS):
                seen.add(text)
                assert ratio >= 4.5, (text, ratio)
                assert size >= 14, (text, size)
        page.evaluate("while (state.answers.length < total()) answer('left') || arm(true)")
        page.wait_for_selector("#done:not([hidden])")
        assert all(ratio >= 4.5 and size >= 14 for _, size, ratio in page.evaluate(TEXTS))
    assert {"Begin", "Start", "Left", "Cannot tell", "Pair 1 of 12"} <= seen


def test_a_tab_closed_in_the_middle_goes_on_where_it_was(chromium, study, tmp_path):
    folder, key = study
    url = (folder / "index.html").as_uri()
    with opened(chromium, url, **DESKTOP) as (context, page, _):
        begin(page)
        seen, middle = [], answers.expected(key) // 2 + 1
        for i in range(answers.expected(key)):
            page.wait_for_selector(ARMED)
            if i == middle:
                before = shown(page)
                page.close()
                page = context.new_page()
                page.goto(url)
                page.wait_for_selector(ARMED)
                assert shown(page) == before
            seen.append(shown(page))
            page.keyboard.press(KEYS[given(i)])
        page.wait_for_selector("#done:not([hidden])")
        page.reload()
        rows, path = saved(page, tmp_path)
    check_file(rows, path, seen, key)


def test_buttons_arm_when_both_pictures_are_loaded_and_of_one_size(chromium, study):
    gate = threading.Event()
    late = lambda path: gate.wait(20) if path.endswith(".png") else None
    with served(study[0], late) as url, opened(chromium, url, **DESKTOP) as (_, page, _asked):
        begin(page)
        time.sleep(0.5)
        assert page.locator("[data-answer]:enabled").count() == 0
        page.keyboard.press("ArrowLeft")  # says nothing yet
        assert page.inner_text("#place").startswith("Pair 1 of")
        assert "Question 1 of 2" in page.inner_text("#place")
        gate.set()
        page.wait_for_selector(ARMED)
        boxes = [page.locator(side).bounding_box() for side in ("#left", "#right")]
        natural = page.evaluate("[left, right].map((x) => [x.naturalWidth, x.naturalHeight])")
        assert natural == [[16, 16], [16, 16]]
        assert [boxes[0][k] for k in ("width", "height", "y")] == [
            boxes[1][k] for k in ("width", "height", "y")
        ]
        assert boxes[0]["width"] % 16 == 0  # a whole number of the screen's pixels for each


@pytest.mark.parametrize("size, options", [((16, 16), PHONE), ((600, 500), DESKTOP)])
def test_magnification_is_whole_on_any_screen(chromium, tmp_path, size, options):
    folder, key = make_study(tmp_path, size=size, prompts=6)
    with opened(chromium, (folder / "index.html").as_uri(), **options) as (_, page, _asked):
        begin(page)
        page.wait_for_selector(ARMED)
        ratio, widths = page.evaluate(
            "[devicePixelRatio, [left, right].map((x) => x.getBoundingClientRect().width)]"
        )
    factors = [width * ratio / key["plan"]["size"][0] for width in widths]
    assert factors[0] == factors[1]
    whole = factors[0] if factors[0] >= 1 else 1 / factors[0]
    assert whole == pytest.approx(round(whole), abs=0.01)


def test_a_picture_that_is_missing_arms_cannot_tell_alone(chromium, tmp_path):
    folder, _ = make_study(tmp_path)
    for path in (folder / "pictures").iterdir():
        path.unlink()
    fault = ("ERR_FILE_NOT_FOUND",)
    url = (folder / "index.html").as_uri()
    with opened(chromium, url, fault, **DESKTOP) as (_, page, _asked):
        begin(page)
        page.wait_for_selector("[data-answer=unclear]:enabled")
        armed = page.eval_on_selector_all("[data-answer]:enabled", "x => x.map(b => b.textContent)")
        assert len(armed) == 1
        assert "cannot be shown" in page.inner_text("#notice")


def test_back_takes_one_answer_back_and_a_held_key_answers_once(chromium, study):
    with opened(chromium, (study[0] / "index.html").as_uri(), **DESKTOP) as (_, page, _asked):
        begin(page)
        page.wait_for_selector(ARMED)
        first = shown(page)
        page.keyboard.down("ArrowLeft")
        for _ in range(5):
            page.keyboard.down("ArrowLeft")  # repeats, as a held key does
            time.sleep(0.05)
        page.keyboard.up("ArrowLeft")
        page.wait_for_selector(ARMED)
        assert "Question 2 of 2" in page.inner_text("#place")
        page.keyboard.press("Backspace")
        page.wait_for_selector(ARMED)
        assert shown(page) == first
        assert page.locator("#back").is_disabled()


def test_a_double_click_answers_once(chromium, study):
    with opened(chromium, (study[0] / "index.html").as_uri(), **DESKTOP) as (_, page, _asked):
        page.clock.install(time=0)
        page.clock.pause_at(1000)
        begin(page)
        for i in range(3):
            page.wait_for_selector("#pictures.shown")
            page.clock.run_for(299)
            page.keyboard.press("ArrowRight")
            page.evaluate("document.querySelector('[data-answer=left]').click()")
            assert page.evaluate("state.answers.length") == i
            page.clock.run_for(1)
            page.keyboard.press("ArrowRight")
            assert page.evaluate("state.answers.at(-1).milliseconds") >= 300


def test_sides_are_balanced_and_order_differs_for_each_rater(chromium, study):
    _, key = study
    real = {pid: p for pid, p in key["pairs"].items() if p["kind"] == "pair"}
    with opened(chromium, (study[0] / "index.html").as_uri(), **DESKTOP) as (_, page, _asked):
        orders = page.evaluate(
            "[...Array(300).keys()].map((i) => sequence('r' + i.toString(16).padStart(12, '0')))"
        )
    repeats, places, left = set(key["plan"]["repeats"]), {}, {}
    for order in orders:
        first = {t["pair"]: (i, t) for i, t in enumerate(order) if t["showing"] == 1}
        again = {t["pair"]: (i, t) for i, t in enumerate(order) if t["showing"] == 2}
        assert set(first) == set(key["pairs"])
        assert set(again) == repeats
        for pid, (i, t) in again.items():
            j, once = first[pid]
            assert (t["left"], t["right"]) == (once["right"], once["left"])
            assert j < i - 1  # never one after the other
        assert sum(t["left"] == real[pid]["a"] for pid, (_, t) in first.items() if pid in real) == 3
        known = [(t, key["pairs"][pid]) for pid, (_, t) in first.items() if pid not in real]
        assert sum(t["left"] == p["right"] for t, p in known) == 2
        for pid, (i, t) in first.items():
            places.setdefault(pid, []).append(i)
            left.setdefault(pid, []).append(t["left"] == key["pairs"][pid].get("a"))
    assert len({json.dumps(order) for order in orders}) > 290
    for pid in real:  # over raters each pair is on both sides alike: 5 standard deviations
        assert abs(sum(left[pid]) - 150) < 5 * (300 * 0.25) ** 0.5
    for pid in set(key["pairs"]) - repeats:
        assert max(places[pid]) - min(places[pid]) >= 9


def test_what_a_screen_reader_is_told_says_nothing_of_the_methods(chromium, study):
    with opened(chromium, (study[0] / "index.html").as_uri(), **DESKTOP) as (context, page, _):
        begin(page)
        page.wait_for_selector(ARMED)
        told = page.locator("#trial").aria_snapshot()
        page.evaluate("question.onfocus = () => { window.focused = true; }")
        for _ in range(3):  # a new question gets the focus anew, so that it is read out
            page.evaluate("window.focused = false")
            page.keyboard.press("ArrowLeft")
            page.wait_for_selector(ARMED)
            assert page.evaluate("[document.activeElement.id, focused]") == ["question", True]
        nodes = context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
        said = [[n.get(k, {}).get("value") for k in ("role", "description")] for n in nodes]
        (description,) = (text for role, text in said if role == "heading")
        assert page.inner_text("#text") in description  # the text is read out with the question
        told += page.locator("#trial").aria_snapshot() + json.dumps(said)
    for name in ("left picture", "right picture", "Which is the better picture?"):
        assert name in told
    assert ".png" not in told


def test_deleting_answers_starts_anew_as_another_rater(chromium, study):
    with opened(chromium, (study[0] / "index.html").as_uri(), **DESKTOP) as (_, page, _asked):
        begin(page)
        page.wait_for_selector(ARMED)
        before = page.evaluate("state.rater")
        page.evaluate("while (state.answers.length < total()) answer('left') || arm(true)")
        page.wait_for_selector("#done:not([hidden])")
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("#forget")
        page.wait_for_selector("#welcome:not([hidden])")
        assert page.evaluate("state.rater") != before
        assert page.evaluate("state.answers.length") == 0


def test_two_tabs_of_a_rater_are_one_study(chromium, study):
    with served(study[0]) as url, opened(chromium, url, **DESKTOP) as (context, page, _):
        begin(page)
        page.wait_for_selector(ARMED)
        other = context.new_page()
        other.goto(url)
        other.wait_for_selector(ARMED)
        page.keyboard.press("ArrowLeft")
        other.wait_for_function("place.textContent.includes('Question 2 of 2')")
        assert shown(other) == shown(page)


def test_a_browser_that_keeps_nothing_is_told_to_the_rater(chromium, study, tmp_path):
    with opened(chromium, "about:blank", **DESKTOP) as (context, page, _):
        full = "Storage.prototype.setItem = () => { throw new Error('full'); }"
        context.add_init_script(full)
        page.goto((study[0] / "index.html").as_uri())
        begin(page)
        assert "keeps nothing" in page.inner_text("#notice")
        for i in range(answers.expected(study[1])):
            page.wait_for_selector(ARMED)
            page.keyboard.press(KEYS[given(i)])
        page.wait_for_selector("#done:not([hidden])")
        _, path = saved(page, tmp_path)
    assert len(answers.read_file(path, study[1])) == answers.expected(study[1])
