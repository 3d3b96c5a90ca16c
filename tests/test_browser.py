"""Studies in a real browser: whole ones, closed tabs, saved files. `browser.py` has the raters."""

import json
import threading
import time

import pytest

from browser import ARMED, DESKTOP, KEYS, PHONE, begin, given, opened, saved, served, shown
from dnp.evaluation.people import answers
from study import make_study

pytestmark = pytest.mark.slow


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


def test_a_whole_study_by_keyboard_from_the_disk(chromium, a_study, tmp_path):
    folder, key = a_study
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


def test_a_whole_study_by_touch_at_phone_size_from_a_static_server(chromium, a_study, tmp_path):
    folder, key = a_study
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


def test_a_tab_closed_in_the_middle_goes_on_where_it_was(chromium, a_study, tmp_path):
    folder, key = a_study
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


def test_buttons_arm_when_both_pictures_are_loaded_and_of_one_size(chromium, a_study):
    gate = threading.Event()
    late = lambda path: gate.wait(20) if path.endswith(".png") else None
    with (
        served(a_study[0], late) as url,
        opened(chromium, url, **DESKTOP) as (_, page, _asked),
    ):
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


def test_back_takes_one_answer_back_and_a_held_key_answers_once(chromium, a_study):
    with opened(chromium, (a_study[0] / "index.html").as_uri(), **DESKTOP) as (
        _,
        page,
        _asked,
    ):
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


def test_a_double_click_answers_once(chromium, a_study):
    with opened(chromium, (a_study[0] / "index.html").as_uri(), **DESKTOP) as (
        _,
        page,
        _asked,
    ):
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


def test_sides_are_balanced_and_order_differs_for_each_rater(chromium, a_study):
    _, key = a_study
    real = {pid: p for pid, p in key["pairs"].items() if p["kind"] == "pair"}
    with opened(chromium, (a_study[0] / "index.html").as_uri(), **DESKTOP) as (
        _,
        page,
        _asked,
    ):
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


def test_deleting_answers_starts_anew_as_another_rater(chromium, a_study):
    with opened(chromium, (a_study[0] / "index.html").as_uri(), **DESKTOP) as (
        _,
        page,
        _asked,
    ):
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


def test_two_tabs_of_a_rater_are_one_study(chromium, a_study):
    with served(a_study[0]) as url, opened(chromium, url, **DESKTOP) as (context, page, _):
        begin(page)
        page.wait_for_selector(ARMED)
        other = context.new_page()
        other.goto(url)
        other.wait_for_selector(ARMED)
        page.keyboard.press("ArrowLeft")
        other.wait_for_function("place.textContent.includes('Question 2 of 2')")
        assert shown(other) == shown(page)


def test_a_browser_that_keeps_nothing_is_told_to_the_rater(chromium, a_study, tmp_path):
    with opened(chromium, "about:blank", **DESKTOP) as (context, page, _):
        full = "Storage.prototype.setItem = () => { throw new Error('full'); }"
        context.add_init_script(full)
        page.goto((a_study[0] / "index.html").as_uri())
        begin(page)
        assert "keeps nothing" in page.inner_text("#notice")
        for i in range(answers.expected(a_study[1])):
            page.wait_for_selector(ARMED)
            page.keyboard.press(KEYS[given(i)])
        page.wait_for_selector("#done:not([hidden])")
        _, path = saved(page, tmp_path)
    assert len(answers.read_file(path, a_study[1])) == answers.expected(a_study[1])
